#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "capture/router_hooks.h"
#include "capture/router_tap.h"
#include "check.h"
#include "router_graph.h"

namespace {

using coe::RouterHooks;
using coe::RouterTap;
using coe::tests::check_counts;
using coe::tests::check_sums;
using coe::tests::Counts;
using coe::tests::expected_counts;
using coe::tests::LayerInput;
using coe::tests::random_input;
using coe::tests::RouterKind;
using coe::tests::RouterRunner;

static_assert(noexcept(RouterHooks::callback(nullptr, true, nullptr)),
              "an exception that crossed llama.cpp's frames would be undefined behaviour");

// A tap on a running graph.
struct Watched {
    RouterTap tap;
    RouterHooks hooks;
    RouterRunner runner;

    Watched(const std::vector<int>& blocks, size_t n_experts, size_t top_k) : tap(blocks, n_experts, top_k) {
        hooks.tap = &tap;
        runner.set_callback(&RouterHooks::callback, &hooks);
    }

    // One batch that is one graph; every layer sees the same number of tokens.
    void run_batch(const RouterKind& kind, const std::vector<LayerInput>& inputs) {
        tap.begin_batch();
        runner.run(kind, inputs);
        hooks.rethrow();
        tap.end_batch(inputs.front().n_tokens);
    }

    void check(const Counts& expected) {
        check_counts(tap.stats().histograms(), tap.stats().weight_sum().sums(), expected);
    }
};

// Two batches over two layers, counted right, and from the second on with one node asked for in each layer.
// That node's name is `final_name`, a dash, the block and `suffix`.
void check_kind(const RouterKind& kind, const std::string& final_name, const std::string& suffix = "") {
    Watched watched({0, 3}, static_cast<size_t>(kind.n_experts), static_cast<size_t>(kind.top_k));
    const std::vector<LayerInput> first = {random_input(0, 17, kind, 1), random_input(3, 17, kind, 2)};
    watched.run_batch(kind, first);
    watched.check(expected_counts(kind, first));

    std::vector<LayerInput> all = first;
    for (unsigned batch = 0; batch < 2; ++batch) {
        watched.runner.forget();
        const std::vector<LayerInput> later = {random_input(0, 9, kind, 3 + batch),
                                               random_input(3, 9, kind, 5 + batch)};
        watched.run_batch(kind, later);
        const std::vector<std::string> one_of_each = {final_name + "-0" + suffix, final_name + "-3" + suffix};
        CHECK(watched.runner.wanted() == one_of_each);
        all.insert(all.end(), later.begin(), later.end());
    }
    watched.check(expected_counts(kind, all, {0, 1, 0, 1, 0, 1}, 2));
    CHECK_EQUAL(watched.tap.tokens_seen()[0], uint64_t{17 + 9 + 9});
    CHECK_EQUAL(watched.tap.tokens_seen()[1], uint64_t{17 + 9 + 9});
}

// Three batches over two layers with the norms of the experts' outputs: all right, from the second on with
// two nodes asked for in each layer, and ended behind the last one's outputs.
void check_outputs(RouterKind kind, const std::string& final_name) {
    kind.experts = true;
    Watched watched({0, 3}, static_cast<size_t>(kind.n_experts), static_cast<size_t>(kind.top_k));
    watched.tap.watch_outputs(2);
    watched.tap.set_early_end(true);
    std::vector<LayerInput> all;
    for (unsigned batch = 0; batch < 3; ++batch) {
        watched.runner.forget();
        const std::vector<LayerInput> inputs = {random_input(0, 9 - batch, kind, 1 + batch),
                                                random_input(3, 9 - batch, kind, 5 + batch)};
        watched.run_batch(kind, inputs);
        if (batch > 0) {
            std::vector<std::string> outputs;
            for (const std::string& name : watched.runner.wanted()) {
                if (name.find("ffn_moe_down") == 0) {
                    outputs.push_back(name);
                }
            }
            CHECK(outputs == (std::vector<std::string>{final_name + "-0", final_name + "-3"}));
            CHECK_EQUAL(watched.runner.wanted().size(), size_t{4});
            CHECK_EQUAL(watched.runner.wanted().back(), final_name + "-3");
            // What follows the last layer is not computed, but for a second bank.
            CHECK_EQUAL(watched.runner.n_outputs_computed(), size_t{kind.second_bank ? 2u : 1u});
        }
        all.insert(all.end(), inputs.begin(), inputs.end());
    }
    const Counts expected = expected_counts(kind, all, {0, 1, 0, 1, 0, 1}, 2);
    watched.check(expected);
    check_sums(watched.tap.stats().norm_sum().sums(), expected.norm_sum);
    check_sums(watched.tap.stats().weighted_norm_sum().sums(), expected.weighted_norm_sum);
}

}  // namespace

