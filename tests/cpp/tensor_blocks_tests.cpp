#include <cmath>
#include <cstring>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "check.h"
#include "ggml.h"
#include "gguf/tensor_blocks.h"

namespace {

constexpr size_t n_slices = 7;
constexpr size_t row = 256;           // a whole number of blocks of every type
constexpr size_t rows_in_slice = 67;  // more than twice what is dequantised at once, and a rest

struct Quantised {
    ggml_type type;
    std::vector<uint8_t> bytes;
};

std::vector<float> random_values() {
    std::mt19937 random(11);
    std::normal_distribution<float> normal(0.0f, 0.3f);
    std::vector<float> values(n_slices * rows_in_slice * row);
    for (float& value : values) {
        value = normal(random);
    }
    return values;
}

Quantised quantise(ggml_type type) {
    const std::vector<float> values = random_values();
    constexpr size_t n_rows = n_slices * rows_in_slice;
    Quantised result = {type, std::vector<uint8_t>(n_rows * ggml_row_size(type, row))};
    if (type == GGML_TYPE_F32) {
        std::memcpy(result.bytes.data(), values.data(), result.bytes.size());
    } else {
        ggml_quantize_chunk(type, values.data(), result.bytes.data(), 0, n_rows, row, nullptr);
    }
    return result;
}

float half_at(const uint8_t* bytes) {
    ggml_fp16_t half;
    std::memcpy(&half, bytes, sizeof(half));
    return ggml_fp16_to_fp32(half);
}

// The values of a run of blocks, decoded here for the types whose layout is simple, so that the test does not
// lean on the code that is under test.
std::vector<double> decode(ggml_type type, const uint8_t* bytes, size_t n_values) {
    std::vector<double> values;
    if (type == GGML_TYPE_F32) {
        for (size_t i = 0; i < n_values; ++i) {
            float value;
            std::memcpy(&value, bytes + i * sizeof(value), sizeof(value));
            values.push_back(static_cast<double>(value));
        }
    } else if (type == GGML_TYPE_F16) {
        for (size_t i = 0; i < n_values; ++i) {
            values.push_back(static_cast<double>(half_at(bytes + 2 * i)));
        }
    } else if (type == GGML_TYPE_Q4_0) {  // a scale, then 32 nibbles; all low ones come before the high ones
        for (size_t block = 0; block < n_values / 32; ++block) {
            const uint8_t* at = bytes + block * 18;
            const auto scale = static_cast<double>(half_at(at));
            for (size_t i = 0; i < 32; ++i) {
                const int nibble = i < 16 ? at[2 + i] & 15 : at[2 + i - 16] >> 4;
                values.push_back(scale * (nibble - 8));
            }
        }
    } else if (type == GGML_TYPE_Q8_0) {  // a scale, then 32 signed bytes
        for (size_t block = 0; block < n_values / 32; ++block) {
            const uint8_t* at = bytes + block * 34;
            const auto scale = static_cast<double>(half_at(at));
            for (size_t i = 0; i < 32; ++i) {
                values.push_back(scale * static_cast<int8_t>(at[2 + i]));
            }
        }
    } else {
        std::vector<uint8_t> aligned(bytes, bytes + ggml_row_size(type, static_cast<int64_t>(n_values)));
        std::vector<float> floats(n_values);
        ggml_get_type_traits(type)->to_float(aligned.data(), floats.data(), static_cast<int64_t>(n_values));
        values.assign(floats.begin(), floats.end());
    }
    return values;
}

double plain_norm(ggml_type type, const uint8_t* bytes, size_t n_values) {
    double sum = 0.0;
    for (const double value : decode(type, bytes, n_values)) {
        sum += value * value;
    }
    return std::sqrt(sum);
}

std::vector<double> norms_of(const Quantised& tensor, size_t slices) {
    return coe::slice_norms(tensor.bytes.data(), tensor.bytes.size(), tensor.type, slices);
}

void check_norms(ggml_type type) {
    const Quantised tensor = quantise(type);
    const size_t slice_bytes = tensor.bytes.size() / n_slices;
    const std::vector<double> norms = norms_of(tensor, n_slices);
    CHECK_EQUAL(norms.size(), n_slices);
    for (size_t slice = 0; slice < n_slices; ++slice) {
        const double expected =
            plain_norm(type, tensor.bytes.data() + slice * slice_bytes, rows_in_slice * row);
        CHECK(expected > 1.0);
        // Products in float, as ggml dequantises, against products in double.
        CHECK(std::fabs(norms[slice] - expected) < 1e-6 * expected);
    }
    // A slice may start anywhere in memory.
    std::vector<uint8_t> shifted(tensor.bytes.size() + 1);
    std::memcpy(shifted.data() + 1, tensor.bytes.data(), tensor.bytes.size());
    CHECK(coe::slice_norms(shifted.data() + 1, tensor.bytes.size(), type, n_slices) ==
          norms_of(tensor, n_slices));
}

// Overwrites the scale at `offset` in the middle of slice 2; no other slice may notice.
void check_bad_scale(ggml_type type, size_t offset, const std::vector<uint8_t>& scale) {
    Quantised tensor = quantise(type);
    const std::vector<double> before = norms_of(tensor, n_slices);
    const size_t slice_bytes = tensor.bytes.size() / n_slices;
    const size_t row_bytes = ggml_row_size(type, row);
    std::memcpy(tensor.bytes.data() + 2 * slice_bytes + 40 * row_bytes + offset, scale.data(), scale.size());
    const std::vector<double> norms = norms_of(tensor, n_slices);
    for (size_t slice = 0; slice < n_slices; ++slice) {
        CHECK_EQUAL(std::isfinite(norms[slice]), slice != 2);
        CHECK(slice == 2 || norms[slice] == before[slice]);
    }
}

}  // namespace

