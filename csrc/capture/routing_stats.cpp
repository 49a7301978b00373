#include "capture/routing_stats.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

namespace coe {

namespace {

// Returns a + b, rounded; writes the rounding error to `error`.
double two_sum(double a, double b, double& error) {
    const double sum = a + b;
    const double b_part = sum - a;
    error = (a - (sum - b_part)) + (b - b_part);
    return sum;
}

}  // namespace

void add_exactly(double& sum, double& rest, double term) {
    // A double from 2^-12 up is already a multiple of 2^-64.
    const double multiple = std::fabs(term) >= 0x1p-12 ? term : std::nearbyint(term * 0x1p64) * 0x1p-64;
    double error = 0.0;
    const double rounded = two_sum(sum, multiple, error);
    sum = two_sum(rounded, rest + error, rest);
}

void ExactSums::add(const ExactSums& other) {
    for (size_t i = 0; i < sums_.size(); ++i) {
        double error = 0.0;
        const double rounded = two_sum(sums_[i], other.sums_[i], error);
        sums_[i] = two_sum(rounded, error + (rests_[i] + other.rests_[i]), rests_[i]);
    }
}

void ExactSums::clear() {
    std::fill(sums_.begin(), sums_.end(), 0.0);
    std::fill(rests_.begin(), rests_.end(), 0.0);
}

RoutingStats::RoutingStats(size_t n_layers, size_t n_experts, size_t top_k, bool with_outputs)
    : n_layers_(n_layers),
      n_experts_(n_experts),
      top_k_(top_k),
      histograms_(n_layers * n_experts * top_k),
      weight_sum_(n_layers * n_experts * top_k),
      norm_sum_(with_outputs ? n_layers * n_experts : 0),
      weighted_norm_sum_(with_outputs ? n_layers * n_experts : 0) {}

void RoutingStats::check_expert(int32_t expert) const {
    if (expert < 0 || static_cast<size_t>(expert) >= n_experts_) {
        throw std::runtime_error("the router chose expert " + std::to_string(expert) + " of " +
                                 std::to_string(n_experts_));
    }
}

void RoutingStats::add_token(size_t layer, int32_t* experts, float* weights, size_t k) {
    // An insertion sort, because llama.cpp selects in descending order: only routers that select by another
    // score than the weights need more.
    for (size_t rank = 0; rank < k; ++rank) {
        check_expert(experts[rank]);
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
        weight_sum_.add(cell, static_cast<double>(weights[rank]));
    }
}

void RoutingStats::add_output(size_t layer, int32_t expert, float norm, double weighted_norm) {
    if (norm_sum_.sums().empty()) {
        throw std::logic_error("these statistics were made without outputs");
    }
    check_expert(expert);
    if (!std::isfinite(norm)) {
        throw std::runtime_error("expert " + std::to_string(expert) +
                                 " has an output that is not a finite number");
    }
    const size_t cell = layer * n_experts_ + static_cast<size_t>(expert);
    norm_sum_.add(cell, static_cast<double>(norm));
    weighted_norm_sum_.add(cell, weighted_norm);
}

void RoutingStats::add(const RoutingStats& other) {
    if (norm_sum_.sums().size() != other.norm_sum_.sums().size()) {
        throw std::logic_error("only one of the two statistics has outputs");
    }
    for (size_t cell = 0; cell < histograms_.size(); ++cell) {
        histograms_[cell] += other.histograms_[cell];
    }
    weight_sum_.add(other.weight_sum_);
    norm_sum_.add(other.norm_sum_);
    weighted_norm_sum_.add(other.weighted_norm_sum_);
}

void RoutingStats::clear() {
    std::fill(histograms_.begin(), histograms_.end(), 0);
    weight_sum_.clear();
    norm_sum_.clear();
    weighted_norm_sum_.clear();
}

}  // namespace coe
