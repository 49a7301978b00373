// The one place that knows what llama.cpp calls the nodes of a router in its graph.
#pragma once

#include "ggml.h"

namespace coe {

// No model has more blocks or experts; what claims to is refused before memory is sized by it.
constexpr int most_blocks = 1 << 16;
constexpr int most_experts = 1 << 16;

enum class RouterNode {
    none,
    logits,          // [n_expert, n_tokens], before any gating function
    probs,           // [n_expert, n_tokens], what selects, before a selection bias is added
    chosen_weights,  // first node of the chain of a token's k weights
    later_weights,   // a later one of that chain: after a softmax over k, or normalised
    // What the experts put out, [n_embd, k, n_tokens], then scaled, then with their bias; the width is
    // another where experts work on a latent state. The chain of the weights is over by then. CUDA fuses what
    // follows, the product with the weights and the sum over experts; and the scale with it, which a stop
    // behind it undoes.
    outputs,
    weighted,  // times the weights: the experts' outputs, or, before them, their input
};

struct RouterNodeName {
    RouterNode node = RouterNode::none;
    int block = -1;
};

// Reads "ffn_moe_logits-12" and its like. Views of a node that is wanted itself are not router nodes.
RouterNodeName parse_router_node(const char* name);

// Whether a node is the model's logits. Encoders' graphs have none.
bool is_model_logits(const char* name);

// The ids ([k, n_tokens], int32, rows n_expert apart on most backends) that gave a node of the weights'
// chain, or null where the chain does not start with a gather.
const ggml_tensor* chosen_experts(const ggml_tensor* weights);

// Whether ids were chosen by a router's scores, or looked up in a table by token (DeepSeek 4's first layers).
// A second bank of experts in a layer (GroveMoE) has its ids computed from the first's and cast: no choice.
bool is_choice(const ggml_tensor* ids);

// Whether a node of kind `probs` holds scores that no gating function has touched: softmax over the k chosen
// logits comes after the selection, and llama.cpp gives the logits both names, the last one for good.
bool is_ungated(const ggml_tensor* probs);

}  // namespace coe
