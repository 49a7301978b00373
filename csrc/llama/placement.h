// Placement of a model's weights on devices.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "ggml-backend.h"
#include "llama.h"

namespace coe {

// Options of the placement.
struct PlacementOptions {
    int32_t n_gpu_layers = -1;  // negative: all
    int32_t n_cpu_moe = 0;      // number of first blocks whose experts stay in host memory; negative: all
    std::vector<std::string> devices;  // empty: all
    std::vector<std::string> rpc;      // llama.cpp's rpc-servers, HOST:PORT: their devices come first
    bool repack = true;                // whether weights may be copied to a layout that is faster on the CPU
};

// The data that llama.cpp's parameters point to while a model is being loaded.
class WeightPlacement {
  public:
    // Throws std::runtime_error for a device that does not exist.
    explicit WeightPlacement(const PlacementOptions& options);
    // Both arrays end with a null pointer; they are null if llama.cpp chooses.
    ggml_backend_dev_t* devices() { return devices_.empty() ? nullptr : devices_.data(); }
    const llama_model_tensor_buft_override* overrides() const {
        return overrides_.empty() ? nullptr : overrides_.data();
    }
    // Returns whether layers run on a GPU, or on the device of an rpc-server.
    bool on_gpu() const { return on_gpu_; }
    // Returns whether llama.cpp may copy weights to other memory layouts.
    bool repack() const { return repack_; }

  private:
    std::vector<ggml_backend_dev_t> devices_;
    std::vector<std::string> patterns_;
    std::vector<llama_model_tensor_buft_override> overrides_;
    bool on_gpu_;
    bool repack_;
};

}  // namespace coe