TEST(norms_of_f32) { check_norms(GGML_TYPE_F32); }
TEST(norms_of_f16) { check_norms(GGML_TYPE_F16); }
TEST(norms_of_q4_0) { check_norms(GGML_TYPE_Q4_0); }
TEST(norms_of_q8_0) { check_norms(GGML_TYPE_Q8_0); }
TEST(norms_of_q4_k) { check_norms(GGML_TYPE_Q4_K); }

TEST(norms_are_taken_in_double_precision) {
    const std::vector<float> values = {1e30f, 0.0f, 1e-30f, 0.0f};  // their squares are no floats
    const auto* bytes = reinterpret_cast<const uint8_t*>(values.data());
    const std::vector<double> norms = coe::slice_norms(bytes, 16, GGML_TYPE_F32, 2);
    CHECK(std::fabs(norms[0] / static_cast<double>(1e30f) - 1.0) < 1e-15);
    CHECK(std::fabs(norms[1] / static_cast<double>(1e-30f) - 1.0) < 1e-15);
}

TEST(norms_of_broken_scales_are_not_finite) {
    const std::vector<uint8_t> half_nan = {0x00, 0x7e};
    const std::vector<uint8_t> half_infinity = {0x00, 0xfc};
    check_bad_scale(GGML_TYPE_F32, 0, {0x00, 0x00, 0xc0, 0x7f});
    check_bad_scale(GGML_TYPE_F32, 4, {0x00, 0x00, 0x80, 0xff});
    for (const std::vector<uint8_t>& scale : {half_nan, half_infinity}) {
        check_bad_scale(GGML_TYPE_F16, 2, scale);
        check_bad_scale(GGML_TYPE_Q4_0, 0, scale);
        check_bad_scale(GGML_TYPE_Q8_0, 34, scale);
        check_bad_scale(GGML_TYPE_Q4_K, 0, scale);
        check_bad_scale(GGML_TYPE_Q4_K, 2, scale);  // the scale of the minima
    }
}