TEST(tap_counts_plain_weights) { check_kind({}, "ffn_moe_weights"); }

TEST(tap_counts_normalised_weights) {
    RouterKind kind;
    kind.normalised = true;
    check_kind(kind, "ffn_moe_weights_norm", " (reshaped)");
}

TEST(tap_counts_softmax_over_the_chosen) {
    RouterKind kind;
    kind.softmax_over_top_k = true;
    check_kind(kind, "ffn_moe_weights_softmax");
}

TEST(tap_counts_softmax_over_the_chosen_and_normalised) {
    RouterKind kind;
    kind.softmax_over_top_k = kind.normalised = true;
    check_kind(kind, "ffn_moe_weights_norm", " (reshaped)");
}

TEST(tap_counts_unscaled_weights) {
    RouterKind kind;
    kind.scaled = true;
    check_kind(kind, "ffn_moe_weights");
    kind.normalised = true;
    check_kind(kind, "ffn_moe_weights_norm", " (reshaped)");
}

TEST(tap_leaves_out_a_second_bank_whose_choice_follows_from_the_first) {
    RouterKind kind;
    kind.second_bank = true;
    check_kind(kind, "ffn_moe_weights");
    kind.normalised = true;
    check_kind(kind, "ffn_moe_weights_norm", " (reshaped)");
}

TEST(hooks_record_a_graph_only_while_told_to) {
    RouterHooks hooks;
    RouterRunner runner;
    runner.set_callback(&RouterHooks::callback, &hooks);
    const RouterKind kind;
    runner.run(kind, {random_input(0, 2, kind, 1)});
    CHECK(hooks.graph.empty());
    hooks.records = true;
    runner.run(kind, {random_input(0, 2, kind, 1)});
    hooks.records = false;
    runner.run(kind, {random_input(0, 2, kind, 1)});
    CHECK_EQUAL(hooks.graph.front(), std::string("ffn_moe_logits-0 SCALE"));
    CHECK_EQUAL(std::count(hooks.graph.begin(), hooks.graph.end(), "ffn_moe_probs-0 SOFT_MAX"), 1);
    CHECK(!hooks.logits_seen);
}

TEST(tap_counts_choices_by_table) {
    RouterKind kind;
    kind.by_table = kind.sigmoid = kind.normalised = true;
    check_kind(kind, "ffn_moe_weights_norm", " (reshaped)");
}

TEST(tap_of_all_layers_refuses_a_router_elsewhere) {
    for (const bool complete : {false, true}) {
        RouterTap tap({0, 3}, 8, size_t{3});
        RouterHooks hooks;
        RouterRunner runner;
        hooks.tap = &tap;
        runner.set_callback(&RouterHooks::callback, &hooks);
        tap.set_complete(complete);
        const RouterKind kind;
        runner.run(kind, {random_input(0, 4, kind, 1), random_input(2, 4, kind, 2)});
        if (complete) {
            CHECK_THROWS(std::runtime_error, "a router runs in block 2", hooks.rethrow());
        } else {
            hooks.rethrow();
        }
    }
}

