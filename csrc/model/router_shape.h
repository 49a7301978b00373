// How a model's routers choose, and how many experts of a layer may be dropped.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace coe {

// For each token the router chooses `top_k` of `n_experts`. With more than one group (DeepSeek-V3), experts
// lie in groups of neighbours, and only those of the best `n_groups_used` groups are candidates.
struct RouterShape {
    size_t n_experts = 0;
    size_t top_k = 0;  // the largest of all layers
    size_t n_groups = 1;
    size_t n_groups_used = 1;

    // Throws std::invalid_argument unless llama.cpp accepts the groups: equal in size, and fewer used than
    // there are.
    void check_groups() const;
    // Throws std::invalid_argument, saying what is possible, unless llama.cpp can run `keep` experts a layer.
    void check_keep(int64_t keep) const;
    // Whether every group keeps the same number of these experts.
    bool is_even(const std::vector<int>& kept) const;
};

}  // namespace coe
