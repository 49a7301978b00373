#include "llama/sampler.h"

#include "llama.h"
#include "llama/session.h"

namespace coe {

Sampler::Sampler(int32_t n_vocab, const SamplingOptions& options)
    : chain_(llama_sampler_chain_init(llama_sampler_chain_default_params())) {
    const auto add = [this](llama_sampler* sampler) { llama_sampler_chain_add(chain_, sampler); };
    add(llama_sampler_init_penalties(n_vocab, options.repeat_last_n, options.repeat_penalty, 0.0f, 0.0f));
    if (options.temperature <= 0.0f) {
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

Sampler::~Sampler() { llama_sampler_free(chain_); }

void Sampler::accept(const std::vector<int32_t>& tokens) {
    for (const int32_t token : tokens) {
        llama_sampler_accept(chain_, token);
    }
}

int32_t Sampler::next(Session& session) { return session.sample(chain_); }

}  // namespace coe