TEST(tap_counts_layers_that_choose_different_numbers) {
    RouterTap tap({0, 3}, 8, std::vector<size_t>{2, 4});
    RouterHooks hooks;
    RouterRunner runner;
    hooks.tap = &tap;
    runner.set_callback(&RouterHooks::callback, &hooks);
    RouterKind two;
    RouterKind four;
    two.top_k = 2;
    four.top_k = 4;
    const LayerInput first = random_input(0, 6, two, 1);
    const LayerInput second = random_input(3, 6, four, 2);
    for (const auto& [kind, input] : {std::pair(two, first), std::pair(four, second)}) {
        runner.run(kind, {input});
    }
    hooks.rethrow();
    tap.collect();
    CHECK_EQUAL(tap.stats().top_k(), size_t{4});
    const Counts of_two = expected_counts(two, {first});
    const Counts of_four = expected_counts(four, {second});
    for (size_t expert = 0; expert < 8; ++expert) {
        for (size_t rank = 0; rank < 4; ++rank) {
            const size_t cell = expert * 4 + rank;
            CHECK_EQUAL(tap.stats().histograms()[cell], rank < 2 ? of_two.histograms[expert * 2 + rank] : 0);
            CHECK_EQUAL(tap.stats().histograms()[8 * 4 + cell], of_four.histograms[cell]);
        }
    }
    tap.clear();
    runner.run(two, {random_input(3, 6, two, 2)});
    CHECK_THROWS(std::runtime_error, "chooses 2 experts for a token in block 3, not the 4", hooks.rethrow());
}

TEST(tap_counts_sigmoid_weights_selected_with_a_bias) {
    RouterKind kind;
    kind.sigmoid = kind.normalised = true;
    // Lifts the experts of low probability, so that the order of selection is not that of the weights.
    kind.bias = {0.9f, -0.3f, 0.0f, 0.35f, 0.7f, -0.15f, 0.05f, 0.2f};
    check_kind(kind, "ffn_moe_weights_norm", " (reshaped)");
    kind.normalised = false;
    check_kind(kind, "ffn_moe_weights");
}

TEST(tap_counts_every_top_k) {
    RouterKind kind;
    for (kind.top_k = 1; kind.top_k <= kind.n_experts; ++kind.top_k) {
        check_kind(kind, "ffn_moe_weights");
    }
    kind.n_experts = 1;
    kind.top_k = 1;
    check_kind(kind, "ffn_moe_weights");
}

TEST(tap_asks_for_the_whole_chain_in_the_first_graph_only) {
    RouterKind kind;
    kind.normalised = true;
    Watched watched({0}, 8, 3);
    watched.tap.set_early_end(true);
    watched.run_batch(kind, {random_input(0, 5, kind, 1)});
    const std::vector<std::string> whole = {"ffn_moe_weights-0", "ffn_moe_weights_norm-0",
                                            "ffn_moe_weights_norm-0 (reshaped)"};
    CHECK(watched.runner.wanted() == whole);
    CHECK_EQUAL(watched.runner.n_outputs_computed(), size_t{1});  // nothing is left out before it is known
    watched.runner.forget();
    watched.run_batch(kind, {random_input(0, 5, kind, 2)});
    CHECK(watched.runner.wanted() == std::vector<std::string>{"ffn_moe_weights_norm-0 (reshaped)"});
}

TEST(tap_counts_several_graphs_of_one_batch) {
    RouterKind kind;
    kind.normalised = true;
    Watched watched({1, 2}, 8, 3);
    std::vector<LayerInput> all;
    std::vector<size_t> layers;
    for (unsigned batch = 0; batch < 2; ++batch) {
        watched.tap.begin_batch();
        for (unsigned ubatch = 0; ubatch < 3; ++ubatch) {
            const size_t n_tokens = ubatch == 2 ? 3 : 8;  // the last one is not full
            const std::vector<LayerInput> inputs = {random_input(1, n_tokens, kind, 10 * batch + ubatch),
                                                    random_input(2, n_tokens, kind, 50 + ubatch)};
            watched.runner.run(kind, inputs);
            watched.hooks.rethrow();
            all.insert(all.end(), inputs.begin(), inputs.end());
            layers.insert(layers.end(), {0, 1});
        }
        watched.tap.end_batch(19);
    }
    watched.check(expected_counts(kind, all, layers, 2));
    // The whole chain in the first graph, one node in each of the five others.
    CHECK_EQUAL(watched.runner.wanted().size(), size_t{2 * 3 + 5 * 2});
}

