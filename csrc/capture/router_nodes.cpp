#include "capture/router_nodes.h"

#include <cstring>

namespace coe {

namespace {

// Maximum nodes that are followed in a chain.
constexpr int longest_chain = 16;

struct Kind {
    std::string_view name;
    RouterNode node;
};

// The scaled weights are left out on purpose: a constant scale of the whole layer is not part of a router
// weight.
constexpr Kind kinds[] = {
    {"logits", RouterNode::logits},
    {"probs", RouterNode::probs},
    {"weights", RouterNode::chosen_weights},
    {"weights_softmax", RouterNode::later_weights},
    {"weights_norm", RouterNode::later_weights},
    {"down", RouterNode::outputs},
    {"down_scaled", RouterNode::outputs},
    {"down_biased", RouterNode::outputs},
    {"weighted", RouterNode::weighted},
};

// Removes `prefix` from the start of `text`; returns false if it is not there.
bool skip(std::string_view& text, std::string_view prefix) {
    if (text.substr(0, prefix.size()) != prefix) {
        return false;
    }
    text.remove_prefix(prefix.size());
    return true;
}

// Reads a block index; returns false if there is none.
bool read_block(std::string_view& text, int& block) {
    size_t n_digits = 0;
    for (block = 0; n_digits < text.size() && block < most_blocks; ++n_digits) {
        const char digit = text[n_digits];
        if (digit < '0' || digit > '9') {
            break;
        }
        block = block * 10 + (digit - '0');
    }
    text.remove_prefix(n_digits);
    return n_digits > 0 && block < most_blocks;
}

// Returns the block whose routed experts' down matrices a tensor holds, or -1.
int down_matrices_block(const ggml_tensor* weights) {
    std::string_view name = original_name(weights);
    int block = -1;
    return skip(name, "blk.") && read_block(name, block) && name == ".ffn_down_exps.weight" ? block : -1;
}

// Returns the product with experts' matrices that a node is, or is computed from by a scale, an adapter or a
// bias. Null if it is something else, or in another split of the graph.
const ggml_tensor* expert_product(const ggml_tensor* node) {
    for (int step = 0; step < longest_chain; ++step) {
        if (node->op == GGML_OP_MUL_MAT_ID) {
            return node;
        }
        if (node->op != GGML_OP_MUL && node->op != GGML_OP_ADD && node->op != GGML_OP_ADD_ID) {
            return nullptr;
        }
        node = node->src[0];
    }
    return nullptr;
}

// Returns whether a node was computed from the product of another bank of experts.
bool is_of_second_bank(const ggml_tensor* node) {
    const ggml_tensor* product = expert_product(node);
    return product != nullptr && down_matrices_block(product->src[0]) < 0;
}

}  // namespace

RouterNodeName parse_router_node(std::string_view name) noexcept {
    if (!skip(name, "ffn_moe_")) {
        return {};
    }
    const size_t dash = name.find('-');
    const std::string_view kind_name = name.substr(0, dash);
    for (const Kind& kind : kinds) {
        if (dash == std::string_view::npos || kind.name != kind_name) {
            continue;
        }
        name.remove_prefix(dash + 1);
        int block = 0;
        if (!read_block(name, block)) {
            return {};
        }
        // The reshape after a normalisation ends the pattern that a GPU fuses into one kernel, so it is the
        // node to ask for: asking for the division would split the kernel.
        if (name.empty() || (kind.node == RouterNode::later_weights && name == " (reshaped)")) {
            return {kind.node, block};
        }
        return {};
    }
    return {};
}

RouterNodeName find_router_node(const ggml_tensor* node) noexcept {
    if (node->op == GGML_OP_MUL_MAT_ID) {
        const int block = down_matrices_block(node->src[0]);
        return block < 0 ? RouterNodeName{} : RouterNodeName{RouterNode::down, block};
    }
    const RouterNodeName name = parse_router_node(node->name);
    const bool of_experts = name.node == RouterNode::outputs || name.node == RouterNode::weighted;
    return of_experts && is_of_second_bank(node) ? RouterNodeName{} : name;
}

bool begins_router(const ggml_tensor* node, RouterNodeName name) {
    return name.node == RouterNode::logits || (name.node == RouterNode::probs && is_ungated(node));
}

bool is_model_logits(const char* name) { return std::strcmp(name, "result_output") == 0; }

const ggml_tensor* chosen_experts(const ggml_tensor* weights) {
    // Softmax, sum, division and reshape all keep their input first.
    for (int step = 0; step < longest_chain && weights != nullptr; ++step) {
        if (weights->op == GGML_OP_GET_ROWS) {
            return weights->src[1];
        }
        weights = weights->src[0];
    }
    return nullptr;
}

bool is_choice(const ggml_tensor* ids) {
    while (ids->op == GGML_OP_VIEW || ids->op == GGML_OP_RESHAPE) {
        ids = ids->src[0];
    }
    if (is_split_copy(ids)) {
        return original_name(ids).rfind("ffn_moe_topk-", 0) == 0;
    }
    return ids->op != GGML_OP_CPY;
}

// Copies are named BACKEND#NAME#NUMBER, and ggml truncates long names.
std::string_view original_name(const ggml_tensor* tensor) {
    std::string_view name = tensor->name;
    if (is_split_copy(tensor)) {
        name.remove_prefix(name.find('#') + 1);
        name = name.substr(0, name.rfind('#'));
    }
    return name;
}

bool is_split_copy(const ggml_tensor* tensor) {
    return tensor->op == GGML_OP_NONE && std::strchr(tensor->name, '#') != nullptr;
}

bool is_ungated(const ggml_tensor* probs) {
    return probs->op == GGML_OP_MUL_MAT || probs->op == GGML_OP_ADD || probs->op == GGML_OP_SCALE ||
           probs->op == GGML_OP_GET_ROWS;
}

bool gathers_ungated(const ggml_tensor* chosen_weights) {
    const ggml_tensor* probs = chosen_weights->src[0];
    while (probs != nullptr && probs->op == GGML_OP_RESHAPE) {
        probs = probs->src[0];
    }
    return probs != nullptr && is_ungated(probs);
}

}  // namespace coe
