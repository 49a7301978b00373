#include "model/router_shape.h"

#include <algorithm>
#include <functional>
#include <stdexcept>
#include <string>

namespace coe {

void RouterShape::check_groups() const {
    const bool is_possible = n_groups == 1 ? n_groups_used == 1
                                           : n_groups > 1 && n_experts % n_groups == 0 && n_groups_used > 0 &&
                                                 n_groups_used < n_groups;
    if (!is_possible) {
        throw std::invalid_argument("chooses " + std::to_string(n_groups_used) + " of " +
                                    std::to_string(n_groups) + " groups among " + std::to_string(n_experts) +
                                    " experts; the file is damaged");
    }
}

void RouterShape::check_keep(int64_t keep) const {
    const auto to_int = [](size_t number) { return static_cast<int64_t>(number); };
    const std::string not_so_many = std::to_string(n_experts) + ", not " + std::to_string(keep);
    if (n_groups == 1) {
        if (keep < to_int(top_k) || keep > to_int(n_experts)) {
            throw std::invalid_argument("keep must be from " + std::to_string(top_k) +
                                        " (experts that a token needs) to " + not_so_many);
        }
        return;
    }
    // llama.cpp scores a group by its two best experts, and chooses within the best groups alone.
    const size_t in_each = std::max(size_t{2}, (top_k + n_groups_used - 1) / n_groups_used);
    const size_t least = in_each * n_groups;
    if (keep % to_int(n_groups) != 0 || keep < to_int(least) || keep > to_int(n_experts)) {
        throw std::invalid_argument("keep must be a multiple of " + std::to_string(n_groups) +
                                    ", the number of expert groups, from " + std::to_string(least) +
                                    " (a group needs " + std::to_string(in_each) + ") to " + not_so_many);
    }
}

bool RouterShape::is_even(const std::vector<int>& kept) const {
    std::vector<size_t> in_group(n_groups);
    for (const int expert : kept) {
        in_group[static_cast<size_t>(expert) / (n_experts / n_groups)] += 1;
    }
    return std::adjacent_find(in_group.begin(), in_group.end(), std::not_equal_to<>()) == in_group.end();
}

}  // namespace coe
