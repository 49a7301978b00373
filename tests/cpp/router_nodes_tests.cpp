#include <string>

#include "check.h"
#include "router_nodes.h"

namespace {

using coe::RouterNode;

void check_node(const std::string& name, RouterNode node, int block) {
    const coe::RouterNodeName parsed = coe::parse_router_node(name.c_str());
    if (parsed.node != node || parsed.block != block) {
        coe::tests::fail(__FILE__, __LINE__,
                         "\"" + name + "\" is read as node " + std::to_string(static_cast<int>(parsed.node)) +
                             " of block " + std::to_string(parsed.block));
    }
}

void check_none(const std::string& name) { check_node(name, RouterNode::none, -1); }

}  // namespace

TEST(node_names_that_are_wanted) {
    check_node("ffn_moe_logits-0", RouterNode::logits, 0);
    check_node("ffn_moe_logits-12", RouterNode::logits, 12);
    check_node("ffn_moe_probs-7", RouterNode::probs, 7);
    check_node("ffn_moe_weights-3", RouterNode::chosen_weights, 3);
    check_node("ffn_moe_weights_softmax-3", RouterNode::later_weights, 3);
    check_node("ffn_moe_weights_norm-3", RouterNode::later_weights, 3);
    check_node("ffn_moe_weights_norm-0 (reshaped)", RouterNode::later_weights, 0);
    check_node("ffn_moe_weights_softmax-41 (reshaped)", RouterNode::later_weights, 41);
    check_node("ffn_moe_down-3", RouterNode::outputs, 3);
    check_node("ffn_moe_down_scaled-3", RouterNode::outputs, 3);
    check_node("ffn_moe_down_biased-3", RouterNode::outputs, 3);
    check_node("ffn_moe_weighted-2", RouterNode::weighted, 2);
    check_node("ffn_moe_logits-65535", RouterNode::logits, 65535);
}

TEST(node_names_of_views_are_none) {
    for (const char* suffix : {" (view)", " (copy)", " (permuted)", " (cont)", " (reshaped) (view)", " ", "x",
                               " (reshaped", "(reshaped)", "-1", "\n"}) {
        check_none(std::string("ffn_moe_weights_norm-0") + suffix);
        check_none(std::string("ffn_moe_logits-0") + suffix);
    }
    check_none("ffn_moe_logits-0 (reshaped)");
    check_none("ffn_moe_probs_biased-0 (reshaped)");
    check_none("ffn_moe_weights-0 (reshaped)");
}

TEST(node_names_of_other_nodes_are_none) {
    for (const char* name : {"",
                             "-",
                             "-0",
                             "ffn_moe_",
                             "ffn_moe_-",
                             "ffn_moe_-0",
                             "ffn_moe_topk-3",
                             "ffn_moe_argsort-3",
                             "ffn_moe_probs_biased-3",
                             "ffn_moe_logits_biased-3",
                             "ffn_moe_probs_masked-3",
                             "ffn_moe_weights_sum-1",
                             "ffn_moe_weights_sum_clamped-1",
                             "ffn_moe_weights_scaled-2",
                             "ffn_moe_out-2",
                             "ffn_moe_weight-0",
                             "ffn_moe_weightss-0",
                             "ffn_moe_logit-0",
                             "ffn_moe_logitss-0",
                             "FFN_MOE_LOGITS-0",
                             "ffn_logits-0",
                             " ffn_moe_logits-0",
                             "xffn_moe_logits-0",
                             "ffn_moe_logits",
                             "ffn_moe_logits_0",
                             "ffn_moe_logits 0",
                             "cache_k_l0",
                             "node_12",
                             "result_output"}) {
        check_none(name);
    }
}

TEST(node_names_with_bad_blocks_are_none) {
    for (const char* name :
         {"ffn_moe_logits-", "ffn_moe_logits-x", "ffn_moe_logits--1", "ffn_moe_logits-1x",
          "ffn_moe_logits-x1", "ffn_moe_logits-1.5", "ffn_moe_logits-2147483648", "ffn_moe_logits-4294967296",
          "ffn_moe_logits-99999999999999999999", "ffn_moe_logits-65536", "ffn_moe_logits- 3",
          "ffn_moe_logits-+3", "ffn_moe_logits-\t3", "ffn_moe_logits-1-2", "ffn_moe_weights_norm- (reshaped)",
          "ffn_moe_weights-(reshaped)"}) {
        check_none(name);
    }
}

TEST(node_names_that_are_long) {
    check_none("ffn_moe_" + std::string(10000, 'x'));
    check_none("ffn_moe_" + std::string(10000, 'x') + "-0");
    check_none("ffn_moe_logits" + std::string(10000, '_') + "-0");
    check_none("ffn_moe_logits-0" + std::string(10000, ' '));
    check_node("ffn_moe_logits-" + std::string(10000, '0') + "5", RouterNode::logits, 5);
}

TEST(chosen_experts_needs_a_gather) {
    ggml_init_params params = {ggml_tensor_overhead() * 64, nullptr, true};
    ggml_context* context = ggml_init(params);
    ggml_tensor* probs = ggml_new_tensor_3d(context, GGML_TYPE_F32, 1, 8, 5);
    ggml_tensor* ids = ggml_new_tensor_2d(context, GGML_TYPE_I32, 2, 5);
    ggml_tensor* weights = ggml_get_rows(context, probs, ids);
    CHECK(coe::chosen_experts(weights) == ids);
    ggml_tensor* flat = ggml_reshape_2d(context, weights, 2, 5);
    ggml_tensor* normalised = ggml_div(context, flat, ggml_sum_rows(context, flat));
    CHECK(coe::chosen_experts(ggml_reshape_3d(context, normalised, 1, 2, 5)) == ids);
    CHECK(coe::chosen_experts(probs) == nullptr);
    CHECK(coe::chosen_experts(ggml_scale(context, probs, 2.0f)) == nullptr);
    CHECK(coe::chosen_experts(nullptr) == nullptr);
    ggml_tensor* far = weights;
    for (int step = 0; step < 40; ++step) {
        far = ggml_scale(context, far, 1.0f);
    }
    CHECK(coe::chosen_experts(far) == nullptr);
    ggml_free(context);
}
