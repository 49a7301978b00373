#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <stdexcept>
#include <vector>

#include "capture/live_mask.h"
#include "capture/router_hooks.h"
#include "check.h"
#include "ggml.h"
#include "router_graph.h"

namespace {

using coe::LiveMask;
using coe::RouterHooks;
using coe::RouterNode;
using coe::RouterTap;
using coe::tests::check_counts;
using coe::tests::expected_counts;
using coe::tests::LayerInput;
using coe::tests::random_input;
using coe::tests::RouterKind;
using coe::tests::RouterRunner;

constexpr float minus_infinity = -std::numeric_limits<float>::infinity();

using Context = std::unique_ptr<ggml_context, decltype(&ggml_free)>;

Context make_context() { return {ggml_init({size_t{1} << 16, nullptr, false}), &ggml_free}; }

ggml_tensor* make_logits(const Context& context, int n_experts, int n_tokens) {
    ggml_tensor* logits = ggml_new_tensor_2d(context.get(), GGML_TYPE_F32, n_experts, n_tokens);
    for (int i = 0; i < n_experts * n_tokens; ++i) {
        static_cast<float*>(logits->data)[i] = 0.5f * static_cast<float>(i) - 3.0f;
    }
    return logits;
}

// The logits of all experts but the kept ones set to minus infinity.
LayerInput masked(LayerInput input, const std::vector<int>& kept, int n_experts) {
    std::vector<float> result(input.logits.size(), minus_infinity);
    for (size_t row = 0; row < input.logits.size(); row += static_cast<size_t>(n_experts)) {
        for (const int expert : kept) {
            result[row + static_cast<size_t>(expert)] = input.logits[row + static_cast<size_t>(expert)];
        }
    }
    input.logits = result;
    return input;
}

}  // namespace

TEST(mask_writes_minus_infinity_over_dropped_experts_only) {
    LiveMask mask;
    mask.set({1, 4}, {{0, 2, 5}, {1, 3, 4}}, 6);
    const std::vector<bool> keeps_one = {true, false, true, false, false, true};
    const std::vector<bool> keeps_four = {false, true, false, true, true, false};
    const Context context = make_context();
    for (const int block : {1, 4}) {
        const std::vector<bool>& keep = block == 1 ? keeps_one : keeps_four;
        for (const RouterNode node : {RouterNode::logits, RouterNode::probs}) {
            ggml_tensor* logits = make_logits(context, 6, 7);
            mask.apply(logits, {node, block});
            for (size_t i = 0; i < 42; ++i) {
                const float untouched = 0.5f * static_cast<float>(i) - 3.0f;
                CHECK_EQUAL(static_cast<float*>(logits->data)[i], keep[i % 6] ? untouched : minus_infinity);
            }
        }
    }
}

TEST(mask_stays_inside_its_node) {
    LiveMask mask;
    mask.set({0}, {{1}}, 4);
    const Context context = make_context();
    ggml_tensor* whole = make_logits(context, 4, 6);
    ggml_tensor* middle = ggml_view_2d(context.get(), whole, 4, 2, whole->nb[1], 2 * whole->nb[1]);
    mask.apply(middle, {RouterNode::logits, 0});
    for (size_t i = 0; i < 24; ++i) {
        const bool dropped = i / 4 >= 2 && i / 4 < 4 && i % 4 != 1;
        CHECK_EQUAL(static_cast<float*>(whole->data)[i],
                    dropped ? minus_infinity : 0.5f * static_cast<float>(i) - 3.0f);
    }
}

TEST(mask_gives_dropped_experts_of_a_warm_up_no_weight) {
    LiveMask mask;
    mask.set({0}, {{1, 2}}, 4);
    const Context context = make_context();
    ggml_tensor* weights = ggml_new_tensor_3d(context.get(), GGML_TYPE_F32, 1, 4, 2);
    auto* values = static_cast<float*>(weights->data);
    const std::vector<float> before = {minus_infinity, 0.25f, 0.75f,          std::nanf(""),
                                       0.5f,           0.5f,  minus_infinity, 0.0f};
    std::copy(before.begin(), before.end(), values);
    mask.apply(weights, {RouterNode::chosen_weights, 0});
    const std::vector<float> after = {0.0f, 0.25f, 0.75f, 0.0f, 0.5f, 0.5f, 0.0f, 0.0f};
    CHECK(std::equal(after.begin(), after.end(), values));
    CHECK_EQUAL(mask.take_applications({0})[0], uint64_t{0});
}

TEST(mask_of_no_tokens_writes_nothing) {
    LiveMask mask;
    mask.set({0}, {{1}}, 4);
    const Context context = make_context();
    ggml_tensor* logits = make_logits(context, 4, 0);
    mask.apply(logits, {RouterNode::logits, 0});
    CHECK_EQUAL(mask.take_applications({0})[0], uint64_t{1});
}

