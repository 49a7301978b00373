// The C library as a host uses it, but for the model: its callback watches and masks ggml graphs.
#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "allocation_watch.h"
#include "capture/live_profiler.h"
#include "check.h"
#include "coe_native.h"
#include "router_graph.h"

namespace {

using coe::tests::check_counts;
using coe::tests::Counts;
using coe::tests::expected_counts;
using coe::tests::LayerInput;
using coe::tests::random_input;
using coe::tests::RouterKind;
using coe::tests::RouterRunner;

struct Profile {
    std::unique_ptr<coe_profile, decltype(&coe_profile_free)> owned;

    explicit Profile(coe_profiler* profiler) : owned(coe_profiler_snapshot(profiler), &coe_profile_free) {}

    bool exists() const { return owned != nullptr; }
    std::vector<uint64_t> tokens() const {
        const uint64_t* first = coe_profile_tokens(owned.get());
        return {first, first + coe_profile_n_blocks(owned.get())};
    }
    void check(const Counts& expected) const {
        CHECK(exists());
        const size_t n_cells = coe_profile_n_blocks(owned.get()) * coe_profile_n_experts(owned.get()) *
                               coe_profile_top_k(owned.get());
        const int64_t* histograms = coe_profile_histograms(owned.get());
        const double* weight_sum = coe_profile_weight_sum(owned.get());
        check_counts({histograms, histograms + n_cells}, {weight_sum, weight_sum + n_cells}, expected);
    }
};

struct Host {
    std::unique_ptr<coe_profiler, decltype(&coe_profiler_free)> owned;
    coe_profiler* profiler;
    RouterRunner runner;

    Host(const std::vector<int32_t>& blocks, size_t n_experts, int32_t top_k)
        : owned(nullptr, &coe_profiler_free), profiler(nullptr) {
        const std::vector<int32_t> choices(blocks.size(), top_k);
        owned.reset(coe_profiler_new(blocks.data(), choices.data(), blocks.size(), n_experts, 1, 1));
        profiler = owned.get();
        CHECK(profiler != nullptr);
        runner.set_callback(&coe_profiler_callback, profiler);
    }

    Profile counts() const { return Profile(profiler); }
};

// A host's own callback: notes what it is shown, and may end the graph.
struct Watcher {
    std::string wanted;
    std::vector<std::string> asked;
    std::vector<std::string> shown;
    bool goes_on = true;

    static bool callback(ggml_tensor* node, bool ask, void* self) {
        auto& watcher = *static_cast<Watcher*>(self);
        if (ask) {
            watcher.asked.emplace_back(node->name);
            return watcher.wanted == node->name;
        }
        watcher.shown.emplace_back(node->name);
        return watcher.goes_on;
    }
};

std::vector<LayerInput> masked(std::vector<LayerInput> inputs, size_t n_kept) {
    for (LayerInput& input : inputs) {
        for (size_t i = 0; i < input.logits.size(); ++i) {
            if (i % 8 >= n_kept) {
                input.logits[i] = -std::numeric_limits<float>::infinity();
            }
        }
    }
    return inputs;
}

}  // namespace

TEST(c_api_counts_graphs) {
    RouterKind kind;
    kind.normalised = true;
    Host host({0, 2}, 8, 3);
    std::vector<LayerInput> all;
    for (unsigned graph = 0; graph < 3; ++graph) {
        // The last layer runs for the rows only whose logits the host asks for.
        const std::vector<LayerInput> inputs = {random_input(0, 9, kind, graph),
                                                random_input(2, 1, kind, 10 + graph)};
        host.runner.run(kind, inputs);
        all.insert(all.end(), inputs.begin(), inputs.end());
    }
    CHECK_EQUAL(host.runner.n_outputs_computed(), size_t{6});  // a host's graphs run to their ends
    const Profile profile = host.counts();
    profile.check(expected_counts(kind, all, {0, 1, 0, 1, 0, 1}, 2));
    CHECK(profile.tokens() == (std::vector<uint64_t>{27, 3}));

    // Looking changes nothing, and what was looked at stays as it was.
    const std::vector<LayerInput> more = {random_input(0, 4, kind, 20), random_input(2, 4, kind, 21)};
    host.runner.run(kind, more);
    all.insert(all.end(), more.begin(), more.end());
    host.counts().check(expected_counts(kind, all, {0, 1, 0, 1, 0, 1, 0, 1}, 2));
    CHECK(profile.tokens() == (std::vector<uint64_t>{27, 3}));

    CHECK_EQUAL(coe_profiler_reset(host.profiler), COE_OK);
    CHECK(host.counts().tokens() == (std::vector<uint64_t>{0, 0}));
    host.runner.run(kind, more);
    host.counts().check(expected_counts(kind, more));
}

