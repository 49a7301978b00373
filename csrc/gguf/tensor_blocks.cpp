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

// Where a block has its F16 scales, in bytes; none if something else scales it too. All values of a block are
// sums and products of these and of small constants, so they are finite if and only if these are.
std::vector<size_t> f16_offsets(ggml_type type) {
    switch (type) {
        case GGML_TYPE_F16:
        case GGML_TYPE_Q4_0:
        case GGML_TYPE_Q5_0:
        case GGML_TYPE_Q8_0:
        case GGML_TYPE_IQ1_S:
        case GGML_TYPE_IQ2_XXS:
        case GGML_TYPE_IQ2_XS:
        case GGML_TYPE_IQ2_S:
        case GGML_TYPE_IQ3_XXS:
        case GGML_TYPE_IQ3_S:
        case GGML_TYPE_IQ4_NL:
        case GGML_TYPE_IQ4_XS:
            return {0};
        case GGML_TYPE_Q4_1:
        case GGML_TYPE_Q5_1:
        case GGML_TYPE_Q4_K:
        case GGML_TYPE_Q5_K:
            return {0, 2};
        case GGML_TYPE_Q2_K:
            return {80, 82};
        case GGML_TYPE_Q3_K:
            return {108};
        case GGML_TYPE_Q6_K:
            return {208};
        default:
            return {};
    }
}

// Returns whether none of the 16-bit floats with these exponent bits, at `offset` in each block, is infinite
// or NaN.
bool halves_are_finite(const uint8_t* blocks, size_t n_blocks, size_t block_bytes, size_t offset,
                       uint16_t exponent) {
    bool finite = true;
    for (size_t block = 0; block < n_blocks; ++block) {
        uint16_t bits;
        std::memcpy(&bits, blocks + block * block_bytes + offset, sizeof(bits));
        finite &= (bits & exponent) != exponent;
    }
    return finite;
}

bool floats_are_finite(const uint8_t* values, size_t n_values) {
    constexpr uint32_t exponent = 0x7f800000;
    bool finite = true;
    for (size_t i = 0; i < n_values; ++i) {
        uint32_t bits;
        std::memcpy(&bits, values + i * sizeof(bits), sizeof(bits));
        finite &= (bits & exponent) != exponent;
    }
    return finite;
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

size_t first_not_finite(const uint8_t* data, size_t n_bytes, uint32_t type, size_t n_slices) {
    const Slices slices(data, n_bytes, type, n_slices);
    const size_t block_bytes = ggml_type_size(slices.type);
    const size_t n_blocks = slices.bytes / block_bytes;
    const std::vector<size_t> halves = f16_offsets(slices.type);
    for (size_t slice = 0; slice < n_slices; ++slice) {
        const uint8_t* blocks = data + slice * slices.bytes;
        bool finite = true;
        if (slices.type == GGML_TYPE_F32) {
            finite = floats_are_finite(blocks, n_blocks);
        } else if (slices.type == GGML_TYPE_BF16) {
            finite = halves_are_finite(blocks, n_blocks, block_bytes, 0, 0x7f80);
        } else if (halves.empty()) {
            finite = std::isfinite(slice_norms(blocks, slices.bytes, type, 1)[0]);
        } else {
            for (const size_t offset : halves) {
                finite = finite && halves_are_finite(blocks, n_blocks, block_bytes, offset, 0x7c00);
            }
        }
        if (!finite) {
            return slice;
        }
    }
    return n_slices;
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
