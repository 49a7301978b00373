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

    void clear();

    size_t n_layers() const { return n_layers_; }
    size_t n_experts() const { return n_experts_; }
    size_t top_k() const { return top_k_; }

    // Both are [layer, expert, rank].
    const std::vector<int64_t>& histograms() const { return histograms_; }
    const std::vector<double>& weight_sum() const { return weight_sum_; }

  private:
    size_t n_layers_;
    size_t n_experts_;
    size_t top_k_;
    std::vector<int64_t> histograms_;
    std::vector<double> weight_sum_;
};

}  // namespace coe
