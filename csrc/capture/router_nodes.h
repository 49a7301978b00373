// The one place that knows what llama.cpp calls the nodes of a router in its graph.
#pragma once

#include <string_view>

#include "base/limits.h"
#include "ggml.h"

namespace coe {

enum class RouterNode {
    none,
    logits,          // [n_expert, n_tokens], before any gating function
    probs,           // [n_expert, n_tokens], what selects, before a selection bias is added
    chosen_weights,  // first node of the chain of a token's k weights, [1, k, n_tokens]
    later_weights,   // a later node of that chain: after a softmax over k, or normalised
    down,            // the product with the down matrices, which reads the ids last; it may have another name
    outputs,         // the experts' outputs after that: scaled, or with their bias, [n_embd, k, n_tokens]
    weighted,        // the outputs, or before them the experts' input, times the weights
};

struct RouterNodeName {
    RouterNode node = RouterNode::none;
    int block = -1;
};

// Reads "ffn_moe_logits-12" and its like. Views of a node that is wanted itself are not router nodes.
RouterNodeName parse_router_node(std::string_view name) noexcept;

// What a node is: by its name, and the product with the down matrices by the weights it reads, since scales
// and adapters take the name from it. Nodes of a second bank of experts (GroveMoE) that can be told from the
// first are none.
RouterNodeName find_router_node(const ggml_tensor* node) noexcept;

// Whether a node comes before everything else that a block's router computes in a graph.
bool begins_router(const ggml_tensor* node, RouterNodeName name);

// Whether a node is the model's logits. Encoders' graphs have none.
bool is_model_logits(const char* name);

// The ids ([k, n_tokens], int32, rows n_expert apart on most backends) that gave a node of the weights'
// chain, or null where the chain does not start with a gather, or does so in another split of the graph.
const ggml_tensor* chosen_experts(const ggml_tensor* weights);

// Whether ids were chosen by a router's scores, or looked up in a table by token (DeepSeek 4's first layers).
// A second bank of experts in a layer (GroveMoE) has its ids computed from the first's and cast: no choice.
bool is_choice(const ggml_tensor* ids);

// Whether a tensor is the copy that the scheduler made of another split's tensor. Its memory is reused once
// the last node of its split that reads it has run.
bool is_split_copy(const ggml_tensor* tensor);

// Whether a node of kind `probs` holds scores that no gating function has touched: softmax over the k chosen
// logits comes after the selection, and llama.cpp gives the logits both names, the last one for good.
bool is_ungated(const ggml_tensor* probs);

// Whether the first node of the weights' chain takes its values from such scores.
bool gathers_ungated(const ggml_tensor* chosen_weights);

}  // namespace coe
