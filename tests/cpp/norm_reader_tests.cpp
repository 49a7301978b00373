#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <vector>

#include "capture/norm_reader.h"
#include "check.h"
#include "ggml-backend.h"
#include "ggml.h"

namespace {

using coe::DeviceReducer;
using coe::NormReader;
using coe::row_norm;

// A tensor in host memory that holds rows of `width` values, [width, k, n_tokens], `gap` values apart.
struct Rows {
    std::vector<float> values;
    ggml_tensor tensor = {};

    Rows(int64_t width, int64_t k, int64_t n_tokens, int64_t gap, unsigned seed)
        : values(static_cast<size_t>((width + gap) * k * n_tokens)) {
        std::mt19937 random(seed);
        std::normal_distribution<float> normal;
        for (float& value : values) {
            value = normal(random);
        }
        tensor.type = GGML_TYPE_F32;
        const int64_t ne[] = {width, k, n_tokens, 1};
        std::copy(ne, ne + GGML_MAX_DIMS, tensor.ne);
        tensor.nb[0] = sizeof(float);
        tensor.nb[1] = static_cast<size_t>(width + gap) * sizeof(float);
        tensor.nb[2] = tensor.nb[1] * static_cast<size_t>(k);
        tensor.nb[3] = tensor.nb[2] * static_cast<size_t>(n_tokens);
        tensor.data = values.data();
    }

    std::vector<float> norms(int32_t n_threads) const {
        std::vector<float> found(static_cast<size_t>(tensor.ne[1] * tensor.ne[2]), -1.0f);
        NormReader(n_threads).read(&tensor, found.data());
        return found;
    }
};

double exact_norm(const float* row, size_t n) {
    double sum = 0.0;
    for (size_t i = 0; i < n; ++i) {
        sum += static_cast<double>(row[i]) * static_cast<double>(row[i]);
    }
    return std::sqrt(sum);
}

}  // namespace

TEST(norms_of_rows_of_all_lengths) {
    for (const int64_t width : {1, 2, 15, 16, 17, 31, 33, 1000, 2816}) {
        const Rows rows(width, 1, 1, 0, static_cast<unsigned>(width));
        const double expected = exact_norm(rows.values.data(), rows.values.size());
        CHECK(std::fabs(static_cast<double>(row_norm(rows.values.data(), rows.values.size())) - expected) <=
              1e-6 * expected);
    }
    CHECK_EQUAL(row_norm(nullptr, 0), 0.0f);
}

TEST(norms_of_a_tensor_are_in_its_order_whatever_the_threads) {
    for (const int64_t gap : {0, 7}) {
        const Rows rows(300, 3, 500, gap, 1);
        const std::vector<float> found = rows.norms(1);
        for (size_t row = 0; row < found.size(); ++row) {
            const double expected = exact_norm(&rows.values[row * static_cast<size_t>(300 + gap)], 300);
            CHECK(std::fabs(static_cast<double>(found[row]) - expected) <= 1e-6 * expected);
        }
        CHECK(rows.norms(4) == found);
    }
    CHECK(Rows(300, 3, 0, 0, 1).norms(2).empty());
}

TEST(norms_of_what_squares_do_not_fit) {
    const std::vector<float> large(40, 1e30f);
    CHECK(std::fabs(row_norm(large.data(), large.size()) / 6.3245553e30f - 1.0f) < 1e-6f);
    for (const float bad : {std::nanf(""), std::numeric_limits<float>::infinity()}) {
        std::vector<float> row(40, 1.0f);
        row[17] = bad;
        CHECK(!std::isfinite(row_norm(row.data(), row.size())));
        row = std::vector<float>(3, bad);
        CHECK(!std::isfinite(row_norm(row.data(), row.size())));
    }
}

TEST(a_device_sums_the_squares_of_rows) {
    const std::unique_ptr<DeviceReducer> reducer =
        DeviceReducer::make(ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU));
    CHECK(reducer != nullptr);
    // Growing and shrinking; the last one needs more than one go.
    for (const int64_t n_tokens : {1, 40, 7, 3000}) {
        const int64_t width = n_tokens == 3000 ? 4096 : 33;
        Rows rows(width, 2, n_tokens, 0, static_cast<unsigned>(n_tokens));
        const size_t n_bytes = rows.values.size() * sizeof(float);
        ggml_backend_buffer_t buffer =
            ggml_backend_buft_alloc_buffer(ggml_backend_cpu_buffer_type(), n_bytes);
        rows.tensor.buffer = buffer;
        rows.tensor.data = ggml_backend_buffer_get_base(buffer);
        std::memcpy(rows.tensor.data, rows.values.data(), n_bytes);
        std::vector<float> sums(static_cast<size_t>(2 * n_tokens), -1.0f);
        CHECK(reducer->sums_of_squares(&rows.tensor, sums.data()));
        for (size_t row = 0; row < sums.size(); ++row) {
            const double norm =
                exact_norm(&rows.values[row * static_cast<size_t>(width)], static_cast<size_t>(width));
            CHECK(std::fabs(static_cast<double>(sums[row]) - norm * norm) <= 1e-5 * norm * norm);
        }
        ggml_backend_buffer_free(buffer);
    }
    CHECK(DeviceReducer::make(nullptr) == nullptr);
}
