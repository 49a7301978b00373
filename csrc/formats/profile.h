// A routing profile: what the routers of one model chose over a corpus.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "capture/routing_stats.h"
#include "formats/corpus_record.h"
#include "model/router_layout.h"

namespace coe {

// Activation norms of the experts' outputs, [layer, expert].
struct OutputSums {
    ExactSums norm_sum;
    ExactSums weighted_norm_sum;
};

struct Profile {
    std::string architecture = "unknown";
    std::string model_name;
    std::string fingerprint = "unknown";
    std::vector<int> blocks;  // block index of each layer, ascending
    size_t n_experts = 0;
    size_t n_ranks = 0;
    size_t n_chosen = 0;  // where ranks are not known: the most experts that a layer chooses; else 0
    size_t n_groups = 1;
    size_t n_groups_used = 1;
    uint64_t n_tokens = 0;
    std::vector<uint64_t> layer_tokens;  // tokens that each layer has seen
    bool has_weights = true;
    std::vector<int64_t> histograms;  // [layer, expert, rank]
    ExactSums weight_sum;             // the same
    std::optional<OutputSums> outputs;
    std::vector<CorpusRecord> corpora;

    bool has_ranks() const { return n_chosen == 0; }
    size_t top_k() const { return has_ranks() ? n_ranks : n_chosen; }
    // Whether every layer has seen every token.
    bool is_whole() const;
    // Experts that each layer chose for a token; 0 where it has seen none.
    std::vector<int64_t> layer_top_k() const;

    // Throws std::invalid_argument, saying what is wrong, for counts that no run can have.
    void check() const;
    // Throws std::invalid_argument, saying what differs, unless the other one is of the same model and counts
    // the same.
    void check_addable(const Profile& other) const;
    // Adds another one. Throws as check_addable, and where documents would count twice.
    void add(const Profile& other);

  private:
    void check_sizes() const;
    void check_counts() const;
    void check_totals() const;
    void check_outputs() const;
};

// What has been counted in a context. `tokens`: that each layer has seen.
Profile make_profile(const RouterLayout& layout, const RoutingStats& stats,
                     const std::vector<uint64_t>& tokens);

}  // namespace coe
