#include <random>
#include <vector>

#include "check.h"
#include "llama/sampler.h"

namespace {

constexpr int32_t n_vocab = 3000;

// llama.cpp's samplers on the whole vocabulary.
class WholeSampler {
  public:
    explicit WholeSampler(const coe::SamplingOptions& options)
        : chain_(llama_sampler_chain_init(llama_sampler_chain_default_params())) {
        add(llama_sampler_init_penalties(n_vocab, options.repeat_last_n, options.repeat_penalty, 0.0f, 0.0f));
        if (options.temperature == 0.0f) {
            add(llama_sampler_init_greedy());
            return;
        }
        if (options.top_k > 0) {
            add(llama_sampler_init_top_k(options.top_k));
        }
        add(llama_sampler_init_top_p(options.top_p, 1));
        add(llama_sampler_init_min_p(options.min_p, 1));
        add(llama_sampler_init_temp(options.temperature));
        add(llama_sampler_init_dist(options.seed));
    }
    ~WholeSampler() { llama_sampler_free(chain_); }
    WholeSampler(const WholeSampler&) = delete;
    WholeSampler& operator=(const WholeSampler&) = delete;

    int32_t draw(const std::vector<float>& logits) {
        std::vector<llama_token_data> all;
        for (int32_t token = 0; token < n_vocab; ++token) {
            all.push_back({token, logits[static_cast<size_t>(token)], 0.0f});
        }
        llama_token_data_array candidates = {all.data(), all.size(), -1, false};
        llama_sampler_apply(chain_, &candidates);
        const int32_t token = candidates.data[candidates.selected].id;
        llama_sampler_accept(chain_, token);
        return token;
    }

  private:
    void add(llama_sampler* sampler) { llama_sampler_chain_add(chain_, sampler); }

    llama_sampler* chain_;
};

coe::SamplingOptions options_with(float temperature, int32_t top_k, float penalty, int32_t last_n) {
    coe::SamplingOptions options;
    options.temperature = temperature;
    options.top_k = top_k;
    options.repeat_penalty = penalty;
    options.repeat_last_n = last_n;
    options.min_p = 0.01f;
    options.seed = 5;
    return options;
}

}  // namespace

// A few tokens are much likelier than the others, so that they are repeated and penalised.
TEST(tokens_are_those_that_llama_cpp_draws_from_the_whole_vocabulary) {
    for (const coe::SamplingOptions& options :
         {options_with(0.6f, 40, 1.05f, 64), options_with(1.0f, 5, 1.5f, 8), options_with(1.0f, 40, 0.7f, 64),
          options_with(0.0f, 40, 1.3f, 64), options_with(0.0f, 40, 1.0f, 64), options_with(1.5f, 0, 1.1f, 64),
          options_with(2.0f, 2999, 1.1f, 300), options_with(1.0f, 1, 1.1f, 0)}) {
        coe::Sampler sampler(n_vocab, options);
        WholeSampler whole(options);
        std::mt19937 random(11);
        std::normal_distribution<float> normal;
        std::vector<float> logits(n_vocab);
        for (int step = 0; step < 300; ++step) {
            for (size_t token = 0; token < logits.size(); ++token) {
                logits[token] = normal(random) + (token % 60 == 0 ? 4.0f : -1.0f);
            }
            CHECK_EQUAL(sampler.draw(logits.data()), whole.draw(logits));
        }
    }
}

TEST(the_first_of_equal_tokens_is_taken) {
    const coe::SamplingOptions options = options_with(0.0f, 40, 1.1f, 4);
    coe::Sampler sampler(n_vocab, options);
    WholeSampler whole(options);
    const std::vector<float> logits(n_vocab, 1.0f);
    for (int step = 0; step < 20; ++step) {
        CHECK_EQUAL(sampler.draw(logits.data()), whole.draw(logits));
    }
}
