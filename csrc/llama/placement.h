// Where a model's weights go.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "ggml-backend.h"
#include "llama.h"

namespace coe {

struct PlacementOptions {
    int32_t n_gpu_layers = -1;  // negative: all
    int32_t n_cpu_moe = 0;      // number of first blocks whose experts stay in host memory; negative: all
    std::vector<std::string> devices;  // empty: all
    std::vector<std::string> rpc;      // llama.cpp's rpc-servers, HOST:PORT: their devices come first
    bool repack = true;                // weights may be copied to a layout that the CPU reads faster
};

// What llama.cpp's parameters point to, for as long as a model is being loaded.
class WeightPlacement {
  public:
    // Throws std::runtime_error for a device that there is not.
    explicit WeightPlacement(const PlacementOptions& options);
    // A null pointer stands at the end of each; null where llama.cpp is to choose.
    ggml_backend_dev_t* devices() { return devices_.empty() ? nullptr : devices_.data(); }
    const llama_model_tensor_buft_override* overrides() const {
        return overrides_.empty() ? nullptr : overrides_.data();
    }
    // Whether llama.cpp may copy weights to other layouts of memory.
    bool repack() const { return repack_; }

  private:
    std::vector<ggml_backend_dev_t> devices_;
    std::vector<std::string> patterns_;
    std::vector<llama_model_tensor_buft_override> overrides_;
    bool repack_;
};

}  // namespace coe
