#include "router_tap.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <utility>

#include "ggml-backend.h"

namespace coe {

namespace {

std::string in_block(int block) { return " in block " + std::to_string(block); }

// The tensor's bytes, strides and all: where they lie if the host can see them, else copied to `copy`.
const char* host_bytes(const ggml_tensor* tensor, std::vector<char>& copy) {
    const ggml_backend_buffer_t buffer =
        tensor->view_src != nullptr ? tensor->view_src->buffer : tensor->buffer;
    if (buffer == nullptr || ggml_backend_buffer_is_host(buffer)) {
        return static_cast<const char*>(tensor->data);
    }
    const size_t n_bytes = ggml_nbytes(tensor);
    if (copy.size() < n_bytes) {
        copy.resize(n_bytes);
    }
    ggml_backend_tensor_get(tensor, copy.data(), 0, n_bytes);
    return copy.data();
}

std::vector<int> checked(std::vector<int> blocks, size_t n_experts, const std::vector<size_t>& top_k) {
    const auto possible = [&](size_t k) { return k > 0 && k <= n_experts; };
    if (blocks.empty() || n_experts > most_experts || top_k.size() != blocks.size() ||
        !std::all_of(top_k.begin(), top_k.end(), possible)) {
        throw std::invalid_argument("a router tap needs MoE layers, experts, and a top-k within the experts");
    }
    for (size_t i = 0; i < blocks.size(); ++i) {
        if (blocks[i] < 0 || blocks[i] >= most_blocks || (i > 0 && blocks[i] <= blocks[i - 1])) {
            throw std::invalid_argument("MoE layers must be given as ascending block indices");
        }
    }
    return blocks;
}

}  // namespace

RouterTap::RouterTap(std::vector<int> blocks, size_t n_experts, const std::vector<size_t>& top_k)
    : blocks_(checked(std::move(blocks), n_experts, top_k)),
      stats_(blocks_.size(), n_experts, *std::max_element(top_k.begin(), top_k.end())),
      layers_(blocks_.size()) {
    layer_index_.assign(static_cast<size_t>(blocks_.back()) + 1, no_layer);
    for (size_t i = 0; i < blocks_.size(); ++i) {
        layer_index_[static_cast<size_t>(blocks_[i])] = i;
        layers_[i].top_k = top_k[i];
    }
}

size_t RouterTap::layer_of(int block) const {
    const auto index = static_cast<size_t>(block);
    return index < layer_index_.size() ? layer_index_[index] : no_layer;
}

bool RouterTap::wants(const ggml_tensor* node, RouterNodeName name) {
    const bool starts_chain = name.node == RouterNode::chosen_weights;
    const size_t index = layer_of(name.block);
    if (name.node == RouterNode::outputs && index != no_layer && layers_[index].unconfirmed > 0) {
        learn(layers_[index]);
    }
    if (!starts_chain && name.node != RouterNode::later_weights) {
        return false;
    }
    const ggml_tensor* ids = chosen_experts(node);
    if (ids != nullptr && !is_choice(ids)) {
        return false;
    }
    if (index == no_layer) {
        if (complete_) {
            throw std::runtime_error("a router runs" + in_block(name.block) +
                                     ", where the model's header has none");
        }
        return false;
    }
    if (starts_chain) {
        confirm(index);  // a new graph has begun: what was read in the one before was final
    }
    const Layer& layer = layers_[index];
    const auto n_chosen = ids == nullptr ? layer.top_k : static_cast<size_t>(ids->ne[0]);
    if (!complete_ && n_chosen == stats_.n_experts() && n_chosen != layer.top_k) {
        return false;  // a host warms up: all experts are used, and nothing is chosen
    }
    if (layer.final_name.empty() || layer.final_name == node->name) {
        return true;
    }
    if (layer.unconfirmed > 0) {
        throw std::runtime_error(std::string("the router's graph has changed: ") + node->name + " follows " +
                                 layer.final_name);
    }
    return false;
}

bool RouterTap::read(const ggml_tensor* node, RouterNodeName name) {
    Layer& layer = layers_[layer_of(name.block)];
    const ggml_tensor* ids = chosen_experts(node);
    const size_t k = layer.top_k;
    if (ids == nullptr || ids->type != GGML_TYPE_I32 || node->type != GGML_TYPE_F32) {
        throw std::runtime_error("the router's choices cannot be found" + in_block(name.block));
    }
    const auto n_tokens = static_cast<size_t>(ids->ne[1]);
    if (static_cast<size_t>(ids->ne[0]) != k || static_cast<size_t>(ggml_nelements(node)) != k * n_tokens ||
        !ggml_is_contiguous(node)) {
        throw std::runtime_error("the router chooses " + std::to_string(ids->ne[0]) + " experts for a token" +
                                 in_block(name.block) + ", not the " + std::to_string(k) +
                                 " of the model's metadata");
    }
    if (layer.experts.size() < n_tokens * k) {
        layer.experts.resize(n_tokens * k);
        layer.weights.resize(n_tokens * k);
    }
    // Rows of ids are views into a full sort, n_expert apart on most backends: read by strides.
    const char* id_bytes = host_bytes(ids, device_copy_);
    for (size_t token = 0; token < n_tokens; ++token) {
        const char* row = id_bytes + token * ids->nb[1];
        for (size_t rank = 0; rank < k; ++rank) {
            std::memcpy(&layer.experts[token * k + rank], row + rank * ids->nb[0], sizeof(int32_t));
        }
    }
    if (n_tokens > 0) {
        std::memcpy(layer.weights.data(), host_bytes(node, device_copy_), n_tokens * k * sizeof(float));
    }
    layer.unconfirmed = n_tokens;
    if (layer.final_name.empty()) {
        layer.read_name = node->name;
        return true;
    }
    return !(early_end_ && name.block == blocks_.back());
}

RouterTap::Choices RouterTap::last_choices(int block) const {
    const Layer& layer = layers_[layer_of(block)];
    const int32_t* begin = layer.experts.data();
    return {begin, begin + layer.unconfirmed * layer.top_k};
}

void RouterTap::learn(Layer& layer) {
    if (layer.final_name.empty()) {
        layer.final_name = layer.read_name;
    }
}

void RouterTap::confirm(size_t index) {
    Layer& layer = layers_[index];
    if (layer.unconfirmed > 0) {
        learn(layer);
    }
    const size_t k = layer.top_k;
    const size_t n_tokens = std::exchange(layer.unconfirmed, 0);
    try {
        for (size_t token = 0; token < n_tokens; ++token) {
            stats_.add_token(index, &layer.experts[token * k], &layer.weights[token * k], k);
        }
    } catch (const std::runtime_error& error) {
        throw std::runtime_error(error.what() + in_block(blocks_[index]));
    }
    layer.tokens += n_tokens;
}

void RouterTap::collect() {
    for (size_t i = 0; i < layers_.size(); ++i) {
        confirm(i);
    }
}

void RouterTap::collect_final() {
    for (size_t i = 0; i < layers_.size(); ++i) {
        if (!layers_[i].final_name.empty()) {
            confirm(i);
        }
    }
}

void RouterTap::begin_batch() {
    collect();
    for (Layer& layer : layers_) {
        layer.tokens_before_batch = layer.tokens;
    }
}

void RouterTap::end_batch(size_t n_tokens) {
    collect();
    for (size_t i = 0; i < layers_.size(); ++i) {
        const uint64_t seen = layers_[i].tokens - layers_[i].tokens_before_batch;
        if (seen != n_tokens) {
            throw std::runtime_error("the router saw " + std::to_string(seen) + " of " +
                                     std::to_string(n_tokens) + " tokens" + in_block(blocks_[i]));
        }
    }
}

std::vector<uint64_t> RouterTap::tokens_seen() const {
    std::vector<uint64_t> seen;
    for (const Layer& layer : layers_) {
        seen.push_back(layer.tokens);
    }
    return seen;
}

void RouterTap::clear_counts() {
    stats_.clear();
    for (Layer& layer : layers_) {
        layer.tokens = 0;
    }
}

void RouterTap::discard() {
    clear_counts();
    for (Layer& layer : layers_) {
        layer.unconfirmed = 0;
    }
}

void RouterTap::clear() {
    discard();
    for (Layer& layer : layers_) {
        layer.final_name.clear();
    }
}

}  // namespace coe
