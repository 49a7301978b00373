// What a model and its context take of each kind of memory, by llama.cpp's own accounts.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

struct llama_context;

namespace coe {

struct MemoryUse {
    std::string buffer;  // llama.cpp's name for the kind of memory
    bool on_gpu;         // else in the machine's own memory
    size_t weights;      // bytes
    size_t context;      // bytes of keys, values and states
    size_t compute;      // bytes of what a batch is computed in
};

std::vector<MemoryUse> memory_use(const llama_context* context);

}  // namespace coe
