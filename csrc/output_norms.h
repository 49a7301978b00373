// How large what experts put out is: the Euclidean norm of each output, computed where it lies.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "ggml-backend.h"

namespace coe {

class DeviceReducer;

class OutputNorms {
  public:
    explicit OutputNorms(int32_t n_threads);
    ~OutputNorms();
    OutputNorms(OutputNorms&&) noexcept;
    OutputNorms& operator=(OutputNorms&&) noexcept;

    // The norms of all rows of a tensor [n_embd, k, n_tokens] of type F32 that has been computed, [k,
    // n_tokens] in memory's order. Throws std::runtime_error where a device fails.
    void compute(const ggml_tensor* outputs, float* norms);

  private:
    int32_t n_threads_;
    // By device; null for one that has no such operations, or no memory for them.
    std::map<ggml_backend_dev_t, std::unique_ptr<DeviceReducer>> reducers_;
    std::vector<char> host_copy_;
};

// The norm of one row.
float row_norm(const float* row, size_t n);

}  // namespace coe
