// How large what experts put out is: the Euclidean norm of each output, computed where it lies.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "ggml-alloc.h"
#include "ggml-backend.h"

namespace coe {

// Squares and sums rows by a small graph on the device that holds them, so that one number of each row leaves
// it.
class DeviceReducer {
  public:
    // Null where a device cannot be used, or is none.
    static std::unique_ptr<DeviceReducer> make(ggml_backend_dev_t device);
    ~DeviceReducer();
    DeviceReducer(const DeviceReducer&) = delete;
    DeviceReducer& operator=(const DeviceReducer&) = delete;

    // The sums of the squares of all rows of a tensor [width, k, n_tokens] of type F32, in memory's order.
    // False where the device has no such operations, or no memory for the squares of some rows.
    bool sums_of_squares(const ggml_tensor* rows, float* sums);

  private:
    explicit DeviceReducer(ggml_backend_t backend);
    bool reduce(const ggml_tensor* rows, int64_t first_token, int64_t n_tokens, float* sums);

    ggml_backend_t backend_;
    ggml_gallocr_t allocator_;
    std::vector<char> graph_memory_;
};

class NormReader {
  public:
    explicit NormReader(int32_t n_threads) : n_threads_(n_threads) {}

    // The norms of all rows of a tensor [width, k, n_tokens] of type F32 that has been computed, [k,
    // n_tokens] in memory's order. Where a device cannot reduce them, they are copied to the host, which
    // takes longer.
    void read(const ggml_tensor* outputs, float* norms);

  private:
    bool read_on_device(const ggml_tensor* outputs, float* norms);

    int32_t n_threads_;
    // By device; null for one that cannot.
    std::map<ggml_backend_dev_t, std::unique_ptr<DeviceReducer>> reducers_;
    std::vector<char> host_copy_;
};

// The norm of one row.
float row_norm(const float* row, size_t n);

}  // namespace coe
