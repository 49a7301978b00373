#include <memory>
#include <string>
#include <vector>

#include "base/ggml_check.h"
#include "capture/router_nodes.h"
#include "check.h"

namespace {

using coe::RouterNode;

void check_node(const std::string& name, RouterNode node, int block) {
    const coe::RouterNodeName parsed = coe::parse_router_node(name);
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
    check_node("ffn_moe_logits-4095", RouterNode::logits, 4095);
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
          "ffn_moe_logits-99999999999999999999", "ffn_moe_logits-4096", "ffn_moe_logits- 3",
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

namespace {

struct Graph {
    std::unique_ptr<ggml_context, decltype(&ggml_free)> context{
        ggml_init({ggml_tensor_overhead() * 64, nullptr, true}), &ggml_free};

    ggml_tensor* tensor(ggml_type type, std::vector<int64_t> sizes, const std::string& name) const {
        ggml_tensor* made =
            ggml_new_tensor(context.get(), type, static_cast<int>(sizes.size()), sizes.data());
        ggml_set_name(made, name.c_str());
        return made;
    }
    // The product of 5 tokens' states, width 4, with matrices of 8 experts of which each chooses 2.
    ggml_tensor* product(const std::string& matrices) const {
        return ggml_mul_mat_id(context.get(), tensor(GGML_TYPE_F32, {4, 6, 8}, matrices),
                               tensor(GGML_TYPE_F32, {4, 2, 5}, "states"),
                               tensor(GGML_TYPE_I32, {2, 5}, "ids"));
    }
    ggml_tensor* named(ggml_tensor* node, const char* name) const { return ggml_set_name(node, name); }
};

void check_found(const ggml_tensor* node, RouterNode kind, int block) {
    const coe::RouterNodeName found = coe::find_router_node(node);
    CHECK_EQUAL(static_cast<int>(found.node), static_cast<int>(kind));
    CHECK_EQUAL(found.block, block);
}

}  // namespace

TEST(products_with_the_down_matrices_are_known_by_what_they_read) {
    const Graph graph;
    check_found(graph.named(graph.product("blk.7.ffn_down_exps.weight"), "node_12"), RouterNode::down, 7);
    check_found(graph.named(graph.product("blk.7.ffn_down_exps.weight"), "ffn_moe_down-7"), RouterNode::down,
                7);
    check_found(graph.product("CUDA0#blk.31.ffn_down_exps.weight#0"), RouterNode::down, 31);
    for (const char* other : {"blk.7.ffn_up_exps.weight", "blk.7.ffn_down_chexps.weight",
                              "blk.7.ffn_down_exps.weight.lora_a", "", "blk.7.ffn_down_exps",
                              "blk..ffn_down_exps.weight", "blk.70000.ffn_down_exps.weight", "#", "a#b#0"}) {
        check_found(graph.named(graph.product(other), "ffn_moe_down-7"), RouterNode::none, -1);
    }
}

TEST(nodes_of_a_second_bank_are_none) {
    const Graph graph;
    for (const bool is_second : {false, true}) {
        ggml_tensor* product =
            graph.product(is_second ? "blk.2.ffn_down_chexps.weight" : "blk.2.ffn_down_exps.weight");
        ggml_tensor* scaled =
            ggml_mul(graph.context.get(), product, graph.tensor(GGML_TYPE_F32, {1, 2, 5}, "s"));
        ggml_tensor* weights = graph.tensor(GGML_TYPE_F32, {1, 2, 5}, "ffn_moe_weights-2");
        ggml_tensor* weighted =
            ggml_mul(graph.context.get(), graph.named(scaled, "ffn_moe_down_scaled-2"), weights);
        graph.named(weighted, "ffn_moe_weighted-2");
        check_found(scaled, is_second ? RouterNode::none : RouterNode::outputs, is_second ? -1 : 2);
        check_found(weighted, is_second ? RouterNode::none : RouterNode::weighted, is_second ? -1 : 2);
    }
}

TEST(choices_are_known_in_another_split) {
    const Graph graph;
    ggml_tensor* ids = graph.tensor(GGML_TYPE_I32, {2, 5}, "Vulkan0#ffn_moe_topk-3#0");
    CHECK(coe::is_split_copy(ids));
    CHECK(coe::is_choice(ids));
    CHECK(coe::is_choice(ggml_view_2d(graph.context.get(), ids, 2, 4, ids->nb[1], 0)));
    // What a second bank chooses by is cast from the first's choice.
    CHECK(!coe::is_choice(graph.tensor(GGML_TYPE_I32, {2, 5}, "Vulkan0# (copy)#0")));
    CHECK(coe::is_choice(
        graph.tensor(GGML_TYPE_I32, {2, 5}, "RPC0[a.host.with.a.long.name:50052]#ffn_moe_topk-3")));
    CHECK(!coe::is_split_copy(graph.tensor(GGML_TYPE_I32, {2, 5}, "ffn_moe_topk-3")));
}

TEST(another_ggml_is_told_by_version_operations_and_tensors) {
    CHECK_EQUAL(coe::find_other_ggml(), std::string());
    const char* version = ggml_version();
    const size_t overhead = ggml_tensor_overhead();
    CHECK_EQUAL(coe::compare_ggml("0.0.1", &ggml_op_name, overhead), std::string("version 0.0.1"));
    const auto shifted = [](ggml_op number) { return ggml_op_name(static_cast<ggml_op>(number + 1)); };
    CHECK(coe::compare_ggml(version, shifted, overhead).find("with other operations (") != std::string::npos);
    CHECK(coe::compare_ggml(version, &ggml_op_name, overhead + 8).find("tensors of another size") !=
          std::string::npos);
}
