#include "llama/distributions.h"

#include <algorithm>
#include <cmath>

namespace coe {

double log_sum_exp(const float* logits, int32_t n_vocab) {
    const double largest = *std::max_element(logits, logits + n_vocab);
    double sum = 0.0;
    for (int32_t i = 0; i < n_vocab; ++i) {
        sum += std::exp(logits[i] - largest);
    }
    return largest + std::log(sum);
}

double log_probability(const float* logits, int32_t n_vocab, int32_t token) {
    return logits[token] - log_sum_exp(logits, n_vocab);
}

Divergence divergence(const float* reference, double reference_normaliser, const float* logits,
                      int32_t n_vocab) {
    const double normaliser = log_sum_exp(logits, n_vocab);
    double kl = 0.0;
    for (int32_t i = 0; i < n_vocab; ++i) {
        const double log_p = reference[i] - reference_normaliser;
        const double p = std::exp(log_p);
        // Tokens that the reference excludes add nothing, whatever the model's logit is.
        if (p > 0.0) {
            kl += p * (log_p - (logits[i] - normaliser));
        }
    }
    return {kl, std::max_element(reference, reference + n_vocab) - reference ==
                    std::max_element(logits, logits + n_vocab) - logits};
}

}  // namespace coe
