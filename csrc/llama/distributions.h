// Probabilities of the next token by a row of logits, and the divergence of two rows.
#pragma once

#include <cstdint>

namespace coe {

// Returns the natural logarithm of the probability that softmax of `logits` gives `token`, in double
// precision.
double log_probability(const float* logits, int32_t n_vocab, int32_t token);

// Returns the number to subtract from each logit to get its log-probability, in double precision.
double log_sum_exp(const float* logits, int32_t n_vocab);

// The difference of two rows of logits.
struct Divergence {
    double
        kl;  // sum over tokens of p * (log p - log q), in nats: p softmax of the reference, q of the logits
    bool same_top;  // whether both have the same likeliest token
};
// Compares logits with a reference, whose log_sum_exp is `reference_normaliser`.
Divergence divergence(const float* reference, double reference_normaliser, const float* logits,
                      int32_t n_vocab);

}  // namespace coe
