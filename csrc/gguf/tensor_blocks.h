// Norms and differences of runs of quantised blocks, through ggml's own dequantisation.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace coe {

// Returns the Euclidean norm of each of `n_slices` equal slices of `n_bytes` bytes of ggml type `type`, in
// double precision. A norm is not finite if a value of its slice is not. Throws std::invalid_argument if a
// slice is not a whole number of blocks.
std::vector<double> slice_norms(const uint8_t* data, size_t n_bytes, uint32_t type, size_t n_slices);

// Returns the first slice with a value that is not finite, or `n_slices` if all values are finite. For most
// types that is told by the scales alone, which takes far less time than norms. Throws as `slice_norms` does.
size_t first_not_finite(const uint8_t* data, size_t n_bytes, uint32_t type, size_t n_slices);

// Returns the norms of the differences between slices of two tensors of equally many values.
// Throws std::invalid_argument if a slice is not a whole number of blocks of both types.
std::vector<double> slice_differences(const uint8_t* first, size_t first_bytes, uint32_t first_type,
                                      const uint8_t* second, size_t second_bytes, uint32_t second_type,
                                      size_t n_slices);

// Returns whether ggml can dequantise a type, so that its norms can be checked.
bool has_norm(uint32_t type);

}  // namespace coe