TEST(mask_wants_logits_and_probs_where_experts_are_dropped) {
    LiveMask mask;
    const Context context = make_context();
    const ggml_tensor* scores = make_logits(context, 2, 3);
    const auto wants = [&](coe::RouterNodeName name) { return mask.wants(scores, name); };
    CHECK(!mask.active());
    CHECK(!wants({RouterNode::logits, 0}));
    mask.set({1, 3}, {{0, 1}, {1}}, 2);
    CHECK(mask.active());
    CHECK(wants({RouterNode::logits, 3}));
    CHECK(wants({RouterNode::probs, 3}));
    CHECK(!wants({RouterNode::later_weights, 3}));
    CHECK(!wants({RouterNode::none, 3}));
    for (const int block : {-1, 0, 1, 2, 4, 2147483647}) {  // block 1 keeps all
        CHECK(!wants({RouterNode::logits, block}));
    }
    // Weights of more experts than are kept: a warm-up.
    const ggml_tensor* one_chosen = ggml_new_tensor_3d(context.get(), GGML_TYPE_F32, 1, 1, 5);
    const ggml_tensor* two_chosen = ggml_new_tensor_3d(context.get(), GGML_TYPE_F32, 1, 2, 5);
    CHECK(!mask.wants(one_chosen, {RouterNode::chosen_weights, 3}));
    CHECK(mask.wants(two_chosen, {RouterNode::chosen_weights, 3}));
    CHECK(!mask.wants(two_chosen, {RouterNode::chosen_weights, 1}));
    mask.clear();
    CHECK(!mask.active());
    CHECK(!wants({RouterNode::logits, 3}));
}

TEST(mask_refuses_nodes_of_another_shape) {
    LiveMask mask;
    mask.set({0}, {{1}}, 4);
    const Context context = make_context();
    for (const int n_experts : {1, 2, 3, 5, 8}) {
        ggml_tensor* logits = make_logits(context, n_experts, 8);
        ggml_set_name(logits, "ffn_moe_logits-0");
        CHECK_THROWS(std::runtime_error, "cannot mask the router at ffn_moe_logits-0",
                     mask.apply(logits, {RouterNode::logits, 0}));
        CHECK_EQUAL(static_cast<float*>(logits->data)[0], -3.0f);
    }
    ggml_tensor* half = ggml_new_tensor_2d(context.get(), GGML_TYPE_F16, 4, 2);
    CHECK_THROWS(std::runtime_error, "cannot mask", mask.apply(half, {RouterNode::logits, 0}));
    ggml_tensor* transposed = ggml_transpose(context.get(), make_logits(context, 3, 4));
    CHECK_THROWS(std::runtime_error, "cannot mask", mask.apply(transposed, {RouterNode::logits, 0}));
    CHECK_EQUAL(mask.take_applications({0})[0], uint64_t{0});
}

TEST(mask_counts_its_applications) {
    LiveMask mask;
    mask.set({0, 2}, {{1}, {0}}, 2);
    const Context context = make_context();
    mask.apply(make_logits(context, 2, 3), {RouterNode::logits, 0});
    mask.apply(make_logits(context, 2, 3), {RouterNode::logits, 2});
    mask.apply(make_logits(context, 2, 3), {RouterNode::logits, 2});
    mask.apply(make_logits(context, 2, 3), {RouterNode::probs, 2});  // this is no second router
    CHECK(mask.take_applications({0, 2}) == (std::vector<uint64_t>{1, 2}));
    CHECK(mask.take_applications({2, 0}) == (std::vector<uint64_t>{0, 0}));
    mask.apply(make_logits(context, 2, 3), {RouterNode::logits, 0});
    CHECK(mask.take_applications({2}) == (std::vector<uint64_t>{0}));
    CHECK(mask.take_applications({2, 0}) == (std::vector<uint64_t>{0, 1}));
    mask.apply(make_logits(context, 2, 3), {RouterNode::logits, 0});
    mask.set({0}, {{0}}, 2);
    CHECK(mask.take_applications({0}) == (std::vector<uint64_t>{0}));
}

TEST(mask_refuses_bad_arguments_and_keeps_the_old_mask) {
    LiveMask mask;
    mask.set({0}, {{1}}, 2);
    CHECK_THROWS(std::invalid_argument, "one list", mask.set({0, 1}, {{0}}, 2));
    CHECK_THROWS(std::invalid_argument, "one list", mask.set({}, {{0}}, 2));
    CHECK_THROWS(std::invalid_argument, "block indices", mask.set({-1}, {{0}}, 2));
    CHECK_THROWS(std::invalid_argument, "block indices", mask.set({0}, {{}}, 2));
    CHECK_THROWS(std::invalid_argument, "expert 1 twice", mask.set({0}, {{1, 1}}, 2));
    CHECK_THROWS(std::invalid_argument, "expert 2 of 2", mask.set({3}, {{0, 2}}, 2));
    CHECK_THROWS(std::invalid_argument, "expert -1 of 2", mask.set({3}, {{-1}}, 2));
    CHECK(mask.drops_in(0));
    CHECK(!mask.drops_in(3));
}

