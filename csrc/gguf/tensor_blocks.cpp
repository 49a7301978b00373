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

// Writes `count` blocks as floats. Blocks may start at any byte, and are copied, because their type needs an
// alignment.
void to_floats(const uint8_t* blocks, size_t count, ggml_type type, Workspace& workspace) {
    if (type == GGML_TYPE_F32) {
        std::memcpy(workspace.values.data(), blocks, count * sizeof(float));
        return;
    }
    std::memcpy(workspace.aligned.data(), blocks, count * ggml_type_size(type));
    ggml_get_type_traits(type)->to_float(
        workspace.aligned.data(), workspace.values.data(),
        static_cast<int64_t>(count * static_cast<size_t>(ggml_blck_size(type))));
}

// Slices of one type.
struct Slices {
    const uint8_t* data;
    ggml_type type;
    size_t bytes;  // of one slice

    // Throws std::invalid_argument.
    Slices(const uint8_t* all, size_t n_bytes, uint32_t number, size_t n_slices)
        : data(all), type(static_cast<ggml_type>(number)) {
        if (!has_norm(number)) {
            throw std::invalid_argument("ggml cannot dequantise type " + std::to_string(number));
        }
        if (n_slices == 0 || n_slices > n_bytes || n_bytes % n_slices != 0 ||
            (n_bytes / n_slices) % ggml_type_size(type) != 0) {
            throw std::invalid_argument(std::to_string(n_bytes) + " bytes are not " +
                                        std::to_string(n_slices) + " slices of whole blocks");
        }
        bytes = n_bytes / n_slices;
    }

    size_t n_values() const {
        return bytes / ggml_type_size(type) * static_cast<size_t>(ggml_blck_size(type));
    }

    // Writes `count` values of a slice as floats, from the value `first` on, both multiples of the block
    // size.
    void read(size_t slice, size_t first, size_t count, Workspace& workspace) const {
        const auto block = static_cast<size_t>(ggml_blck_size(type));
        to_floats(data + slice * bytes + first / block * ggml_type_size(type), count / block, type,
                  workspace);
    }
};

}  // namespace

bool has_norm(uint32_t type) {
    return type < GGML_TYPE_COUNT &&
           (type == GGML_TYPE_F32 || ggml_get_type_traits(static_cast<ggml_type>(type))->to_float != nullptr);
}

std::vector<double> slice_norms(const uint8_t* data, size_t n_bytes, uint32_t type, size_t n_slices) {
    const Slices slices(data, n_bytes, type, n_slices);
    std::vector<double> norms;
    Workspace workspace;
    for (size_t slice = 0; slice < n_slices; ++slice) {
        double sum = 0.0;
        for (size_t done = 0; done < slices.n_values(); done += values_at_once) {
            const size_t count = std::min(values_at_once, slices.n_values() - done);
            slices.read(slice, done, count, workspace);
            sum += sum_of_squares(workspace.values.data(), count);
        }
        norms.push_back(std::sqrt(sum));
    }
    return norms;
}

std::vector<double> slice_differences(const uint8_t* first, size_t first_bytes, uint32_t first_type,
                                      const uint8_t* second, size_t second_bytes, uint32_t second_type,
                                      size_t n_slices) {
    const Slices ours(first, first_bytes, first_type, n_slices);
    const Slices theirs(second, second_bytes, second_type, n_slices);
    if (ours.n_values() != theirs.n_values()) {
        throw std::invalid_argument("slices of " + std::to_string(ours.n_values()) + " and " +
                                    std::to_string(theirs.n_values()) + " values cannot be compared");
    }
    std::vector<double> norms;
    Workspace our_space;
    Workspace their_space;
    for (size_t slice = 0; slice < n_slices; ++slice) {
        double sum = 0.0;
        for (size_t done = 0; done < ours.n_values(); done += values_at_once) {
            const size_t count = std::min(values_at_once, ours.n_values() - done);
            ours.read(slice, done, count, our_space);
            theirs.read(slice, done, count, their_space);
            for (size_t i = 0; i < count; ++i) {
                our_space.values[i] -= their_space.values[i];
            }
            sum += sum_of_squares(our_space.values.data(), count);
        }
        norms.push_back(std::sqrt(sum));
    }
    return norms;
}

}  // namespace coe
