#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <utility>
#include <vector>

#include "capture/routing_stats.h"
#include "check.h"

namespace {

// One layer of 6 experts, 3 of them chosen for a token.
struct ThreeOfSix {
    coe::RoutingStats stats{1, 6, 3};

    void add(std::vector<int32_t> experts, std::vector<float> weights) {
        stats.add_token(0, experts.data(), weights.data(), experts.size());
    }
    int64_t count(size_t expert, size_t rank) const { return stats.histograms()[expert * 3 + rank]; }
    double weight(size_t expert, size_t rank) const { return stats.weight_sum().sums()[expert * 3 + rank]; }
    int64_t total() const {
        int64_t sum = 0;
        for (const int64_t cell : stats.histograms()) {
            sum += cell;
        }
        return sum;
    }
};

}  // namespace

TEST(ranks_descend_by_weight) {
    ThreeOfSix layer;
    layer.add({4, 0, 2}, {0.5f, 0.25f, 0.125f});
    CHECK_EQUAL(layer.count(4, 0), 1);
    CHECK_EQUAL(layer.count(0, 1), 1);
    CHECK_EQUAL(layer.count(2, 2), 1);
    CHECK_EQUAL(layer.weight(4, 0), 0.5);
    CHECK_EQUAL(layer.weight(0, 1), 0.25);
    CHECK_EQUAL(layer.weight(2, 2), 0.125);
    CHECK_EQUAL(layer.total(), 3);
}

TEST(ranks_follow_weights_where_the_selection_order_does_not) {
    ThreeOfSix layer;
    layer.add({5, 1, 3}, {0.125f, 0.25f, 0.5f});  // the reverse
    layer.add({5, 1, 3}, {0.25f, 0.125f, 0.5f});  // the last one first
    layer.add({5, 1, 3}, {0.25f, 0.5f, 0.125f});  // the first two swapped
    CHECK_EQUAL(layer.count(3, 0), 2);
    CHECK_EQUAL(layer.count(1, 0), 1);
    CHECK_EQUAL(layer.count(5, 1), 2);
    CHECK_EQUAL(layer.count(1, 1), 1);
    CHECK_EQUAL(layer.count(5, 2), 1);
    CHECK_EQUAL(layer.count(1, 2), 1);
    CHECK_EQUAL(layer.count(3, 2), 1);
    CHECK_EQUAL(layer.weight(3, 0), 1.0);
    CHECK_EQUAL(layer.weight(5, 1), 0.5);
    CHECK_EQUAL(layer.total(), 9);
}

TEST(ranks_of_ties_keep_their_order) {
    ThreeOfSix layer;
    layer.add({5, 0, 3}, {0.25f, 0.25f, 0.25f});
    CHECK_EQUAL(layer.count(5, 0), 1);
    CHECK_EQUAL(layer.count(0, 1), 1);
    CHECK_EQUAL(layer.count(3, 2), 1);
    layer.stats.clear();
    layer.add({5, 0, 3}, {0.25f, 0.5f, 0.25f});
    CHECK_EQUAL(layer.count(0, 0), 1);
    CHECK_EQUAL(layer.count(5, 1), 1);
    CHECK_EQUAL(layer.count(3, 2), 1);
}

TEST(ranks_of_negative_weights) {
    ThreeOfSix layer;
    layer.add({0, 1, 2}, {-3.0f, -1.0f, -2.0f});
    CHECK_EQUAL(layer.count(1, 0), 1);
    CHECK_EQUAL(layer.count(2, 1), 1);
    CHECK_EQUAL(layer.count(0, 2), 1);
    CHECK_EQUAL(layer.weight(0, 2), -3.0);
}

TEST(stats_keep_layers_apart_and_clear) {
    coe::RoutingStats stats(3, 2, 1);
    int32_t expert = 1;
    float weight = 0.75f;
    stats.add_token(2, &expert, &weight, 1);
    for (size_t cell = 0; cell < 6; ++cell) {
        CHECK_EQUAL(stats.histograms()[cell], cell == 5 ? 1 : 0);
        CHECK_EQUAL(stats.weight_sum().sums()[cell], cell == 5 ? 0.75 : 0.0);
    }
    stats.clear();
    CHECK_EQUAL(stats.histograms()[5], 0);
    CHECK_EQUAL(stats.weight_sum().sums()[5], 0.0);
}

// 2^24 is where a float would stop counting, and 0.1f is no binary fraction.
TEST(weight_sums_are_kept_in_double_precision) {
    coe::RoutingStats stats(1, 1, 1);
    int32_t expert = 0;
    float large = 16777216.0f;
    stats.add_token(0, &expert, &large, 1);
    for (int i = 0; i < 1000; ++i) {
        float small = 0.1f;
        stats.add_token(0, &expert, &small, 1);
    }
    CHECK(std::fabs(stats.weight_sum().sums()[0] - (16777216.0 + 1000.0 * static_cast<double>(0.1f))) < 1e-4);
}

