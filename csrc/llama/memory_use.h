// Memory that a model and its context use, as llama.cpp reports it.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

struct llama_context;

namespace coe {

// The use of one kind of memory.
struct MemoryUse {
    std::string buffer;  // llama.cpp's name for the kind of memory
    bool on_gpu;         // else in host memory
    size_t weights;      // bytes
    size_t context;      // bytes of keys, values and states
    size_t compute;      // bytes of compute buffers
};

std::vector<MemoryUse> memory_use(const llama_context* context);

}  // namespace coe