TEST(c_api_adds_profiles) {
    const RouterKind kind;
    Host one({0, 2}, 8, 3);
    Host other({0, 2}, 8, 3);
    const std::vector<LayerInput> first = {random_input(0, 9, kind, 1), random_input(2, 9, kind, 2)};
    const std::vector<LayerInput> second = {random_input(0, 5, kind, 3), random_input(2, 2, kind, 4)};
    one.runner.run(kind, first);
    other.runner.run(kind, second);
    const Profile sum = one.counts();
    const Profile addend = other.counts();
    CHECK_EQUAL(coe_profile_merge(sum.owned.get(), addend.owned.get()), COE_OK);
    sum.check(expected_counts(kind, {first[0], first[1], second[0], second[1]}, {0, 1, 0, 1}, 2));
    CHECK(sum.tokens() == (std::vector<uint64_t>{14, 11}));
    CHECK(addend.tokens() == (std::vector<uint64_t>{5, 2}));
}

TEST(c_api_masks_graphs) {
    const RouterKind kind;
    Host host({0, 2}, 8, 3);
    const std::vector<int32_t> kept = {0, 1, 2, 3, 0, 1, 2, 3};  // of block 0, then of block 2
    CHECK_EQUAL(coe_profiler_mask(host.profiler, kept.data(), 4), COE_OK);
    const std::vector<LayerInput> inputs = {random_input(0, 9, kind, 1), random_input(2, 9, kind, 2)};
    host.runner.run(kind, inputs);
    host.runner.run(kind, {inputs[0]});
    host.counts().check(expected_counts(kind, masked({inputs[0], inputs[1], inputs[0]}, 4), {0, 1, 0}, 2));
    std::vector<uint64_t> applications(2);
    for (int look = 0; look < 2; ++look) {
        CHECK_EQUAL(coe_profiler_mask_applications(host.profiler, applications.data()), COE_OK);
        CHECK(applications == (std::vector<uint64_t>{2, 1}));
    }

    CHECK_EQUAL(coe_profiler_clear_mask(host.profiler), COE_OK);
    CHECK_EQUAL(coe_profiler_reset(host.profiler), COE_OK);
    host.runner.run(kind, inputs);
    host.counts().check(expected_counts(kind, inputs));
}

TEST(c_api_notices_a_mask_that_does_not_hold) {
    RouterKind kind;
    kind.by_table = true;  // ids that no logits decide
    Host host({0}, 8, 3);
    const std::vector<int32_t> kept = {0, 1, 2, 3};
    CHECK_EQUAL(coe_profiler_mask(host.profiler, kept.data(), 4), COE_OK);
    host.runner.run(kind, {random_input(0, 4, kind, 1)});
    CHECK(!host.counts().exists());
    CHECK(std::string(coe_last_error()).find("which the mask drops") != std::string::npos);
}

TEST(c_api_counts_no_warm_up) {
    RouterKind all_experts;
    all_experts.top_k = all_experts.n_experts;
    const RouterKind kind;
    Host host({0}, 8, 3);
    const std::vector<LayerInput> inputs = {random_input(0, 9, kind, 1)};
    host.runner.run(all_experts, {random_input(0, 2, kind, 2)});
    host.runner.run(kind, inputs);
    host.runner.run(all_experts, {random_input(0, 2, kind, 3)});
    host.counts().check(expected_counts(kind, inputs));
}

