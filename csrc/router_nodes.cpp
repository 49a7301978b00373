#include "router_nodes.h"

#include <cstring>
#include <string>

namespace coe {

namespace {

// Chains of nodes are followed no further than this.
constexpr int longest_chain = 16;

struct Kind {
    const char* name;
    RouterNode node;
};

// The scaled weights are left out on purpose: a constant scale of the whole layer is no router weight.
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

// If `text` starts with `prefix`: moves it behind that.
bool skip(const char*& text, const char* prefix) {
    const size_t length = std::strlen(prefix);
    if (std::strncmp(text, prefix, length) != 0) {
        return false;
    }
    text += length;
    return true;
}

// Reads a block index; false without one.
bool read_block(const char*& text, int& block) {
    const char* begin = text;
    block = 0;
    for (; *text >= '0' && *text <= '9' && block < most_blocks; ++text) {
        block = block * 10 + (*text - '0');
    }
    return text != begin && block < most_blocks;
}

// A tensor's name, or that of the tensor which the scheduler copied: it calls copies BACKEND#NAME#NUMBER.
std::string original_name(const ggml_tensor* tensor) {
    const std::string name = tensor->name;
    const size_t first = name.find('#');
    const size_t last = name.rfind('#');
    return !is_split_copy(tensor) || first == last ? name : name.substr(first + 1, last - first - 1);
}

// The block whose routed experts' down matrices a tensor holds, or -1.
int down_matrices_block(const ggml_tensor* weights) {
    const std::string whole = original_name(weights);
    const char* name = whole.c_str();
    int block = -1;
    return skip(name, "blk.") && read_block(name, block) && std::strcmp(name, ".ffn_down_exps.weight") == 0
               ? block
               : -1;
}

// The product with experts' matrices that a node is, or that was scaled, adapted or biased to give it; null
// where it is something else, or in another split of the graph.
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

// Whether a node was computed from the product of another bank of experts.
bool is_of_second_bank(const ggml_tensor* node) {
    const ggml_tensor* product = expert_product(node);
    return product != nullptr && down_matrices_block(product->src[0]) < 0;
}

}  // namespace

RouterNodeName parse_router_node(const char* name) {
    if (!skip(name, "ffn_moe_")) {
        return {};
    }
    const char* dash = std::strchr(name, '-');
    if (dash == nullptr) {
        return {};
    }
    const auto kind_length = static_cast<size_t>(dash - name);
    for (const Kind& kind : kinds) {
        if (std::strlen(kind.name) != kind_length || std::strncmp(kind.name, name, kind_length) != 0) {
            continue;
        }
        const char* end = dash + 1;
        int block = 0;
        if (!read_block(end, block)) {
            return {};
        }
        // The reshape behind a normalisation closes the pattern that a GPU fuses into one kernel, so it is
        // the node to ask for: asking for the division would split that kernel.
        if (*end == '\0' ||
            (kind.node == RouterNode::later_weights && std::strcmp(end, " (reshaped)") == 0)) {
            return {kind.node, block};
        }
        return {};
    }
    return {};
}

RouterNodeName find_router_node(const ggml_tensor* node) {
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

bool is_split_copy(const ggml_tensor* tensor) {
    return tensor->op == GGML_OP_NONE && std::strchr(tensor->name, '#') != nullptr;
}

bool weighs_outputs(const ggml_tensor* weighted) {
    return parse_router_node(original_name(weighted->src[0]).c_str()).node == RouterNode::outputs;
}

bool is_ungated(const ggml_tensor* probs) {
    return probs->op == GGML_OP_MUL_MAT || probs->op == GGML_OP_ADD || probs->op == GGML_OP_SCALE ||
           probs->op == GGML_OP_GET_ROWS;
}

}  // namespace coe
