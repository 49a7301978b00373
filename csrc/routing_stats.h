// What a profile counts: for each MoE layer, expert and rank, the choices and the sum of their weights.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace coe {

class RoutingStats {
  public:
    // top_k: the most that any layer chooses for a token.
    RoutingStats(size_t n_layers, size_t n_experts, size_t top_k);

    // Adds one token's k choices, at most top_k, to a layer. Rank 0 is the highest weight; equal weights keep
    // their order. Both arrays are reordered. Throws std::runtime_error for an id outside the experts and for
    // a weight that is no finite number.
    void add_token(size_t layer, int32_t* experts, float* weights, size_t k);

    // Adds the counts of another of the same sizes.
    void add(const RoutingStats& other);

    void clear();

    size_t n_layers() const { return n_layers_; }
    size_t n_experts() const { return n_experts_; }
    size_t top_k() const { return top_k_; }

    // All are [layer, expert, rank].
    const std::vector<int64_t>& histograms() const { return histograms_; }
    const std::vector<double>& weight_sum() const { return weight_sum_; }
    // What rounding to double left out of weight_sum: together they are the exact sum.
    const std::vector<double>& weight_sum_rest() const { return weight_sum_rest_; }

  private:
    size_t n_layers_;
    size_t n_experts_;
    size_t top_k_;
    std::vector<int64_t> histograms_;
    std::vector<double> weight_sum_;
    std::vector<double> weight_sum_rest_;
};

// Adds a weight to a sum that is kept in two doubles, `sum` the exact sum rounded and `rest` the difference,
// so that a sum does not depend on the order of its terms and parts of a corpus add up to the whole. Weights
// count as multiples of 2^-64, which every float from 2^-41 up is; sums up to 2^40 are exact then, for
// neither error term needs more than a double's 53 bits (two-sum: Knuth, The Art of Computer Programming
// 2, 4.2.2).
void add_exactly(double& sum, double& rest, float weight);

}  // namespace coe
