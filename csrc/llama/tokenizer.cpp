#include "llama/tokenizer.h"

#include <algorithm>
#include <limits>
#include <stdexcept>

namespace coe {

int32_t Tokenizer::n_vocab() const { return llama_vocab_n_tokens(vocab_); }
bool Tokenizer::exists() const { return llama_vocab_type(vocab_) != LLAMA_VOCAB_TYPE_NONE; }

int32_t Tokenizer::bos_token() const {
    return exists() && llama_vocab_get_add_bos(vocab_) ? llama_vocab_bos(vocab_) : -1;
}

int32_t Tokenizer::eos_token() const {
    return exists() && llama_vocab_get_add_eos(vocab_) ? llama_vocab_eos(vocab_) : -1;
}

std::string Tokenizer::chat_template() const {
    const char* text = llama_model_chat_template(model_, nullptr);
    return text == nullptr ? "" : text;
}

std::string Tokenizer::token_text(int32_t token) const {
    if (!exists()) {
        throw std::runtime_error("the model has no tokenizer, so tokens have no texts");
    }
    if (token < 0 || token >= n_vocab()) {
        throw std::invalid_argument("token " + std::to_string(token) + " is outside the vocabulary of " +
                                    std::to_string(n_vocab()));
    }
    std::string text(64, '\0');
    int32_t length =
        llama_token_to_piece(vocab_, token, text.data(), static_cast<int32_t>(text.size()), 0, false);
    if (length < 0) {
        text.resize(static_cast<size_t>(-length));
        length =
            llama_token_to_piece(vocab_, token, text.data(), static_cast<int32_t>(text.size()), 0, false);
    }
    text.resize(static_cast<size_t>(std::max(length, 0)));
    return text;
}

std::vector<int32_t> Tokenizer::tokenize(const std::string& text, bool parse_special) const {
    if (text.size() > static_cast<size_t>(std::numeric_limits<int32_t>::max()) - 8) {
        throw std::invalid_argument("a text of " + std::to_string(text.size()) +
                                    " bytes is too long for llama.cpp's tokenizers; split it");
    }
    // A tokenizer never makes more tokens than bytes, apart from a prefix of its own.
    std::vector<int32_t> tokens(text.size() + 8);
    const int32_t n_tokens =
        llama_tokenize(vocab_, text.data(), static_cast<int32_t>(text.size()), tokens.data(),
                       static_cast<int32_t>(tokens.size()), false, parse_special);
    if (n_tokens < 0) {
        throw std::runtime_error("the model's tokenizer refused a text of " + std::to_string(text.size()) +
                                 " bytes");
    }
    tokens.resize(static_cast<size_t>(n_tokens));
    return tokens;
}

}  // namespace coe
