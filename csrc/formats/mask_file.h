// A mask's file: JSON, as docs/formats.md specifies it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "model/mask.h"

namespace coe {

constexpr const char* mask_format = "coe-native.expert-mask";
constexpr int mask_version = 1;
constexpr size_t most_mask_bytes = 16 << 20;  // 256 layers of 4096 experts have about 6 MB

// One expert that replaced another.
struct Swap {
    int64_t layer;
    int64_t incoming;
    int64_t outgoing;
    int64_t stage;  // the pass: 2 structural, 3 reasoning
    double incoming_score;
    double outgoing_score;
};

struct MaskFile {
    Mask mask;
    std::vector<Swap> swaps;
    std::vector<std::pair<int64_t, int64_t>> unplaced;  // block and expert
    std::string provenance = "{}";                      // a JSON object
};

// Both throw std::invalid_argument, in one line: for text that is not a mask, and for a file that holds none.
MaskFile parse_mask(const std::string& text);
MaskFile read_mask(const std::string& path);

}  // namespace coe
