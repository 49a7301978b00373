#include "gguf/tensor_blocks.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "ggml.h"

namespace coe {

namespace {

constexpr size_t values_at_once = 8192;  // a multiple of every type's block size

struct Workspace {
    std::vector<float> values = std::vector<float>(values_at_once);
    std::vector<uint8_t> aligned = std::vector<uint8_t>(values_at_once * sizeof(double));
};

// Uses several running sums, which do not wait for each other.
double sum_of_squares(const float* values, size_t n_values) {
    constexpr size_t n_lanes = 16;
    double lanes[n_lanes] = {};
    size_t i = 0;
    for (; i + n_lanes <= n_values; i += n_lanes) {
        for (size_t lane = 0; lane < n_lanes; ++lane) {
            const auto value = static_cast<double>(values[i + lane]);
            lanes[lane] += value * value;
        }
    }
    double sum = 0.0;
    for (; i < n_values; ++i) {
        sum += static_cast<double>(values[i]) * static_cast<double>(values[i]);
    }
    for (const double lane : lanes) {
        sum += lane;
    }
    return sum;
}

double sum_of_squares(const uint8_t* data, size_t n_blocks, ggml_type type, Workspace& workspace) {
    const auto block = static_cast<size_t>(ggml_blck_size(type));
    const size_t block_bytes = ggml_type_size(type);
    const ggml_to_float_t to_float = ggml_get_type_traits(type)->to_float;
    const size_t blocks_at_once = values_at_once / block;
    double sum = 0.0;
    for (size_t done = 0; done < n_blocks;) {
        const size_t count = std::min(blocks_at_once, n_blocks - done);
        const uint8_t* source = data + done * block_bytes;
        if (type == GGML_TYPE_F32) {
            std::memcpy(workspace.values.data(), source, count * sizeof(float));
        } else {
            // Copied, because a slice may start at any byte, and its type needs an alignment.
            std::memcpy(workspace.aligned.data(), source, count * block_bytes);
            to_float(workspace.aligned.data(), workspace.values.data(), static_cast<int64_t>(count * block));
        }
        sum += sum_of_squares(workspace.values.data(), count * block);
        done += count;
    }
    return sum;
}

}  // namespace

bool has_norm(uint32_t type) {
    return type < GGML_TYPE_COUNT &&
           (type == GGML_TYPE_F32 || ggml_get_type_traits(static_cast<ggml_type>(type))->to_float != nullptr);
}

std::vector<double> slice_norms(const uint8_t* data, size_t n_bytes, uint32_t type, size_t n_slices) {
    if (!has_norm(type)) {
        throw std::invalid_argument("ggml cannot dequantise type " + std::to_string(type));
    }
    const auto ggml = static_cast<ggml_type>(type);
    const size_t block_bytes = ggml_type_size(ggml);
    if (n_slices == 0 || n_slices > n_bytes || n_bytes % n_slices != 0 ||
        (n_bytes / n_slices) % block_bytes != 0) {
        throw std::invalid_argument(std::to_string(n_bytes) + " bytes are not " + std::to_string(n_slices) +
                                    " slices of whole blocks");
    }
    const size_t slice_bytes = n_bytes / n_slices;
    std::vector<double> norms;
    Workspace workspace;
    for (size_t slice = 0; slice < n_slices; ++slice) {
        norms.push_back(std::sqrt(
            sum_of_squares(data + slice * slice_bytes, slice_bytes / block_bytes, ggml, workspace)));
    }
    return norms;
}

}  // namespace coe