TEST(c_api_serves_the_hosts_own_callback) {
    RouterKind kind;
    kind.normalised = true;
    Host host({0, 2}, 8, 3);
    Watcher watcher;
    watcher.wanted = "ffn_moe_weighted-0";
    CHECK_EQUAL(coe_profiler_chain(host.profiler, &Watcher::callback, &watcher), COE_OK);
    const std::vector<LayerInput> inputs = {random_input(0, 9, kind, 1), random_input(2, 9, kind, 2)};
    host.runner.run(kind, inputs);
    CHECK(watcher.asked == host.runner.asked());
    CHECK(watcher.shown == std::vector<std::string>{"ffn_moe_weighted-0"});
    // A node that both want is shown to both.
    watcher.wanted = "ffn_moe_logits-0";
    const std::vector<int32_t> kept = {0, 1, 2, 3, 0, 1, 2, 3};
    CHECK_EQUAL(coe_profiler_mask(host.profiler, kept.data(), 4), COE_OK);
    host.runner.run(kind, inputs);
    CHECK(watcher.shown == (std::vector<std::string>{"ffn_moe_weighted-0", "ffn_moe_logits-0"}));
    const std::vector<LayerInput> dropped = masked(inputs, 4);
    host.counts().check(
        expected_counts(kind, {inputs[0], inputs[1], dropped[0], dropped[1]}, {0, 1, 0, 1}, 2));
    // The host may end a graph, as it could without a profiler.
    watcher.wanted = "ffn_moe_weighted-0";
    watcher.goes_on = false;
    host.runner.forget();
    host.runner.run(kind, inputs);
    CHECK_EQUAL(host.runner.n_outputs_computed(), size_t{1});
    CHECK_EQUAL(coe_profiler_chain(host.profiler, nullptr, nullptr), COE_OK);
    host.runner.run(kind, inputs);
    CHECK_EQUAL(watcher.shown.size(), size_t{3});
}

TEST(c_api_answers_in_the_middle_of_the_first_graph) {
    // At each node, before it is known which is the last of the weights' chain: what is counted then is
    // final.
    RouterKind kind;
    kind.normalised = true;
    Host host({0, 2}, 8, 3);
    struct Looker {
        Host* host;
        size_t n_looks = 0;

        static bool callback(ggml_tensor*, bool ask, void* self) {
            auto& looker = *static_cast<Looker*>(self);
            const Profile profile = looker.host->counts();
            const double* weight_sum = coe_profile_weight_sum(profile.owned.get());
            for (size_t layer = 0; layer < 2; ++layer) {
                const double sum =
                    std::accumulate(weight_sum + layer * 24, weight_sum + (layer + 1) * 24, 0.0);
                CHECK(std::fabs(sum - static_cast<double>(profile.tokens()[layer])) < 1e-4);
            }
            ++looker.n_looks;
            return !ask;
        }
    };
    Looker looker{&host};
    CHECK_EQUAL(coe_profiler_chain(host.profiler, &Looker::callback, &looker), COE_OK);
    const std::vector<LayerInput> inputs = {random_input(0, 9, kind, 1), random_input(2, 9, kind, 2)};
    host.runner.run(kind, inputs);
    host.runner.run(kind, inputs);
    CHECK(looker.n_looks > 40);
    host.counts().check(expected_counts(kind, {inputs[0], inputs[1], inputs[0], inputs[1]}, {0, 1, 0, 1}, 2));
}

TEST(c_api_changes_masks_between_graphs) {
    // Set and taken away in the middle of graphs: each graph is masked as a whole, or not at all.
    const RouterKind kind;
    Host host({0, 2}, 8, 3);
    static const std::vector<int32_t> kept = {0, 1, 2, 3, 0, 1, 2, 3};
    struct Changer {
        coe_profiler* profiler;
        bool sets;

        static bool callback(ggml_tensor* node, bool ask, void* self) {
            const auto& changer = *static_cast<Changer*>(self);
            if (ask && std::string(node->name) == "ffn_moe_probs-0") {
                CHECK_EQUAL(changer.sets ? coe_profiler_mask(changer.profiler, kept.data(), 4)
                                         : coe_profiler_clear_mask(changer.profiler),
                            COE_OK);
            }
            return !ask;
        }
    };
    Changer changer{host.profiler, true};
    CHECK_EQUAL(coe_profiler_chain(host.profiler, &Changer::callback, &changer), COE_OK);
    // Unlike graphs: a layer that is masked in the wrong one is seen.
    std::vector<LayerInput> seen;
    for (unsigned graph = 0; graph < 3; ++graph) {
        changer.sets = graph == 0;
        const std::vector<LayerInput> inputs = {random_input(0, 9, kind, 10 + graph),
                                                random_input(2, 9, kind, 20 + graph)};
        host.runner.run(kind, inputs);
        const std::vector<LayerInput> computed = graph == 1 ? masked(inputs, 4) : inputs;
        seen.insert(seen.end(), computed.begin(), computed.end());
    }
    host.counts().check(expected_counts(kind, seen, {0, 1, 0, 1, 0, 1}, 2));
}