// Any bytes are blocks of any type; some are given the exponents of infinity and NaN.
TEST(values_are_finite_where_norms_are) {
    std::mt19937 random(5);
    size_t n_tested = 0;
    for (uint32_t number = 0; number < GGML_TYPE_COUNT; ++number) {
        if (!coe::has_norm(number)) {
            continue;
        }
        const auto type = static_cast<ggml_type>(number);
        const size_t slice_bytes = 2 * ggml_row_size(type, row);
        size_t n_finite = 0;
        size_t n_infinite = 0;
        for (int attempt = 0; attempt < 3000; ++attempt) {
            std::vector<uint8_t> bytes(4 * slice_bytes + 1);
            for (uint8_t& byte : bytes) {
                byte = static_cast<uint8_t>(random() & (attempt % 2 == 0 ? 0xff : 0x3b));
            }
            const size_t at = random() % (bytes.size() - 2);
            const uint16_t half = random() % 2 == 0 ? 0x7c00 : static_cast<uint16_t>(0xfc00 | random());
            std::memcpy(bytes.data() + at, &half, sizeof(half));
            const std::vector<double> norms = coe::slice_norms(bytes.data() + 1, 4 * slice_bytes, number, 4);
            size_t expected = 0;
            while (expected < 4 && std::isfinite(norms[expected])) {
                ++expected;
            }
            const size_t found = coe::first_not_finite(bytes.data() + 1, 4 * slice_bytes, number, 4);
            if (found != expected) {
                coe::tests::fail(__FILE__, __LINE__,
                                 std::string("slice ") + std::to_string(found) + " instead of " +
                                     std::to_string(expected) + " of " + ggml_type_name(type));
            }
            ++(expected == 4 ? n_finite : n_infinite);
        }
        CHECK(n_finite > 100);
        n_tested += n_infinite > 10;
    }
    CHECK(n_tested >= 20);  // some types have scales that are always finite
}

TEST(norms_of_zero_bytes_are_zero_for_every_type) {
    size_t n_types = 0;
    for (uint32_t type = 0; type < GGML_TYPE_COUNT; ++type) {
        const bool dequantised = ggml_get_type_traits(static_cast<ggml_type>(type))->to_float != nullptr;
        CHECK_EQUAL(coe::has_norm(type), dequantised || type == GGML_TYPE_F32);
        if (!coe::has_norm(type)) {
            continue;
        }
        ++n_types;
        // Four slices of 33 times 256 values: more than is dequantised at once.
        const std::vector<uint8_t> zeros(4 * 33 * ggml_row_size(static_cast<ggml_type>(type), row));
        for (const double norm : coe::slice_norms(zeros.data(), zeros.size(), type, 4)) {
            if (norm != 0.0) {
                coe::tests::fail(__FILE__, __LINE__,
                                 std::string("zero bytes have the norm ") + std::to_string(norm) + " as " +
                                     ggml_type_name(static_cast<ggml_type>(type)));
            }
        }
    }
    CHECK(n_types >= 20);
}

TEST(norms_of_bad_slices_are_refused) {
    const std::vector<uint8_t> bytes(18 * 12);
    const auto norms = [&](size_t n_bytes, uint32_t type, size_t slices) {
        return coe::slice_norms(bytes.data(), n_bytes, type, slices);
    };
    CHECK_EQUAL(norms(18 * 12, GGML_TYPE_Q4_0, 12).size(), size_t{12});
    CHECK_EQUAL(norms(18 * 12, GGML_TYPE_Q4_0, 1).size(), size_t{1});
    CHECK_THROWS(std::invalid_argument, "216 bytes are not 0 slices", norms(18 * 12, GGML_TYPE_Q4_0, 0));
    for (const size_t slices :
         {size_t{5}, size_t{7}, size_t{8}, size_t{24}, size_t{216}, size_t{217}, static_cast<size_t>(-1)}) {
        CHECK_THROWS(std::invalid_argument, "slices of whole blocks", norms(18 * 12, GGML_TYPE_Q4_0, slices));
    }
    CHECK_THROWS(std::invalid_argument, "slices of whole blocks", norms(18 * 12 - 1, GGML_TYPE_Q4_0, 1));
    CHECK_THROWS(std::invalid_argument, "slices of whole blocks", norms(1, GGML_TYPE_Q4_0, 1));
    CHECK_THROWS(std::invalid_argument, "slices of whole blocks", norms(6, GGML_TYPE_F32, 2));
    for (const uint32_t type : {uint32_t{GGML_TYPE_I32}, uint32_t{4}, uint32_t{GGML_TYPE_Q8_K},
                                uint32_t{GGML_TYPE_COUNT}, uint32_t{0xffffffff}}) {
        CHECK(!coe::has_norm(type));
        CHECK_THROWS(std::invalid_argument, "cannot dequantise type " + std::to_string(type),
                     norms(216, type, 1));
    }
}