TEST(tap_sums_norms_of_outputs) { check_outputs({}, "ffn_moe_down"); }

TEST(tap_sums_norms_of_scaled_and_biased_outputs) {
    RouterKind kind;
    kind.experts_scaled = kind.scaled = true;
    check_outputs(kind, "ffn_moe_down_scaled");
    kind.experts_biased = kind.normalised = true;
    check_outputs(kind, "ffn_moe_down_biased");
    kind.experts_scaled = false;
    kind.sigmoid = true;
    kind.bias = {0.3f, -0.2f, 0.9f, 0.0f, -0.7f, 0.1f, 0.5f, 0.2f};  // ranks are not in the order of the ids
    check_outputs(kind, "ffn_moe_down_biased");
}

TEST(tap_sums_norms_where_the_input_is_weighted) {
    RouterKind kind;
    kind.weights_in_input = true;
    check_outputs(kind, "ffn_moe_down");
}

TEST(tap_leaves_out_what_a_second_bank_puts_out) {
    RouterKind kind;
    kind.second_bank = true;
    check_outputs(kind, "ffn_moe_down");
}

TEST(tap_sums_no_norms_unless_asked_to) {
    RouterKind kind;
    kind.experts = true;
    Watched watched({0}, 8, 3);
    for (unsigned batch = 0; batch < 2; ++batch) {
        watched.run_batch(kind, {random_input(0, 4, kind, batch)});
    }
    CHECK(watched.tap.stats().norm_sum().sums().empty());
    CHECK(watched.runner.wanted() == (std::vector<std::string>{"ffn_moe_weights-0", "ffn_moe_weights-0"}));
}

TEST(tap_notices_outputs_that_do_not_come) {
    RouterKind kind;
    kind.experts = true;
    Watched watched({0}, 8, 3);
    watched.tap.watch_outputs(1);
    const auto hide_outputs = [](ggml_tensor* node, bool ask, void* hooks) {
        return std::string(node->name).find("ffn_moe_down") == std::string::npos &&
               RouterHooks::callback(node, ask, hooks);
    };
    watched.runner.set_callback(hide_outputs, &watched.hooks);
    watched.tap.begin_batch();
    watched.runner.run(kind, {random_input(0, 4, kind, 1)});
    watched.hooks.rethrow();
    CHECK_THROWS(std::runtime_error, "the experts' outputs were not seen in block 0",
                 watched.tap.end_batch(4));
}

TEST(tap_notices_outputs_that_change) {
    RouterKind kind;
    kind.experts = true;
    Watched watched({0}, 8, 3);
    watched.tap.watch_outputs(1);
    watched.run_batch(kind, {random_input(0, 4, kind, 1)});
    kind.experts_biased = true;
    watched.tap.begin_batch();
    watched.runner.run(kind, {random_input(0, 4, kind, 1)});
    CHECK_THROWS(std::runtime_error, "ffn_moe_down_biased-0 follows ffn_moe_down-0", watched.hooks.rethrow());
}

TEST(tap_keeps_an_output_that_is_no_number_for_rethrow) {
    RouterKind kind;
    kind.experts = true;
    kind.softmax_over_top_k = kind.weights_in_input = true;
    Watched watched({0}, 8, 3);
    watched.tap.watch_outputs(1);
    LayerInput input = random_input(0, 4, kind, 1);
    input.logits[13] = std::nanf("");
    input.logits[14] = std::numeric_limits<float>::infinity();
    watched.tap.begin_batch();
    watched.runner.run(kind, {input});
    CHECK_THROWS(std::runtime_error, "not a finite number in block 0", watched.tap.end_batch(4));
}