TEST(c_api_masks_whatever_goes_wrong_with_the_counts) {
    const RouterKind kind;
    Host host({0}, 8, 2);  // the graph chooses three experts
    const std::vector<int32_t> kept = {0, 1, 2};
    CHECK_EQUAL(coe_profiler_mask(host.profiler, kept.data(), 3), COE_OK);
    for (int graph = 0; graph < 3; ++graph) {
        host.runner.run(kind, {random_input(0, 4, kind, 1)});
    }
    CHECK(!host.counts().exists());
    std::vector<uint64_t> applications(1);
    CHECK_EQUAL(coe_profiler_mask_applications(host.profiler, applications.data()), COE_OK);
    CHECK_EQUAL(applications[0], uint64_t{3});
}

TEST(live_profilers_go_on_after_what_went_wrong) {
    // What was looked at before stays; what was counted since is lost.
    const RouterKind kind;
    RouterKind other = kind;
    other.top_k = 2;
    coe::LiveProfiler live({0}, 8, {3});
    RouterRunner runner;
    runner.set_callback(&coe::LiveProfiler::callback, &live);
    const std::vector<LayerInput> inputs = {random_input(0, 9, kind, 1)};
    runner.run(kind, inputs);
    CHECK_EQUAL(live.counts(0).tokens[0], uint64_t{9});
    runner.run(kind, inputs);
    runner.run(other, inputs);
    CHECK_THROWS(std::runtime_error, "chooses 2 experts", live.counts(0));
    CHECK_THROWS(std::runtime_error, "chooses 2 experts", live.counts(0));
    live.recover();
    const coe::LiveCounts kept = live.counts(0);
    check_counts(kept.stats.histograms(), kept.stats.weight_sum().sums(), expected_counts(kind, inputs));
    runner.run(kind, inputs);
    CHECK_EQUAL(live.counts(0).tokens[0], uint64_t{18});
}

TEST(live_profilers_change_parts_whatever_went_wrong) {
    // What runs after a change of parts does not count for the old part, though the change reports an error.
    const RouterKind kind;
    RouterKind other = kind;
    other.top_k = 2;
    coe::LiveProfiler live({0}, 8, {3}, 2);
    RouterRunner runner;
    runner.set_callback(&coe::LiveProfiler::callback, &live);
    const std::vector<LayerInput> inputs = {random_input(0, 9, kind, 1)};
    runner.run(other, inputs);
    CHECK_THROWS(std::runtime_error, "chooses 2 experts", live.select(1));
    live.recover();
    runner.run(kind, inputs);
    CHECK_EQUAL(live.counts(0).tokens[0], uint64_t{0});
    CHECK_EQUAL(live.counts(1).tokens[0], uint64_t{9});
}

TEST(live_profilers_of_announced_decodes_count_whole_ones) {
    // In the middle of a decode, at every node and from another thread: the counts of the decodes before it.
    RouterKind kind;
    kind.normalised = true;
    coe::LiveProfiler live({0, 2}, 8, {3, 3});
    RouterRunner runner;
    runner.set_callback(&coe::LiveProfiler::callback, &live);
    struct Looker {
        coe::LiveProfiler* live;
        uint64_t expected = 0;
        bool is_on = true;

        static bool callback(ggml_tensor*, bool ask, void* self) {
            const auto& looker = *static_cast<Looker*>(self);
            if (!looker.is_on) {
                return !ask;
            }
            std::vector<uint64_t> tokens;
            std::thread([&] { tokens = looker.live->counts(0).tokens; }).join();
            CHECK(tokens == (std::vector<uint64_t>{looker.expected, looker.expected}));
            return !ask;
        }
    };
    Looker looker{&live};
    live.chain(&Looker::callback, &looker);
    const std::vector<LayerInput> inputs = {random_input(0, 9, kind, 1), random_input(2, 9, kind, 2)};
    for (uint64_t n_graphs = 1; n_graphs <= 3; ++n_graphs) {
        live.begin_decode();
        for (uint64_t graph = 0; graph < n_graphs; ++graph) {
            looker.is_on = n_graphs < 3 || graph == 2;  // the last time in the third graph alone
            runner.run(kind, inputs);
        }
        live.end_decode();
        looker.expected += 9 * n_graphs;
        if (n_graphs != 2) {  // what ran before a decode of several graphs has not been looked at
            CHECK_EQUAL(live.counts(0).tokens[1], looker.expected);
        }
    }
    // An error is kept for after the decode.
    RouterKind other = kind;
    other.top_k = 2;
    live.begin_decode();
    runner.run(other, inputs);
    CHECK_EQUAL(live.counts(0).tokens[0], looker.expected);
    live.end_decode();
    CHECK_THROWS(std::runtime_error, "chooses 2 experts", live.counts(0));
}

