#include "llama/sampler.h"

#include <stdexcept>

#include "base/parallel.h"
#include "llama/session.h"

namespace coe {

Sampler::Sampler(int32_t n_vocab, const SamplingOptions& options)
    : chain_(llama_sampler_chain_init(llama_sampler_chain_default_params())),
      candidates_(static_cast<size_t>(n_vocab)) {
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

int32_t Sampler::draw(const float* logits) {
    for (size_t token = 0; token < candidates_.size(); ++token) {
        candidates_[token] = {static_cast<llama_token>(token), logits[token], 0.0f};
    }
    llama_token_data_array candidates = {candidates_.data(), candidates_.size(), -1, false};
    llama_sampler_apply(chain_, &candidates);
    const int32_t token = candidates.data[candidates.selected].id;
    llama_sampler_accept(chain_, token);
    return token;
}

std::vector<int32_t> draw_all(Session& session, const std::vector<Sampler*>& samplers,
                              const std::vector<int32_t>& rows) {
    if (samplers.size() != rows.size()) {
        throw std::invalid_argument("each sampler needs a row");
    }
    std::vector<const float*> logits;
    logits.reserve(rows.size());
    for (const int32_t row : rows) {
        logits.push_back(session.logits(row));
    }
    std::vector<int32_t> tokens(samplers.size());
    parallel_for(samplers.size(), session.n_threads(),
                 [&](size_t i) { tokens[i] = samplers[i]->draw(logits[i]); });
    return tokens;
}

}  // namespace coe
