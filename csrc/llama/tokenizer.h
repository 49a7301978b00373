// The tokenizer of a loaded model.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "llama.h"

namespace coe {

class Tokenizer {
  public:
    Tokenizer() = default;
    explicit Tokenizer(const llama_model* model) : model_(model), vocab_(llama_model_get_vocab(model)) {}

    int32_t n_vocab() const;
    // Whether the file has a tokenizer; else it has only a number of tokens.
    bool exists() const;
    // BOS and EOS ids that the model expects around a document, or -1.
    int32_t bos_token() const;
    int32_t eos_token() const;
    std::string chat_template() const;
    // The bytes that a token stands for; none for a control token.
    std::string token_text(int32_t token) const;
    // Whether a token ends a text or a turn.
    bool ends(int32_t token) const { return llama_vocab_is_eog(vocab_, token); }
    // Without BOS and EOS. Special tokens are parsed out of the text only if asked for.
    std::vector<int32_t> tokenize(const std::string& text, bool parse_special) const;

  private:
    const llama_model* model_ = nullptr;
    const llama_vocab* vocab_ = nullptr;
};

}  // namespace coe
