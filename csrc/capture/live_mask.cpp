#include "capture/live_mask.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>

#include "capture/host_bytes.h"
#include "ggml-backend.h"

namespace coe {

void LiveMask::set(const std::vector<int>& blocks, const std::vector<std::vector<int>>& kept,
                   size_t n_experts) {
    if (blocks.size() != kept.size()) {
        throw std::invalid_argument("a live mask needs one list of kept experts for each block");
    }
    if (n_experts > most_experts) {
        throw std::invalid_argument("a live mask cannot hold " + std::to_string(n_experts) + " experts");
    }
    std::vector<std::vector<size_t>> dropped;
    for (size_t i = 0; i < blocks.size(); ++i) {
        if (blocks[i] < 0 || blocks[i] >= most_blocks || kept[i].empty()) {
            throw std::invalid_argument("a live mask needs block indices, and kept experts for each");
        }
        const auto block = static_cast<size_t>(blocks[i]);
        if (dropped.size() <= block) {
            dropped.resize(block + 1);
        }
        std::vector<bool> keep(n_experts, false);
        for (const int expert : kept[i]) {
            if (expert < 0 || static_cast<size_t>(expert) >= n_experts) {
                throw std::invalid_argument("a live mask keeps expert " + std::to_string(expert) + " of " +
                                            std::to_string(n_experts));
            }
            if (keep[static_cast<size_t>(expert)]) {
                throw std::invalid_argument("a live mask keeps expert " + std::to_string(expert) + " twice");
            }
            keep[static_cast<size_t>(expert)] = true;
        }
        for (size_t expert = 0; expert < n_experts; ++expert) {
            if (!keep[expert]) {
                dropped[block].push_back(expert);
            }
        }
    }
    n_experts_ = n_experts;
    applications_.assign(dropped.size(), 0);
    dropped_ = std::move(dropped);
}

const std::vector<size_t>* LiveMask::dropped_in(int block) const {
    const auto index = static_cast<size_t>(block);
    return index < dropped_.size() && !dropped_[index].empty() ? &dropped_[index] : nullptr;
}

bool LiveMask::wants(const ggml_tensor* node, RouterNodeName name) const {
    const std::vector<size_t>* dropped = dropped_in(name.block);
    if (dropped == nullptr) {
        return false;
    }
    // A softmax over the chosen scores gives minus infinity the weight zero.
    const bool uses_dropped = name.node == RouterNode::chosen_weights &&
                              static_cast<size_t>(node->ne[1]) > n_experts_ - dropped->size() &&
                              !gathers_ungated(node);
    return name.node == RouterNode::logits || name.node == RouterNode::probs || uses_dropped;
}

void LiveMask::apply(ggml_tensor* node, RouterNodeName name) {
    const bool of_scores = name.node != RouterNode::chosen_weights;
    if (node->type != GGML_TYPE_F32 || !ggml_is_contiguous(node) ||
        (of_scores && static_cast<size_t>(node->ne[0]) != n_experts_)) {
        throw std::runtime_error(std::string("cannot mask the router at ") + node->name +
                                 ": it is not a row of one number for each expert");
    }
    const auto n_values = static_cast<size_t>(ggml_nelements(node));
    const bool on_host = lies_in_host_memory(node);
    auto* values = static_cast<float*>(node->data);
    if (!on_host) {
        device_copy_.resize(std::max(device_copy_.size(), n_values));
        values = device_copy_.data();
        ggml_backend_tensor_get(node, values, 0, n_values * sizeof(float));
    }
    if (of_scores) {
        write_minus_infinity(values, n_values, name.block);
    } else {
        std::replace_if(values, values + n_values, [](float weight) { return !std::isfinite(weight); }, 0.0f);
    }
    if (!on_host) {
        ggml_backend_tensor_set(node, values, 0, n_values * sizeof(float));
    }
    if (begins_router(node, name)) {
        applications_[static_cast<size_t>(name.block)] += 1;
    }
}

void LiveMask::write_minus_infinity(float* scores, size_t n_values, int block) const {
    for (size_t row = 0; row < n_values; row += n_experts_) {
        for (const size_t expert : *dropped_in(block)) {
            scores[row + expert] = -std::numeric_limits<float>::infinity();
        }
    }
}

void LiveMask::check(int block, const int32_t* begin, const int32_t* end) const {
    const std::vector<size_t>* dropped = dropped_in(block);
    if (dropped == nullptr) {
        return;
    }
    const auto is_dropped = [&](int32_t expert) {
        return std::binary_search(dropped->begin(), dropped->end(), static_cast<size_t>(expert));
    };
    const int32_t* found = std::find_if(begin, end, is_dropped);
    if (found != end) {
        throw std::runtime_error("the router of block " + std::to_string(block) + " chose expert " +
                                 std::to_string(*found) +
                                 ", which the mask drops; the mask has no effect there");
    }
}

std::vector<uint64_t> LiveMask::take_applications(const std::vector<int>& blocks) {
    std::vector<uint64_t> taken;
    for (const int block : blocks) {
        uint64_t& count = applications_.at(static_cast<size_t>(block));
        taken.push_back(count);
        count = 0;
    }
    return taken;
}

}  // namespace coe
