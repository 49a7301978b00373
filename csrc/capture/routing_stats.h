// The statistics of a profile: for each MoE layer, expert and rank, the number of choices and the sum of
// their weights; on request, activation norms of each expert.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace coe {

// Adds a term to a sum that is kept in two doubles: `sum` is the exact sum, rounded, and `rest` the
// difference. So a sum does not depend on the order of its terms, and parts of a corpus add up to the whole.
// Terms are rounded to multiples of 2^-64, which every float from 2^-41 up is. Sums up to 2^40 are then
// exact, because neither error term needs more than the 53 bits of a double (two-sum: Knuth, The Art of
// Computer Programming 2, 4.2.2).
void add_exactly(double& sum, double& rest, double term);

// An array of such sums.
class ExactSums {
  public:
    ExactSums() = default;
    explicit ExactSums(size_t n) : sums_(n), rests_(n) {}
    ExactSums(std::vector<double> sums, std::vector<double> rests)
        : sums_(std::move(sums)), rests_(std::move(rests)) {}

    void add(size_t i, double term) { add_exactly(sums_[i], rests_[i], term); }
    void add(const ExactSums& other);
    void clear();

    const std::vector<double>& sums() const { return sums_; }
    // Returns what rounding to double left out.
    const std::vector<double>& rests() const { return rests_; }

  private:
    std::vector<double> sums_;
    std::vector<double> rests_;
};

// The statistics of one model.
class RoutingStats {
  public:
    // top_k: the maximum that a layer chooses for a token; with_outputs: whether `add_output` will be called.
    RoutingStats(size_t n_layers, size_t n_experts, size_t top_k, bool with_outputs = false);

    // Adds one token's k choices, at most top_k, to a layer. Rank 0 is the highest weight; equal weights keep
    // their order. Both arrays are reordered. Throws std::runtime_error for an id outside the experts and for
    // a weight that is not finite.
    void add_token(size_t layer, int32_t* experts, float* weights, size_t k);

    // Adds the norm of one expert's output for a token, and that of its weighted output. Throws
    // std::runtime_error for an id outside the experts and for a norm that is not finite, and
    // std::logic_error without outputs.
    void add_output(size_t layer, int32_t expert, float norm, double weighted_norm);

    // Adds other statistics of the same sizes. Throws std::logic_error if only one of the two has outputs.
    void add(const RoutingStats& other);

    void clear();

    size_t n_layers() const { return n_layers_; }
    size_t n_experts() const { return n_experts_; }
    size_t top_k() const { return top_k_; }

    // [layer, expert, rank].
    const std::vector<int64_t>& histograms() const { return histograms_; }
    const ExactSums& weight_sum() const { return weight_sum_; }
    bool has_outputs() const { return !norm_sum_.sums().empty(); }
    // [layer, expert]; empty without outputs.
    const ExactSums& norm_sum() const { return norm_sum_; }
    const ExactSums& weighted_norm_sum() const { return weighted_norm_sum_; }

  private:
    void check_expert(int32_t expert) const;

    size_t n_layers_;
    size_t n_experts_;
    size_t top_k_;
    std::vector<int64_t> histograms_;
    ExactSums weight_sum_;
    ExactSums norm_sum_;
    ExactSums weighted_norm_sum_;
};

}  // namespace coe
