// The C library as a host uses it, but for the model: its callback watches and masks ggml graphs.
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "check.h"
#include "coe_native.h"
#include "router_graph.h"

namespace {

using coe::tests::check_counts;
using coe::tests::expected_counts;
using coe::tests::LayerInput;
using coe::tests::random_input;
using coe::tests::RouterKind;
using coe::tests::RouterRunner;

struct Host {
    std::unique_ptr<coe_profiler, decltype(&coe_profiler_free)> owned;
    coe_profiler* profiler;
    RouterRunner runner;
    std::vector<int64_t> histograms;
    std::vector<double> weight_sum;
    std::vector<uint64_t> tokens;

    Host(const std::vector<int32_t>& blocks, size_t n_experts, size_t top_k)
        : owned(coe_profiler_new(blocks.data(), blocks.size(), n_experts, top_k), &coe_profiler_free),
          profiler(owned.get()),
          histograms(blocks.size() * n_experts * top_k),
          weight_sum(histograms.size()),
          tokens(blocks.size()) {
        CHECK(profiler != nullptr);
        runner.set_callback(&coe_profiler_callback, profiler);
    }

    int32_t read_counts() { return coe_profiler_counts(profiler, histograms.data(), weight_sum.data()); }
    int32_t read_tokens() { return coe_profiler_tokens(profiler, tokens.data()); }
    std::string error() const { return coe_profiler_error(profiler); }
};

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
    CHECK_EQUAL(host.read_tokens(), COE_OK);
    CHECK(host.tokens == (std::vector<uint64_t>{27, 3}));
    CHECK_EQUAL(host.read_counts(), COE_OK);
    check_counts(host.histograms, host.weight_sum, expected_counts(kind, all, {0, 1, 0, 1, 0, 1}, 2));

    CHECK_EQUAL(coe_profiler_reset(host.profiler), COE_OK);
    const std::vector<LayerInput> inputs = {random_input(0, 4, kind, 20), random_input(2, 4, kind, 21)};
    host.runner.run(kind, inputs);
    CHECK_EQUAL(host.read_counts(), COE_OK);
    check_counts(host.histograms, host.weight_sum, expected_counts(kind, inputs));
}

TEST(c_api_masks_graphs) {
    const RouterKind kind;
    Host host({0, 2}, 8, 3);
    const std::vector<int32_t> kept = {0, 1, 2, 3, 4, 5, 6, 7};  // of block 0, then of block 2
    CHECK_EQUAL(coe_profiler_mask(host.profiler, kept.data(), 4), COE_OK);
    std::vector<LayerInput> inputs = {random_input(0, 9, kind, 1), random_input(2, 9, kind, 2)};
    host.runner.run(kind, inputs);
    CHECK_EQUAL(host.read_counts(), COE_OK);
    std::vector<LayerInput> masked = inputs;
    for (size_t i = 0; i < 9 * 8; ++i) {
        masked[i % 8 < 4 ? 1 : 0].logits[i] = -std::numeric_limits<float>::infinity();
    }
    check_counts(host.histograms, host.weight_sum, expected_counts(kind, masked));

    CHECK_EQUAL(coe_profiler_mask(host.profiler, nullptr, 0), COE_OK);
    CHECK_EQUAL(coe_profiler_reset(host.profiler), COE_OK);
    host.runner.run(kind, inputs);
    CHECK_EQUAL(host.read_counts(), COE_OK);
    check_counts(host.histograms, host.weight_sum, expected_counts(kind, inputs));
}

TEST(c_api_reports_what_went_wrong_in_a_graph) {
    const RouterKind kind;
    Host host({0}, 8, 2);  // the graph chooses three experts
    host.runner.run(kind, {random_input(0, 4, kind, 1)});
    CHECK_EQUAL(host.read_tokens(), COE_FAILED);
    CHECK(host.error().find("chooses 3 experts") != std::string::npos);

    CHECK_EQUAL(host.read_counts(), COE_FAILED);  // what is lost stays lost until the counts are forgotten

    host.runner.run(kind, {random_input(0, 4, kind, 1)});
    CHECK_EQUAL(coe_profiler_reset(host.profiler), COE_OK);
    CHECK_EQUAL(host.read_tokens(), COE_OK);
    CHECK_EQUAL(host.error(), "");
    CHECK_EQUAL(host.tokens[0], uint64_t{0});
}
