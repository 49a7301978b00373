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
    // Returns whether the file has a tokenizer, not only a number of tokens.
    bool exists() const;
    // Return the ids of BOS and EOS that the model expects around a document, or -1.
    int32_t bos_token() const;
    int32_t eos_token() const;
    std::string chat_template() const;
    // Returns the bytes of a token; none for a control token.
    std::string token_text(int32_t token) const;
    // Returns whether a token ends a text or a turn.
    bool ends(int32_t token) const { return llama_vocab_is_eog(vocab_, token); }
    // Returns the tokens of a text, without BOS and EOS. Special tokens in it are parsed only on request.
    std::vector<int32_t> tokenize(const std::string& text, bool parse_special) const;

  private:
    const llama_model* model_ = nullptr;
    const llama_vocab* vocab_ = nullptr;
};

}  // namespace coe
