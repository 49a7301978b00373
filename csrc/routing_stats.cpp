#include "routing_stats.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

namespace coe {

namespace {

// a + b, rounded; the rounding error goes to `error`.
double two_sum(double a, double b, double& error) {
    const double sum = a + b;
    const double b_part = sum - a;
    error = (a - (sum - b_part)) + (b - b_part);
    return sum;
}

}  // namespace

void add_exactly(double& sum, double& rest, float weight) {
    const double term = std::nearbyint(static_cast<double>(weight) * 0x1p64) * 0x1p-64;
    double error = 0.0;
    const double rounded = two_sum(sum, term, error);
    sum = two_sum(rounded, rest + error, rest);
}

RoutingStats::RoutingStats(size_t n_layers, size_t n_experts, size_t top_k)
    : n_layers_(n_layers),
      n_experts_(n_experts),
      top_k_(top_k),
      histograms_(n_layers * n_experts * top_k),
      weight_sum_(n_layers * n_experts * top_k),
      weight_sum_rest_(n_layers * n_experts * top_k) {}

void RoutingStats::add_token(size_t layer, int32_t* experts, float* weights, size_t k) {
    // llama.cpp selects in descending order, so this insertion sort has next to nothing to do, except for
    // routers that select by another score than they weight by.
    for (size_t rank = 0; rank < k; ++rank) {
        if (experts[rank] < 0 || static_cast<size_t>(experts[rank]) >= n_experts_) {
            throw std::runtime_error("the router chose expert " + std::to_string(experts[rank]) + " of " +
                                     std::to_string(n_experts_));
        }
        if (!std::isfinite(weights[rank])) {
            throw std::runtime_error("the router gave a weight that is not a finite number");
        }
        for (size_t at = rank; at > 0 && weights[at] > weights[at - 1]; --at) {
            std::swap(weights[at], weights[at - 1]);
            std::swap(experts[at], experts[at - 1]);
        }
    }
    const size_t base = layer * n_experts_ * top_k_;
    for (size_t rank = 0; rank < k; ++rank) {
        const size_t cell = base + static_cast<size_t>(experts[rank]) * top_k_ + rank;
        histograms_[cell] += 1;
        add_exactly(weight_sum_[cell], weight_sum_rest_[cell], weights[rank]);
    }
}

void RoutingStats::add(const RoutingStats& other) {
    for (size_t cell = 0; cell < histograms_.size(); ++cell) {
        histograms_[cell] += other.histograms_[cell];
        double error = 0.0;
        const double rounded = two_sum(weight_sum_[cell], other.weight_sum_[cell], error);
        const double rests = weight_sum_rest_[cell] + other.weight_sum_rest_[cell];
        weight_sum_[cell] = two_sum(rounded, error + rests, weight_sum_rest_[cell]);
    }
}

void RoutingStats::clear() {
    std::fill(histograms_.begin(), histograms_.end(), 0);
    std::fill(weight_sum_.begin(), weight_sum_.end(), 0.0);
    std::fill(weight_sum_rest_.begin(), weight_sum_rest_.end(), 0.0);
}

}  // namespace coe
