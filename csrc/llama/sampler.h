// Draws the next token from a model's logits.
#pragma once

#include <cstdint>
#include <vector>

struct llama_sampler;

namespace coe {

class Session;

struct SamplingOptions {
    float temperature = 0.6f;  // 0: always the likeliest token
    int32_t top_k = 40;        // among so many likeliest; 0: all
    float top_p = 0.95f;       // among the likeliest that have this probability together; 1: all
    float min_p = 0.0f;        // among those with this share of the likeliest's probability; 0: all
    float repeat_penalty = 1.0f;
    int32_t repeat_last_n = 64;  // tokens back that the penalty looks at
    uint32_t seed = 0;
};

class Sampler {
  public:
    Sampler(int32_t n_vocab, const SamplingOptions& options);
    ~Sampler();
    Sampler(const Sampler&) = delete;
    Sampler& operator=(const Sampler&) = delete;

    // Tokens that were there before: what repeats them is penalised too.
    void accept(const std::vector<int32_t>& tokens);
    // The token that follows the last decode of a session.
    int32_t next(Session& session);

  private:
    llama_sampler* chain_;
};

}  // namespace coe
