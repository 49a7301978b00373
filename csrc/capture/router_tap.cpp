#include "capture/router_tap.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <utility>

#include "capture/host_bytes.h"

namespace coe {

namespace {

std::string in_block(int block) { return " in block " + std::to_string(block); }

std::vector<int> checked(std::vector<int> blocks, size_t n_experts, const std::vector<size_t>& top_k) {
    const auto possible = [&](size_t k) { return k > 0 && k <= n_experts; };
    if (blocks.empty() || n_experts > most_experts || top_k.size() != blocks.size() ||
        !std::all_of(top_k.begin(), top_k.end(), possible)) {
        throw std::invalid_argument(
            "a router tap needs MoE layers, experts, and a top-k of at most the number of experts");
    }
    for (size_t i = 0; i < blocks.size(); ++i) {
        if (blocks[i] < 0 || blocks[i] >= most_blocks || (i > 0 && blocks[i] <= blocks[i - 1])) {
            throw std::invalid_argument("MoE layers must be given as ascending block indices");
        }
    }
    return blocks;
}

void check_choices(const ggml_tensor* ids, size_t k, int block) {
    if (ids->type != GGML_TYPE_I32) {
        throw std::runtime_error("the router's choices cannot be found" + in_block(block));
    }
    if (static_cast<size_t>(ids->ne[0]) != k) {
        throw std::runtime_error("the router chooses " + std::to_string(ids->ne[0]) + " experts for a token" +
                                 in_block(block) + ", not the " + std::to_string(k) +
                                 " of the model's metadata");
    }
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

template <typename Value>
Value* RouterTap::Part<Value>::fill(size_t tokens, size_t k) {
    if (values.size() < tokens * k) {
        values.resize(tokens * k);
    }
    n_tokens = tokens;
    was_read = true;
    return values.data();
}

template <typename Value>
void RouterTap::Part<Value>::forget() {
    n_tokens = 0;
    was_read = false;
}

void RouterTap::Layer::forget_graph(Stage next) {
    stage = next;
    began_with_down = down_was_seen = weights_are_over = weights_in_input = false;
    experts.forget();
    weights.forget();
    norms.forget();
}

bool RouterTap::wants(const ggml_tensor* node, RouterNodeName name) {
    if (name.node == RouterNode::chosen_weights || name.node == RouterNode::later_weights) {
        return wants_weights(node, name);
    }
    const size_t index = layer_of(name.block);
    if (index == no_layer) {
        return false;
    }
    Layer& layer = layers_[index];
    if (begins_router(node, name)) {
        if (!layer.began_with_down || layer.weights.was_read) {
            begin_graph(index);
        }
        layer.began_with_down = false;
        return false;
    }
    switch (name.node) {
        case RouterNode::down:
            return wants_down(node, index);
        case RouterNode::outputs:
            return layer.stage == Stage::open && wants_outputs(node, layer);
        case RouterNode::weighted:
            if (layer.stage == Stage::open) {
                see_weighted(layer);
            }
            return false;
        default:
            return false;
    }
}

void RouterTap::begin_graph(size_t index) {
    count(index);
    layers_[index].stage = Stage::open;
}

// If ids are looked up in a table, this node may run before the router's first one.
bool RouterTap::wants_down(const ggml_tensor* node, size_t index) {
    Layer& layer = layers_[index];
    if (layer.stage == Stage::over) {
        layer.stage = Stage::idle;
        return false;
    }
    if (layer.stage == Stage::idle || layer.down_was_seen) {
        begin_graph(index);
        layer.began_with_down = true;
    }
    layer.down_was_seen = true;
    return !layer.experts.was_read || wants_outputs(node, layer);
}

bool RouterTap::wants_weights(const ggml_tensor* node, RouterNodeName name) {
    const size_t index = layer_of(name.block);
    const ggml_tensor* ids = chosen_experts(node);
    if (ids != nullptr && !is_choice(ids)) {
        if (index != no_layer) {
            layers_[index].has_second_bank = true;
        }
        return false;
    }
    if (index == no_layer) {
        if (complete_) {
            throw std::runtime_error("a router runs" + in_block(name.block) +
                                     ", which has no experts according to the model's metadata");
        }
        return false;
    }
    Layer& layer = layers_[index];
    if (layer.weights_are_over) {
        return false;
    }
    const auto n_chosen = ids == nullptr ? layer.top_k : static_cast<size_t>(ids->ne[0]);
    if (!complete_ && n_chosen == stats_.n_experts() && n_chosen != layer.top_k) {
        layer.forget_graph(Stage::over);  // a warm-up of the host: all experts are used, none is chosen
        return false;
    }
    return layer.stage == Stage::open && layer.weights_chain.wants(node->name, layer.weights.was_read);
}

bool RouterTap::wants_outputs(const ggml_tensor* node, const Layer& layer) const {
    return norm_reader_ && parse_router_node(node->name).node == RouterNode::outputs &&
           layer.outputs_chain.wants(node->name, layer.norms.was_read);
}

// The product depends on the last node of the weights' chain and, in most architectures, of the outputs'.
// In the others the outputs depend on the product.
void RouterTap::see_weighted(Layer& layer) {
    layer.weights_in_input = !layer.down_was_seen;
    layer.weights_are_over = true;
    if (layer.weights.was_read) {
        layer.weights_chain.learn();
    }
    if (layer.norms.was_read && !layer.weights_in_input) {
        layer.outputs_chain.learn();
    }
}

bool RouterTap::read(const ggml_tensor* node, RouterNodeName name) {
    Layer& layer = layers_[layer_of(name.block)];
    if (name.node == RouterNode::down && !layer.experts.was_read) {
        read_experts(node->src[2], name, layer);
    }
    if (name.node == RouterNode::down || name.node == RouterNode::outputs) {
        if (wants_outputs(node, layer)) {
            read_outputs(node, name, layer);
        }
    } else {
        read_weights(node, name, layer);
    }
    // If the graph ended, a second bank in another split would run with ids that were never computed.
    const bool may_end = early_end_ && name.block == blocks_.back() && !layer.has_second_bank;
    return !(may_end && is_whole(layer));
}

void RouterTap::read_weights(const ggml_tensor* node, RouterNodeName name, Layer& layer) {
    const size_t k = layer.top_k;
    const auto n_values = static_cast<size_t>(ggml_nelements(node));
    const ggml_tensor* ids = chosen_experts(node);
    if (ids != nullptr) {
        check_choices(ids, k, name.block);
    }
    if (node->type != GGML_TYPE_F32 || n_values % k != 0 || !ggml_is_contiguous(node)) {
        throw std::runtime_error("the router does not give " + std::to_string(k) + " weights for a token" +
                                 in_block(name.block));
    }
    // What the scheduler copied from another split may be overwritten once the gather has read it.
    const bool ids_are_there =
        ids != nullptr && (name.node == RouterNode::chosen_weights || !is_split_copy(ids));
    if (ids_are_there && !layer.experts.was_read) {
        read_experts(ids, name, layer);
    }
    float* weights = layer.weights.fill(n_values / k, k);
    if (n_values > 0) {
        std::memcpy(weights, host_bytes(node, device_copy_), n_values * sizeof(float));
    }
    layer.weights_chain.read_name = node->name;
}

void RouterTap::read_experts(const ggml_tensor* ids, RouterNodeName name, Layer& layer) {
    const size_t k = layer.top_k;
    check_choices(ids, k, name.block);
    const auto n_tokens = static_cast<size_t>(ids->ne[1]);
    int32_t* experts = layer.experts.fill(n_tokens, k);
    if (n_tokens == 0) {
        return;
    }
    // Rows of ids are views into a full sort, n_expert apart on most backends: read by strides.
    const char* id_bytes = host_bytes(ids, device_copy_);
    for (size_t token = 0; token < n_tokens; ++token) {
        const char* row = id_bytes + token * ids->nb[1];
        for (size_t rank = 0; rank < k; ++rank) {
            std::memcpy(&experts[token * k + rank], row + rank * ids->nb[0], sizeof(int32_t));
        }
    }
}

void RouterTap::read_outputs(const ggml_tensor* node, RouterNodeName name, Layer& layer) {
    const size_t k = layer.top_k;
    if (node->type != GGML_TYPE_F32 || static_cast<size_t>(node->ne[1]) != k ||
        node->nb[0] != sizeof(float)) {
        throw std::runtime_error("the experts' outputs are not those of the router's choices" +
                                 in_block(name.block));
    }
    norm_reader_->read(node, layer.norms.fill(static_cast<size_t>(node->ne[2]), k));
    layer.outputs_chain.read_name = node->name;
}

// Returns whether everything of the layer's graph has been read and is known to be final.
bool RouterTap::is_whole(const Layer& layer) const {
    return layer.experts.was_read && layer.weights.was_read && layer.weights_chain.is_learnt() &&
           (!norm_reader_ || (layer.norms.was_read && layer.outputs_chain.is_learnt()));
}

RouterTap::Choices RouterTap::last_choices(int block) const {
    const Layer& layer = layers_[layer_of(block)];
    const int32_t* begin = layer.experts.values.data();
    return {begin, begin + layer.experts.n_tokens * layer.top_k};
}

// Adds what was read of a finished graph. A graph that ended before its weights were known to be final, for
// example because its decode failed, is not counted.
void RouterTap::count(size_t index) {
    Layer& layer = layers_[index];
    const size_t k = layer.top_k;
    const size_t n_tokens = layer.weights.n_tokens;
    const bool was_ended = !layer.weights_are_over && !is_whole(layer);
    if (!layer.weights.was_read || was_ended) {
        layer.forget_graph(Stage::idle);
        return;
    }
    try {
        if (layer.experts.n_tokens != n_tokens) {
            throw std::runtime_error("the router's choices were not seen");
        }
        if (norm_reader_) {
            check_outputs(layer);
        }
        if (holds_) {
            hold_tokens(layer);
            layer.forget_graph(Stage::idle);
            return;
        }
        for (size_t token = 0; token < n_tokens; ++token) {
            add_token(index, &layer.experts.values[token * k], &layer.weights.values[token * k],
                      norm_reader_ ? &layer.norms.values[token * k] : nullptr);
        }
        layer.tokens += n_tokens;
    } catch (const std::runtime_error& error) {
        layer.forget_graph(Stage::idle);
        throw std::runtime_error(error.what() + in_block(blocks_[index]));
    }
    layer.forget_graph(Stage::idle);
}

void RouterTap::check_outputs(Layer& layer) {
    if (layer.norms.n_tokens != layer.weights.n_tokens) {
        throw std::runtime_error("the experts' outputs were not seen");
    }
    if (layer.norms.was_read) {
        layer.outputs_chain.learn();
    }
    // If the experts' input was weighted, the outputs contain the weights already.
    layer.outputs_are_weighted = layer.weights_in_input;
}

void RouterTap::hold_tokens(Layer& layer) {
    const auto n_values = static_cast<ptrdiff_t>(layer.weights.n_tokens * layer.top_k);
    const auto append = [n_values](auto& held, const auto& read) {
        held.insert(held.end(), read.values.begin(), read.values.begin() + n_values);
    };
    append(layer.held_experts, layer.experts);
    append(layer.held_weights, layer.weights);
    if (norm_reader_) {
        append(layer.held_norms, layer.norms);
    }
}

// Adds the choices of one token, which are reordered. `norms`: of their outputs, or null.
void RouterTap::add_token(size_t index, int32_t* experts, float* weights, const float* norms) {
    const Layer& layer = layers_[index];
    for (size_t i = 0; norms != nullptr && i < layer.top_k; ++i) {
        const auto norm = static_cast<double>(norms[i]);
        const double weighted = layer.outputs_are_weighted ? norm : static_cast<double>(weights[i]) * norm;
        stats_.add_output(index, experts[i], norms[i], weighted);
    }
    stats_.add_token(index, experts, weights, layer.top_k);
}

void RouterTap::collect() {
    for (size_t i = 0; i < layers_.size(); ++i) {
        count(i);
    }
}

void RouterTap::collect_final() {
    for (size_t i = 0; i < layers_.size(); ++i) {
        if (is_whole(layers_[i])) {
            const Stage rest = layers_[i].stage_of_rest();
            count(i);
            layers_[i].stage = rest;
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

void RouterTap::hold(bool on) {
    holds_ = on;
    for (Layer& layer : layers_) {
        layer.held_experts.clear();
        layer.held_weights.clear();
        layer.held_norms.clear();
        layer.n_held_counted = 0;
    }
}

void RouterTap::count_held(size_t n) {
    for (size_t i = 0; i < layers_.size(); ++i) {
        Layer& layer = layers_[i];
        const size_t end = std::min(n, layer.held_weights.size() / layer.top_k);
        for (size_t& at = layer.n_held_counted; at < end; ++at) {
            add_token(i, &layer.held_experts[at * layer.top_k], &layer.held_weights[at * layer.top_k],
                      norm_reader_ ? &layer.held_norms[at * layer.top_k] : nullptr);
            layer.tokens += 1;
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
    hold(holds_);
    for (Layer& layer : layers_) {
        layer.forget_graph(layer.stage_of_rest());
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
