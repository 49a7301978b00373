// Access to a tensor's bytes, in host memory or on a device.
#pragma once

#include <vector>

#include "ggml-backend.h"
#include "ggml.h"

namespace coe {

inline ggml_backend_buffer_t buffer_of(const ggml_tensor* tensor) {
    return tensor->view_src != nullptr ? tensor->view_src->buffer : tensor->buffer;
}

inline bool lies_in_host_memory(const ggml_tensor* tensor) {
    const ggml_backend_buffer_t buffer = buffer_of(tensor);
    return buffer == nullptr || ggml_backend_buffer_is_host(buffer);
}

// Returns the tensor's bytes, with its strides: in place if they are in host memory, else copied to `copy`.
inline const char* host_bytes(const ggml_tensor* tensor, std::vector<char>& copy) {
    if (lies_in_host_memory(tensor)) {
        return static_cast<const char*>(tensor->data);
    }
    const size_t n_bytes = ggml_nbytes(tensor);
    if (copy.size() < n_bytes) {
        copy.resize(n_bytes);
    }
    ggml_backend_tensor_get(tensor, copy.data(), 0, n_bytes);
    return copy.data();
}

}  // namespace coe
