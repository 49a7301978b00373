// Norms of runs of quantised blocks, through ggml's own dequantisation.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace coe {

// Euclidean norm of each of `n_slices` equal runs of `n_bytes / n_slices` bytes of ggml type `type`, in
// double precision; not finite where any value of the slice is not. Throws std::invalid_argument where a
// slice is not a whole number of blocks.
std::vector<double> slice_norms(const uint8_t* data, size_t n_bytes, uint32_t type, size_t n_slices);

// False for a type that ggml can't dequantise, whose norms can't be checked.
bool has_norm(uint32_t type);

}  // namespace coe
