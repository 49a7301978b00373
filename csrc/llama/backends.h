// llama.cpp's backends and their devices.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "ggml-backend.h"

namespace coe {

// Loads the backends, once for each process.
void start_backends();
// Returns this machine's GPUs: discrete ones, or, if there are none, integrated ones.
std::vector<ggml_backend_dev_t> local_gpus();
// Returns the devices of an rpc-server. Throws std::runtime_error if llama.cpp was built without RPC.
std::vector<ggml_backend_dev_t> rpc_devices(const std::string& endpoint);

// What llama.cpp says about a device that it can compute on.
struct DeviceFacts {
    std::string name;
    std::string description;
    std::string backend;
    size_t total_memory;
    size_t free_memory;
};

// Returns this machine's devices, the CPU included.
std::vector<DeviceFacts> describe_devices();
// Returns whether llama.cpp can use devices of other machines.
bool has_rpc();
// Returns whether the CPU has AMX and llama.cpp has a memory layout for it.
bool has_amx();
// Returns the free bytes of this machine's GPUs; 0 if there are none.
size_t free_gpu_memory();
// Returns the number of devices of an rpc-server. llama.cpp ends the process if no rpc-server answers.
size_t count_rpc_devices(const std::string& endpoint);

}  // namespace coe