TEST(c_api_masks_a_warm_up) {
    // All experts are used in it, those that the mask drops with no weight, so that nothing is computed from
    // minus infinity.
    RouterKind softmax;
    softmax.top_k = softmax.n_experts;
    softmax.experts = true;
    RouterKind sigmoid = softmax;
    sigmoid.sigmoid = sigmoid.normalised = true;
    RouterKind late_softmax = softmax;
    late_softmax.softmax_over_top_k = true;
    for (const RouterKind& kind : {softmax, sigmoid, late_softmax}) {
        Host host({0}, 8, 3);
        const std::vector<int32_t> kept = {0, 1, 2, 3};
        CHECK_EQUAL(coe_profiler_mask(host.profiler, kept.data(), 4), COE_OK);
        struct Outputs {
            size_t n_seen = 0;

            static bool callback(ggml_tensor* node, bool ask, void* self) {
                const bool is_weighted = std::string(node->name) == "ffn_moe_weighted-0";
                if (!ask && is_weighted) {
                    // Of each token half of the experts' outputs, [n_embd, k, n_tokens], are zero.
                    const auto* values = static_cast<const float*>(node->data);
                    const auto width = static_cast<size_t>(node->ne[0]);
                    const auto n_rows = static_cast<size_t>(node->ne[1] * node->ne[2]);
                    size_t n_zero = 0;
                    for (size_t row = 0; row < n_rows; ++row) {
                        CHECK(std::isfinite(values[row * width]));
                        n_zero += values[row * width] == 0.0f ? 1 : 0;
                    }
                    CHECK_EQUAL(n_zero, n_rows / 2);
                    static_cast<Outputs*>(self)->n_seen += 1;
                }
                return !ask || is_weighted;
            }
        };
        Outputs outputs;
        CHECK_EQUAL(coe_profiler_chain(host.profiler, &Outputs::callback, &outputs), COE_OK);
        host.runner.run(kind, {random_input(0, 2, kind, 2)});
        CHECK_EQUAL(outputs.n_seen, size_t{1});
        CHECK(host.counts().tokens() == std::vector<uint64_t>{0});
    }
}

TEST(c_api_counts_nothing_of_a_graph_that_ended_in_the_middle) {
    // The first one too, from which it learns which weights are final.
    RouterKind kind;
    kind.normalised = true;
    Host host({0, 2}, 8, 3);
    const std::vector<LayerInput> inputs = {random_input(0, 9, kind, 1), random_input(2, 9, kind, 2)};
    for (const char* end : {"ffn_moe_topk-0", "ffn_moe_weights-0", "ffn_moe_weights_norm-0"}) {
        Watcher watcher;
        watcher.wanted = end;
        watcher.goes_on = false;
        CHECK_EQUAL(coe_profiler_chain(host.profiler, &Watcher::callback, &watcher), COE_OK);
        host.runner.run(kind, inputs);
    }
    CHECK_EQUAL(coe_profiler_chain(host.profiler, nullptr, nullptr), COE_OK);
    host.runner.run(kind, inputs);
    host.counts().check(expected_counts(kind, inputs));
}

TEST(live_profilers_leave_out_a_decode_in_which_they_are_reset) {
    RouterKind kind;
    kind.normalised = true;
    const std::vector<LayerInput> inputs = {random_input(0, 9, kind, 1), random_input(2, 9, kind, 2)};
    for (const char* moment :
         {"ffn_moe_logits-0", "ffn_moe_weights-0", "ffn_moe_weighted-0", "ffn_moe_logits-2"}) {
        coe::LiveProfiler live({0, 2}, 8, {3, 3}, 2);
        RouterRunner runner;
        runner.set_callback(&coe::LiveProfiler::callback, &live);
        struct Resetter {
            coe::LiveProfiler* live;
            std::string moment;

            static bool callback(ggml_tensor* node, bool ask, void* self) {
                const auto& resetter = *static_cast<Resetter*>(self);
                if (ask && resetter.moment == node->name) {
                    resetter.live->reset();
                    resetter.live->select(1);  // from the next decode on
                }
                return !ask;
            }
        };
        Resetter resetter{&live, moment};
        for (int decode = 0; decode < 2; ++decode) {
            live.begin_decode();
            runner.run(kind, inputs);
            live.end_decode();
        }
        live.chain(&Resetter::callback, &resetter);
        live.begin_decode();
        runner.run(kind, inputs);
        live.end_decode();
        live.chain(nullptr, nullptr);
        CHECK(live.counts(0).tokens == (std::vector<uint64_t>{0, 0}));
        live.begin_decode();
        runner.run(kind, inputs);
        live.end_decode();
        CHECK(live.counts(1).tokens == (std::vector<uint64_t>{9, 9}));
    }
}

