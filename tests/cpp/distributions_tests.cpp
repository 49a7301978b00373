#include <atomic>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "base/parallel.h"
#include "check.h"
#include "llama/distributions.h"

namespace {

double naive_log_probability(const std::vector<float>& logits, size_t token) {
    long double sum = 0.0L;
    for (const float logit : logits) {
        sum += std::exp(static_cast<long double>(logit) - static_cast<long double>(logits[token]));
    }
    return static_cast<double>(-std::log(sum));
}

double log_probability(const std::vector<float>& logits, size_t token) {
    return coe::log_probability(logits.data(), static_cast<int32_t>(logits.size()),
                                static_cast<int32_t>(token));
}

}  // namespace

TEST(log_probability_equals_the_naive_one) {
    std::mt19937 random(7);
    std::uniform_int_distribution<int> thousandths(-30000, 30000);
    for (const size_t n_vocab : {size_t{1}, size_t{2}, size_t{257}, size_t{5000}}) {
        std::vector<float> logits(n_vocab);
        for (float& logit : logits) {
            logit = static_cast<float>(thousandths(random)) / 1024.0f;
        }
        for (size_t token = 0; token < n_vocab; token += 1 + n_vocab / 50) {
            const double expected = naive_log_probability(logits, token);
            CHECK(std::fabs(log_probability(logits, token) - expected) < 1e-11);
        }
    }
}

// Differences of such logits are no floats.
TEST(log_probability_is_taken_in_double_precision) {
    for (int i = 0; i < 1000; ++i) {
        const auto step = static_cast<float>(i);
        const std::vector<float> logits = {12.345678f + 0.01f * step, -7.1234567f - 0.0137f * step};
        CHECK(std::fabs(log_probability(logits, 1) - naive_log_probability(logits, 1)) < 1e-11);
    }
}

TEST(log_probabilities_sum_to_one) {
    const std::vector<float> logits = {-3.0f, 0.5f, 2.25f, 2.25f, -100.0f};
    double sum = 0.0;
    for (size_t token = 0; token < logits.size(); ++token) {
        sum += std::exp(log_probability(logits, token));
    }
    CHECK(std::fabs(sum - 1.0) < 1e-14);
    CHECK_EQUAL(log_probability(logits, 2), log_probability(logits, 3));
}

TEST(log_probability_of_extreme_logits) {
    CHECK_EQUAL(log_probability({5.0f}, 0), 0.0);
    CHECK(std::fabs(log_probability({1000.0f, 0.0f}, 1) + 1000.0) < 1e-12);  // exp(1000) is infinite
    CHECK(std::fabs(log_probability({-1000.0f, -1000.0f}, 1) + std::log(2.0)) < 1e-12);
    const float infinity = std::numeric_limits<float>::infinity();
    CHECK_EQUAL(log_probability({1.0f, -infinity}, 0), 0.0);
    CHECK_EQUAL(log_probability({1.0f, -infinity}, 1), -std::numeric_limits<double>::infinity());
    CHECK(std::isnan(log_probability({1.0f, std::nanf("")}, 0)));
}

TEST(divergence_equals_the_naive_one) {
    std::mt19937 random(11);
    std::normal_distribution<float> normal(0.0f, 4.0f);
    for (const size_t n_vocab : {size_t{1}, size_t{2}, size_t{300}}) {
        std::vector<float> theirs(n_vocab);
        std::vector<float> ours(n_vocab);
        for (size_t i = 0; i < n_vocab; ++i) {
            theirs[i] = normal(random);
            ours[i] = normal(random);
        }
        const auto n = static_cast<int32_t>(n_vocab);
        const double normaliser = coe::log_sum_exp(theirs.data(), n);
        double expected = 0.0;
        size_t their_top = 0;
        size_t our_top = 0;
        for (size_t i = 0; i < n_vocab; ++i) {
            const double log_p = naive_log_probability(theirs, i);
            expected += std::exp(log_p) * (log_p - naive_log_probability(ours, i));
            their_top = theirs[i] > theirs[their_top] ? i : their_top;
            our_top = ours[i] > ours[our_top] ? i : our_top;
        }
        const coe::Divergence found = coe::divergence(theirs.data(), normaliser, ours.data(), n);
        CHECK(std::fabs(found.kl - expected) < 1e-11);
        CHECK_EQUAL(found.same_top, their_top == our_top);
        const coe::Divergence none = coe::divergence(theirs.data(), normaliser, theirs.data(), n);
        CHECK_EQUAL(none.kl, 0.0);
        CHECK(none.same_top);
    }
}

TEST(divergence_where_a_token_is_impossible) {
    const float infinity = std::numeric_limits<float>::infinity();
    const std::vector<float> half = {1.0f, 1.0f, -infinity};
    const double normaliser = coe::log_sum_exp(half.data(), 3);
    const std::vector<float> same = {7.0f, 7.0f, -infinity};
    const std::vector<float> other = {1.0f, -infinity, 1.0f};
    CHECK(std::fabs(coe::divergence(half.data(), normaliser, same.data(), 3).kl) < 1e-12);
    CHECK_EQUAL(coe::divergence(half.data(), normaliser, other.data(), 3).kl, static_cast<double>(infinity));
}

TEST(parallel_for_calls_each_once) {
    for (const size_t n : {size_t{0}, size_t{1}, size_t{5}, size_t{1000}}) {
        for (const int32_t n_threads : {1, 2, 7}) {
            std::vector<std::atomic<int>> calls(n);
            coe::parallel_for(n, n_threads, [&](size_t i) { ++calls[i]; });
            for (const std::atomic<int>& call : calls) {
                CHECK_EQUAL(call.load(), 1);
            }
        }
    }
}
