// What a profile counts: for each MoE layer, expert and rank, the choices and the sum of their weights; and
// for each expert, where that is asked for, how large what it put out was.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace coe {

// Adds a term to a sum that is kept in two doubles, `sum` the exact sum rounded and `rest` the difference,
// so that a sum does not depend on the order of its terms and parts of a corpus add up to the whole. Terms
// count as multiples of 2^-64, which every float from 2^-41 up is; sums up to 2^40 are exact then, for
// neither error term needs more than a double's 53 bits (two-sum: Knuth, The Art of Computer Programming
// 2, 4.2.2).
void add_exactly(double& sum, double& rest, double term);

// So many such sums.
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
    // What rounding to double left out.
    const std::vector<double>& rests() const { return rests_; }

  private:
    std::vector<double> sums_;
    std::vector<double> rests_;
};

class RoutingStats {
  public:
    // top_k: the most that any layer chooses for a token. with_outputs: whether `add_output` will be called.
    RoutingStats(size_t n_layers, size_t n_experts, size_t top_k, bool with_outputs = false);

    // Adds one token's k choices, at most top_k, to a layer. Rank 0 is the highest weight; equal weights keep
    // their order. Both arrays are reordered. Throws std::runtime_error for an id outside the experts and for
    // a weight that is no finite number.
    void add_token(size_t layer, int32_t* experts, float* weights, size_t k);

    // Adds the norm of what one of a token's experts put out, and that of what it added to the layer's sum.
    // Throws std::runtime_error for an id outside the experts and for a norm that is no finite number, and
    // std::logic_error without outputs.
    void add_output(size_t layer, int32_t expert, float norm, double weighted_norm);

    // Adds the counts of another of the same sizes. Throws std::logic_error unless both have outputs or
    // neither.
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