TEST(tap_of_a_host_that_announces_no_batches) {
    const RouterKind kind;
    Watched watched({0}, 8, 3);
    const std::vector<LayerInput> inputs = {random_input(0, 4, kind, 1), random_input(0, 6, kind, 2)};
    watched.runner.run(kind, {inputs[0]});
    watched.runner.run(kind, {inputs[1]});
    CHECK_EQUAL(watched.tap.tokens_seen()[0], uint64_t{4});  // the second graph is not confirmed yet
    watched.tap.collect();
    CHECK_EQUAL(watched.tap.tokens_seen()[0], uint64_t{10});
    watched.tap.collect();
    CHECK_EQUAL(watched.tap.tokens_seen()[0], uint64_t{10});
    watched.hooks.rethrow();
    watched.check(expected_counts(kind, inputs, {0, 0}, 1));
}

TEST(tap_ends_graphs_at_the_last_router) {
    RouterKind kind;
    kind.normalised = kind.scaled = true;
    Watched watched({0, 1}, 8, 3);
    watched.tap.set_early_end(true);
    std::vector<LayerInput> all;
    for (unsigned batch = 0; batch < 3; ++batch) {
        watched.runner.forget();
        const std::vector<LayerInput> inputs = {random_input(0, 7, kind, 1 + batch),
                                                random_input(1, 7, kind, 11 + batch),
                                                random_input(2, 7, kind, 21 + batch)};
        watched.run_batch(kind, inputs);
        all.insert(all.end(), inputs.begin(), inputs.begin() + 2);
        // Block 0's output is computed, since the last router could depend on it; later ones are not.
        CHECK_EQUAL(watched.runner.n_outputs_computed(), size_t{batch == 0 ? 3u : 1u});
        const std::vector<std::string>& asked = watched.runner.asked();
        CHECK((std::find(asked.begin(), asked.end(), "ffn_moe_logits-2") == asked.end()) == (batch > 0));
    }
    watched.check(expected_counts(kind, all, {0, 1, 0, 1, 0, 1}, 2));

    watched.tap.set_early_end(false);
    watched.runner.forget();
    watched.run_batch(kind, {random_input(0, 2, kind, 1), random_input(1, 2, kind, 2)});
    CHECK_EQUAL(watched.runner.n_outputs_computed(), size_t{2});
}

TEST(hooks_tell_whether_a_graph_was_ended) {
    RouterKind kind;
    kind.normalised = true;
    Watched watched({0}, 8, 3);
    watched.tap.set_early_end(true);
    watched.run_batch(kind, {random_input(0, 4, kind, 1)});  // the first graph is not: the tap learns from it
    CHECK(!watched.hooks.ended_early);
    watched.run_batch(kind, {random_input(0, 4, kind, 2)});
    CHECK(watched.hooks.ended_early);
    watched.hooks.ended_early = false;
    watched.tap.set_early_end(false);
    watched.run_batch(kind, {random_input(0, 4, kind, 3)});
    CHECK(!watched.hooks.ended_early);
}

TEST(tap_leaves_other_blocks_alone) {
    const RouterKind kind;
    Watched watched({2}, 8, 3);
    const std::vector<LayerInput> inputs = {random_input(1, 5, kind, 1), random_input(2, 5, kind, 2),
                                            random_input(7, 5, kind, 3)};
    watched.run_batch(kind, inputs);
    CHECK(watched.runner.wanted() == std::vector<std::string>{"ffn_moe_weights-2"});
    CHECK_EQUAL(watched.runner.n_outputs_computed(), size_t{3});
    watched.check(expected_counts(kind, {inputs[1]}));
}

