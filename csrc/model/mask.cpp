#include "model/mask.h"

#include <algorithm>
#include <functional>
#include <stdexcept>

#include "base/limits.h"

namespace coe {

namespace {

const char* const unknown = "unknown";

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument(what); }

[[noreturn]] void refuse_model(const std::string& what) {
    refuse("was made for another model: its " + what + "; profile this model and make its own mask");
}

std::string listed(const std::vector<int>& numbers) {
    std::string text;
    for (const int number : numbers) {
        text += (text.empty() ? "[" : ", ") + std::to_string(number);
    }
    return text.empty() ? "[]" : text + "]";
}

}  // namespace

void Mask::check() const {
    if (keep == 0 || keep > n_experts || n_experts > static_cast<size_t>(most_experts) || kept.empty()) {
        refuse("a mask cannot keep " + std::to_string(keep) + " of " + std::to_string(n_experts) +
               " experts in " + std::to_string(kept.size()) + " blocks");
    }
    for (const auto& [block, experts] : kept) {
        const std::string in_block = " in block " + std::to_string(block);
        if (block < 0 || block >= most_blocks) {
            refuse(std::to_string(block) + " is not a block index");
        }
        if (experts.size() != keep ||
            !std::is_sorted(experts.begin(), experts.end(), std::less_equal<int>())) {
            refuse("must keep " + std::to_string(keep) + " different experts" + in_block + ", ascending");
        }
        if (experts.front() < 0 || static_cast<size_t>(experts.back()) >= n_experts) {
            refuse("keeps an expert outside 0 to " + std::to_string(n_experts - 1) + in_block);
        }
    }
}

void Mask::check_model(const RouterLayout& layout) const {
    const bool is_tied = fingerprint != unknown;
    if (is_tied && layout.fingerprint != unknown && architecture != layout.architecture) {
        refuse_model("architecture differs (" + architecture + ", not " + layout.architecture + ")");
    }
    if (!is_tied && architecture != unknown) {
        refuse_model("architecture is " + architecture + ", but it names no model");
    }
    if (n_experts != layout.shape.n_experts) {
        refuse_model("number of experts differs (" + std::to_string(n_experts) + ", not " +
                     std::to_string(layout.shape.n_experts) + ")");
    }
    std::vector<int> blocks;
    for (const auto& layer : kept) {
        blocks.push_back(layer.first);
    }
    if (blocks != layout.blocks) {
        refuse_model("list of MoE layers differs (" + listed(blocks) + ", not " + listed(layout.blocks) +
                     ")");
    }
    if (is_tied && layout.fingerprint != unknown && !layout.has_fingerprint(fingerprint)) {
        refuse_model("routers have other weights");
    }
    const size_t top_k = *std::max_element(layout.top_k.begin(), layout.top_k.end());
    if (keep < top_k) {
        refuse("keeps " + std::to_string(keep) + " experts, but a token needs " + std::to_string(top_k));
    }
}

void Mask::check_cut(const RouterLayout& layout) const {
    check_model(layout);
    layout.check_keep(static_cast<int64_t>(keep));
    std::vector<int> uneven;
    for (const auto& [block, experts] : kept) {
        if (!layout.shape.is_even(experts)) {
            uneven.push_back(block);
        }
    }
    if (!uneven.empty()) {
        refuse("keeps unlike numbers of the " + std::to_string(layout.shape.n_groups) +
               " groups of experts in blocks " + listed(uneven) +
               ", which the model cannot be cut to; make a mask from a profile of this model");
    }
}

}  // namespace coe
