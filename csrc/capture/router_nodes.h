// Names of a router's nodes in llama.cpp's graphs. No other file knows them.
#pragma once

#include <string_view>

#include "base/limits.h"
#include "ggml.h"

namespace coe {

// Kinds of nodes.
enum class RouterNode {
    none,
    logits,          // [n_expert, n_tokens], before any gating function
    probs,           // [n_expert, n_tokens], scores for the selection, before a selection bias is added
    chosen_weights,  // first node of the chain of a token's k weights, [1, k, n_tokens]
    later_weights,   // a later node of that chain: after a softmax over k, or normalised
    down,            // the product with the down matrices, the last reader of the ids; its name may vary
    outputs,         // the experts' outputs after that: scaled, or with their bias, [n_embd, k, n_tokens]
    weighted,        // the outputs, or the experts' input before them, times the weights
};

// A kind of node and its block.
struct RouterNodeName {
    RouterNode node = RouterNode::none;
    int block = -1;
};

// Parses a name such as "ffn_moe_logits-12". Views of a wanted node are not router nodes.
RouterNodeName parse_router_node(std::string_view name) noexcept;

// Returns what a node is, by its name. The product with the down matrices is found by the weights that it
// reads, because scales and adapters take its name. Nodes that are known to be of a second bank of experts
// (GroveMoE) are `none`.
RouterNodeName find_router_node(const ggml_tensor* node) noexcept;

// Returns whether a node is the first one that a block's router computes in a graph.
bool begins_router(const ggml_tensor* node, RouterNodeName name);

// Returns whether a node is the model's logits. Encoders have none.
bool is_model_logits(const char* name);

// Returns the ids from which a node of the weights' chain was gathered: int32 [k, n_tokens], rows n_expert
// apart on most backends. Null if the chain does not start with a gather, or starts in another split of the
// graph.
const ggml_tensor* chosen_experts(const ggml_tensor* weights);

// Returns whether ids were chosen by a router's scores, or looked up in a table by token (DeepSeek 4's first
// layers). The ids of a second bank of experts in a layer (GroveMoE) are not chosen but computed from the
// first.
bool is_choice(const ggml_tensor* ids);

// Returns the name of a tensor, or of the tensor that it is the scheduler's copy of.
std::string_view original_name(const ggml_tensor* tensor);

// Returns whether a tensor is the scheduler's copy of a tensor of another split. Its memory is reused after
// its last reader in the split has run.
bool is_split_copy(const ggml_tensor* tensor);

// Returns whether a node of kind `probs` holds raw logits. If softmax comes after the selection, over the k
// chosen logits, llama.cpp names the logits `logits` first and then `probs`.
bool is_ungated(const ggml_tensor* probs);

// Returns whether the first node of the weights' chain takes its values from raw logits.
bool gathers_ungated(const ggml_tensor* chosen_weights);

}  // namespace coe
