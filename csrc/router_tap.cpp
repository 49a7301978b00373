#include "router_tap.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <utility>

#include "host_bytes.h"

namespace coe {

namespace {

std::string in_block(int block) { return " in block " + std::to_string(block); }

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

void RouterTap::watch_outputs(int32_t n_threads) {
    norm_reader_.emplace(n_threads);
    stats_ = RoutingStats(stats_.n_layers(), stats_.n_experts(), stats_.top_k(), true);
}

bool RouterTap::Chain::wants(const char* name, bool was_read) const {
    if (final_name.empty() || final_name == name) {
        return true;
    }
    if (was_read) {
        throw std::runtime_error(std::string("the router's graph has changed: ") + name + " follows " +
                                 final_name);
    }
    return false;
}

void RouterTap::Chain::learn() {
    if (final_name.empty()) {
        final_name = read_name;
    }
}

bool RouterTap::wants(const ggml_tensor* node, RouterNodeName name) {
    const size_t index = layer_of(name.block);
    Layer* layer = index == no_layer ? nullptr : &layers_[index];
    switch (name.node) {
        case RouterNode::chosen_weights:
        case RouterNode::later_weights:
            return wants_weights(node, name, layer);
        case RouterNode::outputs:
            if (layer != nullptr && layer->unconfirmed > 0) {
                layer->weights_chain.learn();
            }
            return layer != nullptr && norm_reader_ && layer->unconfirmed > 0 && !layer->outputs_over &&
                   layer->outputs_chain.wants(node->name, layer->outputs_read > 0);
        case RouterNode::weighted:
            if (layer != nullptr && norm_reader_ && layer->outputs_read > 0) {
                layer->outputs_over = true;
            } else if (layer != nullptr && norm_reader_) {
                layer->weights_in_input = true;
            }
            return false;
        default:
            return false;
    }
}

bool RouterTap::wants_weights(const ggml_tensor* node, RouterNodeName name, Layer* layer) {
    const ggml_tensor* ids = chosen_experts(node);
    if (ids != nullptr && !is_choice(ids)) {
        if (layer != nullptr) {
            layer->second_bank = true;
        }
        return false;
    }
    if (layer == nullptr) {
        if (complete_) {
            throw std::runtime_error("a router runs" + in_block(name.block) +
                                     ", where the model's header has none");
        }
        return false;
    }
    if (name.node == RouterNode::chosen_weights) {
        confirm(layer_of(name.block));  // a new graph has begun: what was read in the one before was final
    }
    const auto n_chosen = ids == nullptr ? layer->top_k : static_cast<size_t>(ids->ne[0]);
    if (!complete_ && n_chosen == stats_.n_experts() && n_chosen != layer->top_k) {
        return false;  // a host warms up: all experts are used, and nothing is chosen
    }
    return layer->weights_chain.wants(node->name, layer->unconfirmed > 0);
}

bool RouterTap::read(const ggml_tensor* node, RouterNodeName name) {
    Layer& layer = layers_[layer_of(name.block)];
    const bool of_outputs = name.node == RouterNode::outputs;
    if (of_outputs) {
        read_outputs(node, name, layer);
    } else {
        read_weights(node, name, layer);
    }
    Chain& chain = of_outputs ? layer.outputs_chain : layer.weights_chain;
    chain.read_name = node->name;
    const bool was_last = name.block == blocks_.back() && of_outputs == norm_reader_.has_value();
    // A second bank that runs in another split of the graph would do so with ids that have not been computed.
    const bool may_end = !(of_outputs && layer.second_bank);
    return !(early_end_ && was_last && may_end && !chain.final_name.empty());
}

void RouterTap::read_weights(const ggml_tensor* node, RouterNodeName name, Layer& layer) {
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
}

void RouterTap::read_outputs(const ggml_tensor* node, RouterNodeName name, Layer& layer) {
    const size_t k = layer.top_k;
    if (node->type != GGML_TYPE_F32 || static_cast<size_t>(node->ne[1]) != k ||
        static_cast<size_t>(node->ne[2]) != layer.unconfirmed || node->nb[0] != sizeof(float)) {
        throw std::runtime_error("the experts' outputs are not those of the router's choices" +
                                 in_block(name.block));
    }
    layer.norms.resize(std::max(layer.norms.size(), layer.unconfirmed * k));
    norm_reader_->read(node, layer.norms.data());
    layer.outputs_read = layer.unconfirmed;
}

RouterTap::Choices RouterTap::last_choices(int block) const {
    const Layer& layer = layers_[layer_of(block)];
    const int32_t* begin = layer.experts.data();
    return {begin, begin + layer.unconfirmed * layer.top_k};
}

void RouterTap::confirm(size_t index) {
    Layer& layer = layers_[index];
    if (layer.unconfirmed > 0) {
        layer.weights_chain.learn();
    }
    const size_t k = layer.top_k;
    try {
        if (norm_reader_) {
            add_outputs(index);
        }
        const size_t n_tokens = std::exchange(layer.unconfirmed, 0);
        for (size_t token = 0; token < n_tokens; ++token) {
            stats_.add_token(index, &layer.experts[token * k], &layer.weights[token * k], k);
        }
        layer.tokens += n_tokens;
    } catch (const std::runtime_error& error) {
        layer.unconfirmed = 0;
        throw std::runtime_error(error.what() + in_block(blocks_[index]));
    }
}

// Before the choices are put in order of their weights.
void RouterTap::add_outputs(size_t index) {
    Layer& layer = layers_[index];
    const size_t n_read = std::exchange(layer.outputs_read, 0);
    const bool weighted = std::exchange(layer.weights_in_input, false);
    layer.outputs_over = false;
    if (n_read != layer.unconfirmed) {
        throw std::runtime_error("what the experts put out was not seen");
    }
    if (n_read > 0) {
        layer.outputs_chain.learn();
    }
    // Elsewhere a weight says how much of an output is added to the layer's; here it is in the output.
    for (size_t i = 0; i < n_read * layer.top_k; ++i) {
        const auto norm = static_cast<double>(layer.norms[i]);
        const double weighted_norm = weighted ? norm : static_cast<double>(layer.weights[i]) * norm;
        stats_.add_output(index, layer.experts[i], layer.norms[i], weighted_norm);
    }
}

void RouterTap::collect() {
    for (size_t i = 0; i < layers_.size(); ++i) {
        confirm(i);
    }
}

void RouterTap::collect_final() {
    for (size_t i = 0; i < layers_.size(); ++i) {
        if (!layers_[i].weights_chain.final_name.empty()) {
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
        layer.outputs_read = 0;
        layer.outputs_over = layer.weights_in_input = false;
    }
}

void RouterTap::clear() {
    discard();
    for (Layer& layer : layers_) {
        layer.weights_chain.final_name.clear();
        layer.outputs_chain.final_name.clear();
    }
}

}  // namespace coe