TEST(tap_notices_a_layer_that_sees_fewer_tokens) {
    const RouterKind kind;
    for (const size_t n_tokens : {size_t{0}, size_t{1}, size_t{5}}) {
        Watched watched({0, 1}, 8, 3);
        watched.tap.begin_batch();
        watched.runner.run(kind, {random_input(0, 6, kind, 1), random_input(1, n_tokens, kind, 2)});
        watched.hooks.rethrow();
        CHECK_THROWS(std::runtime_error, "saw " + std::to_string(n_tokens) + " of 6 tokens in block 1",
                     watched.tap.end_batch(6));
        CHECK_EQUAL(watched.tap.tokens_seen()[1], uint64_t{n_tokens});
    }
    Watched watched({0, 1}, 8, 3);
    watched.tap.begin_batch();
    watched.runner.run(kind, {random_input(0, 6, kind, 1)});
    CHECK_THROWS(std::runtime_error, "saw 0 of 6 tokens in block 1", watched.tap.end_batch(6));
    CHECK_THROWS(std::runtime_error, "saw 6 of 5 tokens in block 0", watched.tap.end_batch(5));
}

TEST(tap_counts_a_layer_without_tokens_as_nothing) {
    const RouterKind kind;
    Watched watched({0, 1}, 8, 3);
    watched.tap.begin_batch();
    const std::vector<LayerInput> first = {random_input(0, 6, kind, 1), random_input(1, 0, kind, 2)};
    const std::vector<LayerInput> second = {random_input(0, 2, kind, 3), random_input(1, 2, kind, 4)};
    watched.runner.run(kind, first);
    watched.runner.run(kind, second);
    watched.hooks.rethrow();
    watched.tap.collect();
    CHECK_EQUAL(watched.tap.tokens_seen()[0], uint64_t{8});
    CHECK_EQUAL(watched.tap.tokens_seen()[1], uint64_t{2});
    watched.check(expected_counts(kind, {first[0], first[1], second[0], second[1]}, {0, 1, 0, 1}, 2));
}

TEST(tap_keeps_an_id_out_of_range_for_rethrow) {
    const RouterKind kind;
    Watched watched({0, 1}, 6, 3);  // the graph has 8 experts
    const std::vector<LayerInput> inputs = {random_input(0, 40, kind, 1), random_input(1, 40, kind, 2)};
    watched.tap.begin_batch();
    watched.runner.run(kind, inputs);
    watched.hooks.rethrow();  // what was read is looked at when the next graph confirms it
    watched.runner.run(kind, inputs);
    CHECK(watched.hooks.error != nullptr);
    CHECK_THROWS(std::runtime_error, " of 6 in block 0", watched.hooks.rethrow());
    watched.hooks.rethrow();                                                         // it is forgotten by now
    CHECK_THROWS(std::runtime_error, "of 6 in block 1", watched.tap.end_batch(80));  // the layer behind it
}

TEST(tap_keeps_a_weight_that_is_no_number_for_rethrow) {
    RouterKind kind;
    kind.softmax_over_top_k = true;
    Watched watched({0, 1}, 8, 3);
    std::vector<LayerInput> inputs = {random_input(0, 4, kind, 1), random_input(1, 4, kind, 2)};
    inputs[1].logits[13] = std::nanf("");
    inputs[1].logits[14] = std::numeric_limits<float>::infinity();
    watched.tap.begin_batch();
    watched.runner.run(kind, inputs);
    watched.runner.run(kind, inputs);
    CHECK_THROWS(std::runtime_error, "not a finite number in block 1", watched.hooks.rethrow());
    watched.hooks.rethrow();
    CHECK_THROWS(std::runtime_error, "saw 0 of 8 tokens in block 1", watched.tap.end_batch(8));
}

