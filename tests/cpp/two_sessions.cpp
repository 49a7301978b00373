// Two threads profile two models at once, each with its own session: their counts are those of one after the
// other. Run under ThreadSanitizer, which sees what they share.
//
//     coe_two_sessions MODEL BLOCKS EXPERTS TOP_K MODEL BLOCKS EXPERTS TOP_K
//
// BLOCKS: every block from 0 on has experts. What llama.cpp refuses to load is loaded beside it.
#include <cstdio>
#include <cstdlib>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "llama/session.h"

namespace {

struct Model {
    std::string path;
    std::vector<int> blocks;
    size_t n_experts;
    std::vector<size_t> top_k;
};

Model parse(char** arguments) {
    Model model{arguments[0], {}, static_cast<size_t>(std::atoi(arguments[2])), {}};
    for (int block = 0; block < std::atoi(arguments[1]); ++block) {
        model.blocks.push_back(block);
        model.top_k.push_back(static_cast<size_t>(std::atoi(arguments[3])));
    }
    return model;
}

struct Counts {
    std::vector<int64_t> histograms;
    std::vector<double> weight_sum;
    std::vector<double> norm_sum;
    std::string refusal;
};

Counts profile(const Model& model) {
    constexpr int32_t n_tokens = 32;
    coe::SessionOptions options;
    options.n_ctx = options.n_batch = n_tokens;
    options.n_gpu_layers = 0;
    Counts counts;
    try {
        const coe::Session refused(model.path + " that is not there", options);
    } catch (const std::runtime_error& error) {
        counts.refusal = error.what();
    }
    coe::Session session(model.path, options);
    session.watch(model.blocks, model.n_experts, model.top_k, true, true);
    std::mt19937 random(7);
    for (int round = 0; round < 4; ++round) {
        std::vector<int32_t> tokens;
        std::vector<int32_t> positions;
        for (int32_t i = 0; i < n_tokens; ++i) {
            tokens.push_back(static_cast<int32_t>(random() % static_cast<unsigned>(session.n_vocab())));
            positions.push_back(i);
        }
        session.reset();
        session.decode(tokens, positions, std::vector<int32_t>(tokens.size(), 0), 0);
    }
    counts.histograms = session.tap()->stats().histograms();
    counts.weight_sum = session.tap()->stats().weight_sum().sums();
    counts.norm_sum = session.tap()->stats().norm_sum().sums();
    return counts;
}

bool equal(const Counts& one, const Counts& other) {
    return one.histograms == other.histograms && one.weight_sum == other.weight_sum &&
           one.norm_sum == other.norm_sum && one.refusal == other.refusal &&
           one.refusal.find("cannot load it") != std::string::npos;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 9) {
        std::fprintf(stderr, "usage: %s MODEL BLOCKS EXPERTS TOP_K MODEL BLOCKS EXPERTS TOP_K\n", argv[0]);
        return 2;
    }
    const Model models[] = {parse(argv + 1), parse(argv + 5)};
    Counts together[2];
    std::thread first([&] { together[0] = profile(models[0]); });
    std::thread second([&] { together[1] = profile(models[1]); });
    first.join();
    second.join();
    for (int i = 0; i < 2; ++i) {
        if (!equal(together[i], profile(models[i]))) {
            std::fprintf(stderr, "%s: counts differ from those of a run alone\n", models[i].path.c_str());
            return 1;
        }
    }
    std::puts("equal");
    return 0;
}