// Many weights of all sizes: the same sum to the last bit in three orders, and the exact one.
TEST(weight_sums_are_exact_in_any_order) {
    std::vector<float> weights;
    uint64_t state = 1;
    for (int i = 0; i < 300000; ++i) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        const auto mantissa = static_cast<float>(state >> 40);  // 24 bits
        weights.push_back(std::ldexp(mantissa, -24 - static_cast<int>(state % 17)));
    }
    const auto sum_of = [&] {
        coe::RoutingStats stats(1, 1, 1);
        for (float weight : weights) {
            int32_t expert = 0;
            stats.add_token(0, &expert, &weight, 1);
        }
        return std::make_pair(stats.weight_sum().sums()[0], stats.weight_sum().rests()[0]);
    };
    const auto sum = sum_of();
    std::reverse(weights.begin(), weights.end());
    CHECK(sum_of() == sum);
    std::sort(weights.begin(), weights.end());
    CHECK(sum_of() == sum);
    // In units of 2^-40, of which every weight is a multiple: integers add up exactly.
    int64_t exact = 0;
    for (const float weight : weights) {
        exact += static_cast<int64_t>(std::ldexp(static_cast<double>(weight), 40));
    }
    const double scaled = std::ldexp(sum.first, 40);
    CHECK_EQUAL(static_cast<int64_t>(scaled) + static_cast<int64_t>(std::ldexp(sum.second, 40)), exact);
}

TEST(tiny_weights_count) {
    double sum = 0.0;
    double rest = 0.0;
    coe::add_exactly(sum, rest, 1048576.0f);
    for (int i = 0; i < 1024; ++i) {
        coe::add_exactly(sum, rest, 0x1p-60f);
    }
    CHECK_EQUAL(sum, 1048576.0);
    CHECK_EQUAL(rest, 0x1p-50);
    coe::add_exactly(sum, rest, -1048576.0f);
    CHECK_EQUAL(sum, 0x1p-50);
    CHECK_EQUAL(rest, 0.0);
}

TEST(norms_add_up_by_expert) {
    coe::RoutingStats stats(2, 3, 1, true);
    CHECK_EQUAL(stats.norm_sum().sums().size(), size_t{6});
    stats.add_output(1, 2, 0.5f, 0.125);
    stats.add_output(1, 2, 1.5f, 0.25);
    stats.add_output(0, 2, 4.0f, 1.0);
    CHECK(stats.norm_sum().sums() == (std::vector<double>{0.0, 0.0, 4.0, 0.0, 0.0, 2.0}));
    CHECK(stats.weighted_norm_sum().sums() == (std::vector<double>{0.0, 0.0, 1.0, 0.0, 0.0, 0.375}));
    coe::RoutingStats twice(2, 3, 1, true);
    twice.add(stats);
    twice.add(stats);
    CHECK(twice.norm_sum().sums() == (std::vector<double>{0.0, 0.0, 8.0, 0.0, 0.0, 4.0}));
    CHECK(twice.weighted_norm_sum().sums() == (std::vector<double>{0.0, 0.0, 2.0, 0.0, 0.0, 0.75}));
    CHECK_THROWS(std::runtime_error, "expert 3 of 3", stats.add_output(0, 3, 1.0f, 1.0));
    CHECK_THROWS(std::runtime_error, "expert -1 of 3", stats.add_output(0, -1, 1.0f, 1.0));
    for (const float bad : {std::nanf(""), std::numeric_limits<float>::infinity()}) {
        CHECK_THROWS(std::runtime_error, "expert 1 has", stats.add_output(0, 1, bad, 1.0));
    }
    coe::RoutingStats without(2, 3, 1);
    CHECK_THROWS(std::logic_error, "without outputs", without.add_output(0, 1, 1.0f, 1.0));
    CHECK_THROWS(std::logic_error, "only one", without.add(stats));
    CHECK_THROWS(std::logic_error, "only one", stats.add(without));
    stats.clear();
    CHECK(stats.norm_sum().sums() == std::vector<double>(6));
    CHECK(stats.weighted_norm_sum().sums() == std::vector<double>(6));
}

TEST(stats_refuse_bad_ids_and_weights) {
    ThreeOfSix layer;
    const float infinity = std::numeric_limits<float>::infinity();
    CHECK_THROWS(std::runtime_error, "expert 6 of 6", layer.add({0, 6, 1}, {0.5f, 0.25f, 0.125f}));
    CHECK_THROWS(std::runtime_error, "expert -1 of 6", layer.add({0, 1, -1}, {0.5f, 0.25f, 0.125f}));
    CHECK_THROWS(std::runtime_error, "2147483647", layer.add({2147483647, 1, 2}, {0.5f, 0.25f, 0.125f}));
    CHECK_THROWS(std::runtime_error, "finite", layer.add({0, 1, 2}, {0.5f, std::nanf(""), 0.125f}));
    CHECK_THROWS(std::runtime_error, "finite", layer.add({0, 1, 2}, {infinity, 0.5f, 0.125f}));
    CHECK_THROWS(std::runtime_error, "finite", layer.add({0, 1, 2}, {0.5f, 0.25f, -infinity}));
    CHECK_EQUAL(layer.total(), 0);  // a refused token leaves no part of itself behind
}
