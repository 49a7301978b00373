// llama.cpp's backends and the devices that they bring.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "ggml-backend.h"

namespace coe {

// Loads the backends, once for the process.
void start_backends();
// This machine's GPUs: separate ones, or where there are none, those that share the machine's memory.
std::vector<ggml_backend_dev_t> local_gpus();
// The devices of an rpc-server. Throws std::runtime_error where llama.cpp was built without RPC.
std::vector<ggml_backend_dev_t> rpc_devices(const std::string& endpoint);

// Whether llama.cpp can use other machines' devices.
bool has_rpc();
// Whether the CPU has AMX, and llama.cpp a memory layout for it.
bool has_amx();
// Bytes that this machine's GPUs have free; 0 without any.
size_t free_gpu_memory();
// How many devices an rpc-server offers. llama.cpp ends the process where nothing answers as such a server
// does.
size_t count_rpc_devices(const std::string& endpoint);

}  // namespace coe
