// An expert mask: which experts stay in each block.
#pragma once

#include <cstddef>
#include <map>
#include <string>
#include <vector>

#include "model/router_layout.h"

namespace coe {

struct Mask {
    std::string architecture;
    std::string fingerprint;  // "unknown": of no model in particular
    size_t n_experts = 0;
    size_t keep = 0;
    std::map<int, std::vector<int>> kept;  // by block, ascending

    // Throws std::invalid_argument, saying what is wrong, for what no model can have.
    void check() const;
    // Throws std::invalid_argument, saying what differs, unless the mask is for a model with this layout.
    void check_model(const RouterLayout& layout) const;
    // The same, and unless that model can be cut to what the mask keeps.
    void check_cut(const RouterLayout& layout) const;
};

}  // namespace coe
