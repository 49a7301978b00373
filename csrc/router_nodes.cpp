#include "router_nodes.h"

#include <cstring>

namespace coe {

namespace {

constexpr char prefix[] = "ffn_moe_";
constexpr size_t prefix_length = sizeof(prefix) - 1;

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

}  // namespace

RouterNodeName parse_router_node(const char* name) {
    if (std::strncmp(name, prefix, prefix_length) != 0) {
        return {};
    }
    const char* kind_name = name + prefix_length;
    const char* dash = std::strchr(kind_name, '-');
    if (dash == nullptr) {
        return {};
    }
    const auto kind_length = static_cast<size_t>(dash - kind_name);
    for (const Kind& kind : kinds) {
        if (std::strlen(kind.name) != kind_length || std::strncmp(kind.name, kind_name, kind_length) != 0) {
            continue;
        }
        const char* end = dash + 1;
        int block = 0;
        for (; *end >= '0' && *end <= '9' && block < most_blocks; ++end) {
            block = block * 10 + (*end - '0');
        }
        if (end == dash + 1 || block >= most_blocks) {
            return {};
        }
        if (*end == '\0') {
            return {kind.node, block};
        }
        // The reshape behind a normalisation closes the pattern that a GPU fuses into one kernel, so it is
        // the node to ask for: asking for the division would split that kernel.
        if (kind.node == RouterNode::later_weights && std::strcmp(end, " (reshaped)") == 0) {
            return {kind.node, block};
        }
        return {};
    }
    return {};
}

bool is_model_logits(const char* name) { return std::strcmp(name, "result_output") == 0; }

const ggml_tensor* chosen_experts(const ggml_tensor* weights) {
    // Softmax, sum, division and reshape all keep their input first.
    constexpr int longest_chain = 16;
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
    return ids->op != GGML_OP_CPY;
}

bool is_ungated(const ggml_tensor* probs) {
    return probs->op == GGML_OP_MUL_MAT || probs->op == GGML_OP_ADD || probs->op == GGML_OP_SCALE ||
           probs->op == GGML_OP_GET_ROWS;
}

}  // namespace coe