TEST(tap_keeps_the_first_error) {
    const RouterKind kind;
    Watched watched({0, 1}, 2, 2);  // two for a token, where the graph chooses three
    watched.runner.run(kind, {random_input(0, 4, kind, 1), random_input(1, 4, kind, 2)});
    watched.runner.run(kind, {random_input(1, 4, kind, 2)});
    CHECK_THROWS(std::runtime_error, "chooses 3 experts for a token in block 0, not the 2",
                 watched.hooks.rethrow());
    watched.tap.collect();
    CHECK_EQUAL(watched.tap.tokens_seen()[0], uint64_t{0});
}

TEST(tap_notices_a_chain_that_grows) {
    RouterKind kind;
    Watched watched({0, 1}, 8, 3);
    watched.run_batch(kind, {random_input(0, 4, kind, 1), random_input(1, 4, kind, 2)});
    kind.normalised = true;
    watched.tap.begin_batch();
    watched.runner.run(kind, {random_input(0, 4, kind, 1), random_input(1, 4, kind, 2)});
    CHECK_THROWS(std::runtime_error, "ffn_moe_weights_norm-0 follows ffn_moe_weights-0",
                 watched.hooks.rethrow());
}

TEST(tap_notices_a_chain_that_shrinks) {
    RouterKind kind;
    kind.normalised = true;
    Watched watched({0}, 8, 3);
    watched.run_batch(kind, {random_input(0, 4, kind, 1)});
    kind.normalised = false;
    CHECK_THROWS(std::runtime_error, "saw 0 of 4 tokens in block 0",
                 watched.run_batch(kind, {random_input(0, 4, kind, 1)}));
}

TEST(tap_clears_counts_and_what_is_not_confirmed) {
    RouterKind kind;
    kind.normalised = true;
    Watched watched({0}, 8, 3);
    watched.run_batch(kind, {random_input(0, 4, kind, 1)});
    watched.runner.run(kind, {random_input(0, 4, kind, 2)});
    watched.tap.clear();
    watched.tap.collect();
    CHECK_EQUAL(watched.tap.tokens_seen()[0], uint64_t{0});
    watched.runner.forget();
    const std::vector<LayerInput> inputs = {random_input(0, 5, kind, 3)};
    watched.run_batch(kind, inputs);
    watched.check(expected_counts(kind, inputs));
    CHECK_EQUAL(watched.runner.wanted().size(), size_t{3});  // the final node is learnt anew
}

TEST(hooks_without_tap_and_mask_want_nothing) {
    RouterHooks idle;
    RouterRunner runner;
    runner.set_callback(&RouterHooks::callback, &idle);
    RouterKind kind;
    kind.bias = std::vector<float>(8, 0.5f);
    runner.run(kind, {random_input(0, 4, kind, 1)});
    CHECK(runner.wanted().empty());
    CHECK(!runner.asked().empty());
    CHECK_EQUAL(runner.n_outputs_computed(), size_t{1});
    idle.rethrow();
}

TEST(tap_refuses_bad_arguments) {
    CHECK_THROWS(std::invalid_argument, "MoE layers", RouterTap({}, 8, 2));
    CHECK_THROWS(std::invalid_argument, "top-k", RouterTap({0, 1}, 8, std::vector<size_t>{2}));
    CHECK_THROWS(std::invalid_argument, "top-k", RouterTap({0, 1}, 8, std::vector<size_t>{2, 9}));
    CHECK_THROWS(std::invalid_argument, "experts", RouterTap({0}, 0, 1));
    CHECK_THROWS(std::invalid_argument, "top-k", RouterTap({0}, 8, 0));
    CHECK_THROWS(std::invalid_argument, "top-k", RouterTap({0}, 8, 9));
    CHECK_THROWS(std::invalid_argument, "ascending", RouterTap({1, 1}, 8, 2));
    CHECK_THROWS(std::invalid_argument, "ascending", RouterTap({2, 1}, 8, 2));
    CHECK_THROWS(std::invalid_argument, "ascending", RouterTap({-1, 1}, 8, 2));
    CHECK_EQUAL(RouterTap({5}, 8, 8).stats().histograms().size(), size_t{64});
}
