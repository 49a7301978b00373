// Sampling of the next token from a model's logits.
#pragma once

#include <cstdint>
#include <vector>

#include "llama.h"

namespace coe {

class Session;

// Options of sampling.
struct SamplingOptions {
    float temperature = 0.6f;  // 0: always take the likeliest token
    int32_t top_k = 40;        // sample from this many of the likeliest tokens; 0: all
    float top_p = 0.95f;       // from the likeliest tokens that together have this probability; 1: all
    float min_p = 0.0f;        // from tokens with at least this share of the likeliest's probability; 0: all
    float repeat_penalty = 1.0f;
    int32_t repeat_last_n = 64;  // number of last tokens that the penalty looks at
    uint32_t seed = 0;
};

// Draws tokens from a model's logits.
class Sampler {
  public:
    Sampler(int32_t n_vocab, const SamplingOptions& options);
    ~Sampler();
    Sampler(const Sampler&) = delete;
    Sampler& operator=(const Sampler&) = delete;

    // Adds earlier tokens, whose repetition is penalised too.
    void accept(const std::vector<int32_t>& tokens);
    // Draws a token from logits, [n_vocab], and adds it to the earlier tokens.
    int32_t draw(const float* logits);

  private:
    void accept(int32_t token);
    void list_all(const float* logits);
    void list_likely(const float* logits);

    const size_t n_vocab_;
    const size_t n_likely_;                     // tokens that are drawn from; 0: all
    const size_t n_recent_;                     // tokens that the penalty looks at
    std::vector<int32_t> recent_;               // a ring of them
    size_t oldest_ = 0;                         // in `recent_`, once it is full
    llama_sampler* chain_;                      // llama.cpp's samplers
    std::vector<llama_token_data> candidates_;  // what they are given
    std::vector<float> largest_;                // a heap
};

// Returns the token that each sampler draws after the last decode of a session: sampler `i` from output row
// `rows[i]`; -1 is the last. Samplers draw in parallel, because a large vocabulary takes milliseconds.
std::vector<int32_t> draw_all(Session& session, const std::vector<Sampler*>& samplers,
                              const std::vector<int32_t>& rows);

}  // namespace coe
