// Activation norms: the Euclidean norm of each expert output, computed on the device that holds it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "ggml-alloc.h"
#include "ggml-backend.h"

namespace coe {

// Sums the squares of rows with a small graph on the device that holds them, so that only one number for each
// row is copied.
class DeviceReducer {
  public:
    // Returns null if the device cannot be used or is null.
    static std::unique_ptr<DeviceReducer> make(ggml_backend_dev_t device);
    ~DeviceReducer();
    DeviceReducer(const DeviceReducer&) = delete;
    DeviceReducer& operator=(const DeviceReducer&) = delete;

    // Writes the sums of squares of all rows of an F32 tensor [width, k, n_tokens], in memory order. Returns
    // false if the device lacks the operations, or the memory for some rows' squares.
    bool sums_of_squares(const ggml_tensor* rows, float* sums);

  private:
    explicit DeviceReducer(ggml_backend_t backend);
    bool reduce(const ggml_tensor* rows, int64_t first_token, int64_t n_tokens, float* sums);

    ggml_backend_t backend_;
    ggml_gallocr_t allocator_;
    std::vector<char> graph_memory_;
};

// Reads the norms of expert outputs.
class NormReader {
  public:
    explicit NormReader(int32_t n_threads) : n_threads_(n_threads) {}

    // Writes the norms of all rows of a computed F32 tensor [width, k, n_tokens], as [k, n_tokens] in memory
    // order. If the device cannot compute them, the rows are copied to the host, which is slower.
    void read(const ggml_tensor* outputs, float* norms);

  private:
    bool read_on_device(const ggml_tensor* outputs, float* norms);

    int32_t n_threads_;
    // By device; null for a device that cannot reduce.
    std::map<ggml_backend_dev_t, std::unique_ptr<DeviceReducer>> reducers_;
    std::vector<char> host_copy_;
};

// Returns the norm of one row.
float row_norm(const float* row, size_t n);

}  // namespace coe