// The mask and the tap together: what is counted is what a router of the kept experts alone would choose.
TEST(mask_in_a_graph_leaves_the_kept_experts_choices) {
    const std::vector<int> kept_first = {1, 2, 5, 6};
    const std::vector<int> kept_second = {0, 3, 7};
    std::vector<RouterKind> kinds(4);
    kinds[0].normalised = true;
    kinds[1].softmax_over_top_k = true;
    kinds[3].sigmoid = true;
    kinds[3].bias = {0.9f, -0.3f, 0.0f, 0.35f, 5.0f, -0.15f, 0.05f, 0.2f};  // would choose expert 4 always
    for (const RouterKind& kind : kinds) {
        RouterTap tap({0, 1}, 8, 3);
        RouterHooks hooks;
        RouterRunner runner;
        hooks.tap = &tap;
        hooks.mask.set({0, 1}, {kept_first, kept_second}, 8);
        runner.set_callback(&RouterHooks::callback, &hooks);
        tap.set_early_end(true);
        const std::vector<LayerInput> inputs = {random_input(0, 20, kind, 1), random_input(1, 20, kind, 2)};
        std::vector<LayerInput> expected;
        std::vector<size_t> layers;
        for (int batch = 0; batch < 2; ++batch) {
            tap.begin_batch();
            runner.run(kind, inputs);
            hooks.rethrow();
            tap.end_batch(20);
            CHECK(hooks.mask.take_applications({0, 1}) == (std::vector<uint64_t>{1, 1}));
            expected.push_back(masked(inputs[0], kept_first, 8));
            expected.push_back(masked(inputs[1], kept_second, 8));
            layers.insert(layers.end(), {0, 1});
        }
        check_counts(tap.stats().histograms(), tap.stats().weight_sum().sums(),
                     expected_counts(kind, expected, layers, 2));
        for (size_t cell = 0; cell < 3; ++cell) {
            CHECK_EQUAL(tap.stats().histograms()[4 * 3 + cell], 0);
        }

        hooks.mask.clear();
        tap.clear();
        tap.begin_batch();
        runner.run(kind, inputs);
        hooks.rethrow();
        tap.end_batch(20);
        check_counts(tap.stats().histograms(), tap.stats().weight_sum().sums(),
                     expected_counts(kind, inputs));
    }
}

// A kept expert whose probability underflows to zero is still chosen before a dropped one.
TEST(mask_lets_no_dropped_expert_in_by_a_tie_at_zero) {
    RouterKind kind;
    kind.normalised = true;
    for (const bool sigmoid : {false, true}) {
        kind.sigmoid = sigmoid;
        RouterTap tap({0}, 8, 3);
        RouterHooks hooks;
        RouterRunner runner;
        hooks.tap = &tap;
        hooks.mask.set({0}, {{3, 5, 7}}, 8);
        runner.set_callback(&RouterHooks::callback, &hooks);
        const float far = -500.0f;
        tap.begin_batch();
        runner.run(kind, {{0, 1, {9.0f, 8.0f, 7.0f, 1.0f, 6.0f, far, 5.0f, far}}});
        hooks.rethrow();
        tap.end_batch(1);
        for (const size_t expert : {size_t{0}, size_t{1}, size_t{2}, size_t{4}, size_t{6}}) {
            for (size_t rank = 0; rank < 3; ++rank) {
                CHECK_EQUAL(tap.stats().histograms()[expert * 3 + rank], 0);
            }
        }
        CHECK_EQUAL(tap.stats().histograms()[size_t{3} * 3], 1);
        CHECK(std::fabs(tap.stats().weight_sum().sums()[size_t{3} * 3] - 1.0) < 1e-6);
    }
}

TEST(mask_counts_its_applications_before_any_gating_only) {
    LiveMask mask;
    mask.set({0}, {{1}}, 4);
    const Context context = make_context();
    ggml_tensor* logits = ggml_scale(context.get(), make_logits(context, 4, 2), 1.0f);
    ggml_tensor* gated = ggml_soft_max(context.get(), logits);
    mask.apply(gated, {RouterNode::probs, 0});
    CHECK_EQUAL(mask.take_applications({0})[0], uint64_t{0});
    mask.apply(logits, {RouterNode::probs, 0});
    CHECK_EQUAL(mask.take_applications({0})[0], uint64_t{1});
}

TEST(mask_of_the_wrong_width_is_kept_for_rethrow) {
    RouterHooks hooks;
    RouterRunner runner;
    hooks.mask.set({1}, {{0, 1}}, 4);  // the graph has 8 experts
    runner.set_callback(&RouterHooks::callback, &hooks);
    const RouterKind kind;
    runner.run(kind, {random_input(0, 4, kind, 1), random_input(1, 4, kind, 2)});
    CHECK_THROWS(std::runtime_error, "cannot mask the router at ffn_moe_logits-1", hooks.rethrow());
    hooks.rethrow();
}
