// What a row of logits says of the next token, and how far two rows are from each other.
#pragma once

#include <cstdint>

namespace coe {

// The natural logarithm of the probability that softmax of `logits` gives `token`, in double precision.
double log_probability(const float* logits, int32_t n_vocab, int32_t token);

// What to take from each logit to have the natural logarithm of its probability, in double precision.
double log_sum_exp(const float* logits, int32_t n_vocab);

struct Divergence {
    double
        kl;  // sum over tokens of p * (log p - log q), in nats: p softmax of the reference, q of the logits
    bool same_top;  // whether both find the same token likeliest
};
// `reference_normaliser`: log_sum_exp of the reference's logits.
Divergence divergence(const float* reference, double reference_normaliser, const float* logits,
                      int32_t n_vocab);

}  // namespace coe
