#include "llama/sampler.h"

#include <algorithm>
#include <functional>
#include <stdexcept>

#include "base/parallel.h"
#include "llama/session.h"

namespace coe {

Sampler::Sampler(int32_t n_vocab, const SamplingOptions& options)
    : n_vocab_(static_cast<size_t>(n_vocab)),
      n_likely_(options.temperature <= 0.0f ? 1 : static_cast<size_t>(std::max(options.top_k, 0))),
      n_recent_(options.repeat_penalty == 1.0f ? 0 : static_cast<size_t>(std::max(options.repeat_last_n, 0))),
      chain_(llama_sampler_chain_init(llama_sampler_chain_default_params())) {
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
        accept(token);
    }
}

void Sampler::accept(int32_t token) {
    llama_sampler_accept(chain_, token);
    if (recent_.size() < n_recent_) {
        recent_.push_back(token);
    } else if (n_recent_ > 0) {
        recent_[oldest_] = token;
        oldest_ = (oldest_ + 1) % n_recent_;
    }
}

int32_t Sampler::draw(const float* logits) {
    candidates_.clear();
    if (n_likely_ > 0 && n_likely_ + recent_.size() < n_vocab_) {
        list_likely(logits);
    }
    if (candidates_.empty()) {
        list_all(logits);
    }
    llama_token_data_array candidates = {candidates_.data(), candidates_.size(), -1, false};
    llama_sampler_apply(chain_, &candidates);
    const int32_t token = candidates.data[candidates.selected].id;
    accept(token);
    return token;
}

void Sampler::list_all(const float* logits) {
    candidates_.reserve(n_vocab_);
    for (size_t token = 0; token < n_vocab_; ++token) {
        candidates_.push_back({static_cast<llama_token>(token), logits[token], 0.0f});
    }
}

// Lists the tokens that can be among the likeliest once penalties are applied, which change the logits of
// recent tokens only: these, and as many more of the largest as the penalties may push out. llama.cpp's
// samplers take some 30 ms to look at a vocabulary of 262,144.
void Sampler::list_likely(const float* logits) {
    const size_t n_largest = n_likely_ + recent_.size();
    largest_.assign(logits, logits + n_largest);
    std::make_heap(largest_.begin(), largest_.end(), std::greater<>{});
    for (size_t token = n_largest; token < n_vocab_; ++token) {
        if (logits[token] > largest_.front()) {
            std::pop_heap(largest_.begin(), largest_.end(), std::greater<>{});
            largest_.back() = logits[token];
            std::push_heap(largest_.begin(), largest_.end(), std::greater<>{});
        }
    }
    const float least = largest_.front();
    for (size_t token = 0; token < n_vocab_; ++token) {
        if (logits[token] >= least) {
            candidates_.push_back({static_cast<llama_token>(token), logits[token], 0.0f});
        }
    }
    for (const int32_t token : recent_) {
        const auto is_token = [token](const llama_token_data& candidate) { return candidate.id == token; };
        if (std::none_of(candidates_.begin(), candidates_.end(), is_token)) {
            candidates_.push_back({token, logits[token], 0.0f});
        }
    }
    // As in a list of all: with equal logits, the first is preferred.
    std::sort(candidates_.begin(), candidates_.end(),
              [](const llama_token_data& a, const llama_token_data& b) { return a.id < b.id; });
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