TEST(c_api_holds_masks_to_the_groups_that_it_is_told) {
    const int32_t block = 0;
    const int32_t top_k = 2;
    coe_profiler* profiler = coe_profiler_new(&block, &top_k, 1, 8, 2, 1);
    CHECK(profiler != nullptr);
    const std::vector<int32_t> uneven = {0, 1, 2, 4};
    CHECK_EQUAL(coe_profiler_mask(profiler, uneven.data(), 4), COE_INVALID_ARGUMENT);
    CHECK(std::string(coe_last_error()).find("groups of experts") != std::string::npos);
    const std::vector<int32_t> even = {0, 1, 4, 6};
    CHECK_EQUAL(coe_profiler_mask(profiler, even.data(), 4), COE_OK);
    coe_profiler_free(profiler);
}

TEST(c_api_reports_that_there_is_no_memory) {
    // Wherever it runs out, for the error's own text too: that is an error, and never the end of the process.
    const int32_t block = 0;
    const int32_t top_k = 9;
    size_t n_refused = 0;
    for (const size_t n_experts : {size_t{8}, size_t{64}}) {  // a refused argument, and one that is fine
        coe_profiler* profiler = nullptr;
        for (size_t n_allocations = 0; n_allocations < 200 && profiler == nullptr; ++n_allocations) {
            std::string error;
            // A thread of its own, which keeps no memory of earlier errors' texts.
            std::thread([&] {
                {
                    const coe::tests::NoMemoryAfter limit(n_allocations);
                    profiler = coe_profiler_new(&block, &top_k, 1, n_experts, 1, 1);
                }
                error = coe_last_error();
            }).join();
            CHECK((profiler == nullptr) == !error.empty());
            n_refused += error == "out of memory" ? 1 : 0;
        }
        CHECK((profiler != nullptr) == (n_experts == 64));
        coe_profiler_free(profiler);
    }
    CHECK(n_refused > 10);
}

TEST(c_api_answers_while_graphs_run) {
    const RouterKind kind;
    Host host({0, 2}, 8, 3);
    constexpr int n_graphs = 50;
    const std::vector<LayerInput> inputs = {random_input(0, 9, kind, 1), random_input(2, 9, kind, 2)};
    uint64_t last = 0;
    std::thread other([&] {
        while (last < 9 * n_graphs) {
            const Profile profile = host.counts();
            const uint64_t tokens = profile.tokens()[0];
            last = tokens >= last ? tokens : 9 * n_graphs + 1;
        }
    });
    for (int graph = 0; graph < n_graphs; ++graph) {
        host.runner.run(kind, inputs);
    }
    other.join();
    CHECK_EQUAL(last, uint64_t{9 * n_graphs});
    CHECK(host.counts().tokens() == (std::vector<uint64_t>{9 * n_graphs, 9 * n_graphs}));
}

TEST(c_api_reports_what_went_wrong_in_a_graph) {
    const RouterKind kind;
    Host host({0}, 8, 2);  // the graph chooses three experts
    host.runner.run(kind, {random_input(0, 4, kind, 1)});
    CHECK(!host.counts().exists());
    CHECK(std::string(coe_last_error()).find("chooses 3 experts") != std::string::npos);

    host.runner.run(kind, {random_input(0, 4, kind, 1)});
    CHECK(!host.counts().exists());  // what is lost stays lost until the counts are forgotten
    CHECK(std::string(coe_last_error()).find("chooses 3 experts") != std::string::npos);

    CHECK_EQUAL(coe_profiler_reset(host.profiler), COE_OK);
    CHECK_EQUAL(std::string(coe_last_error()), "");
    CHECK(host.counts().tokens() == std::vector<uint64_t>{0});
}
