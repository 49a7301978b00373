#include "llama/placement.h"

#include <algorithm>
#include <stdexcept>

#include "llama/backends.h"

namespace coe {

namespace {

// Returns the devices to use, with a null pointer at the end; empty if llama.cpp chooses.
std::vector<ggml_backend_dev_t> find_devices(const std::vector<std::string>& names,
                                             const std::vector<std::string>& rpc) {
    std::vector<ggml_backend_dev_t> devices;
    for (const std::string& endpoint : rpc) {
        const std::vector<ggml_backend_dev_t> remote = rpc_devices(endpoint);
        devices.insert(devices.end(), remote.begin(), remote.end());
    }
    if (!rpc.empty() && names.empty()) {
        const std::vector<ggml_backend_dev_t> local = local_gpus();
        devices.insert(devices.end(), local.begin(), local.end());
    }
    for (const std::string& name : names) {
        ggml_backend_dev_t device = ggml_backend_dev_by_name(name.c_str());
        if (device == nullptr) {
            std::string known;
            for (size_t i = 0; i < ggml_backend_dev_count(); ++i) {
                known += std::string(i > 0 ? ", " : "") + ggml_backend_dev_name(ggml_backend_dev_get(i));
            }
            throw std::runtime_error("device " + name + " does not exist; this build of llama.cpp has " +
                                     known);
        }
        devices.push_back(device);
    }
    if (!devices.empty()) {
        devices.push_back(nullptr);
    }
    return devices;
}

// `devices`: those of find_devices.
bool has_gpu(const std::vector<ggml_backend_dev_t>& devices) {
    if (devices.empty()) {
        return !local_gpus().empty();
    }
    return std::any_of(devices.begin(), devices.end(), [](ggml_backend_dev_t device) {
        return device != nullptr && ggml_backend_dev_type(device) != GGML_BACKEND_DEVICE_TYPE_CPU;
    });
}

// Returns patterns for llama.cpp's tensor placement that match the experts of the first blocks, or of all.
std::vector<std::string> expert_patterns(int32_t n_cpu_moe) {
    const std::string experts = "\\.ffn_(up|down|gate|gate_up)_(ch|)exps";
    std::vector<std::string> patterns;
    if (n_cpu_moe < 0) {
        patterns.push_back(experts);
    }
    for (int32_t block = 0; block < n_cpu_moe; ++block) {
        patterns.push_back("blk\\." + std::to_string(block) + experts);
    }
    return patterns;
}

}  // namespace

WeightPlacement::WeightPlacement(const PlacementOptions& options) {
    start_backends();
    devices_ = find_devices(options.devices, options.rpc);
    on_gpu_ = options.n_gpu_layers != 0 && has_gpu(devices_);
    patterns_ = expert_patterns(options.n_cpu_moe);
    for (const std::string& pattern : patterns_) {
        overrides_.push_back({pattern.c_str(), ggml_backend_cpu_buffer_type()});
    }
    if (!overrides_.empty()) {
        overrides_.push_back({nullptr, nullptr});
    }
    // llama.cpp's AMX code writes out of bounds if activations have three dimensions, which crashes Gemma 4
    // (llama.cpp issue 20824), and it ends the process on latent attention.
    repack_ = options.repack && !has_amx();
}

}  // namespace coe
