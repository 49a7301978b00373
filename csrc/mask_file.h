// A mask's file, as coe_native.ExpertMask writes it.
#pragma once

#include <cstddef>
#include <map>
#include <string>
#include <vector>

#include "router_layout.h"

namespace coe {

struct Mask {
    std::string architecture;
    std::string fingerprint;  // "unknown": of no model in particular
    size_t n_experts = 0;
    size_t keep = 0;
    std::map<int, std::vector<int>> kept;  // by block, ascending
};

// Both throw std::invalid_argument, in one line: for text that is no mask, and for a file that holds none.
Mask parse_mask(const std::string& text);
Mask read_mask(const std::string& path);

// Throws std::invalid_argument, saying what differs, unless the mask is for a model with this layout.
void check_mask(const Mask& mask, const RouterLayout& layout);

}  // namespace coe
