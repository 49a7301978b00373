#include "llama/session.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <mutex>
#include <new>
#include <stdexcept>
#include <utility>

#include "llama/backends.h"
#include "llama/crash.h"

namespace coe {

namespace {

// Returns the options for the longest context that can be made, found by halving; "" if there is none. Trying
// is the only way, because only the backends know how much memory is free.
std::string possible_context(llama_model* model, llama_context_params params) {
    const uint32_t n_batch = params.n_batch;
    for (params.n_ctx /= 2; params.n_ctx >= 32; params.n_ctx /= 2) {
        params.n_batch = params.n_ubatch = std::min(n_batch, params.n_ctx);
        params.n_seq_max = std::min(params.n_seq_max, params.n_batch);
        if (llama_context* context = llama_init_from_model(model, params)) {
            llama_free(context);
            const std::string batch =
                params.n_batch < n_batch ? " --batch " + std::to_string(params.n_batch) : "";
            return "--ctx " + std::to_string(params.n_ctx) + batch;
        }
    }
    return "";
}

// Returns metadata with which llama.cpp reads no texts of tokens, or none.
std::vector<llama_model_kv_override> without_texts(const SessionOptions& options) {
    if (options.n_nameless_tokens == 0) {
        return {};
    }
    std::vector<llama_model_kv_override> found(3);  // an empty key ends the list
    const auto name = [](llama_model_kv_override& entry, const std::string& key) {
        if (key.size() >= sizeof(entry.key)) {
            throw std::invalid_argument("the key " + key + " is too long");
        }
        std::copy(key.begin(), key.end(), entry.key);
    };
    name(found[0], "tokenizer.ggml.model");
    found[0].tag = LLAMA_KV_OVERRIDE_TYPE_STR;
    const std::string none = "none";
    std::copy(none.begin(), none.end(), found[0].val_str);
    name(found[1], options.vocab_size_key);
    found[1].tag = LLAMA_KV_OVERRIDE_TYPE_INT;
    found[1].val_i64 = options.n_nameless_tokens;
    return found;
}

}  // namespace

Session::Session(const std::string& path, const SessionOptions& options)
    : n_batch_(options.n_batch), simulated_(options.simulate) {
    const LogCapture log;
    start_backends();
    set_crash_subject(path);

    llama_model_params model_params = llama_model_default_params();
    model_params.n_gpu_layers = options.n_gpu_layers;
    WeightPlacement placement(options);
    model_params.devices = placement.devices();
    model_params.tensor_buft_overrides = placement.overrides();
    model_params.use_extra_bufts = placement.repack();
    model_params.load_mtp = options.mtp;
    if (options.simulate) {
        model_params.no_alloc = true;
        model_params.load_mode = LLAMA_LOAD_MODE_NONE;
    }
    const std::vector<llama_model_kv_override> overrides = without_texts(options);
    if (!overrides.empty()) {
        model_params.kv_overrides = overrides.data();
    }
    model_ = llama_model_load_from_file(path.c_str(), model_params);
    if (model_ == nullptr) {
        throw std::runtime_error("llama.cpp cannot load it: " + log.reason());
    }
    tokenizer_ = Tokenizer(model_);

    llama_context_params params = llama_context_default_params();
    params.n_ctx = static_cast<uint32_t>(options.n_ctx);
    params.n_batch = static_cast<uint32_t>(options.n_batch);
    params.n_ubatch = static_cast<uint32_t>(options.n_batch);
    params.n_seq_max = static_cast<uint32_t>(options.n_sequences);
    params.n_threads = options.n_threads;
    params.n_threads_batch = options.n_threads;
    params.kv_unified = true;
    params.swa_full = false;  // layers with a sliding window keep no more than it: nothing here goes back
    if (options.f32_kv) {
        params.type_k = params.type_v = GGML_TYPE_F32;
        // Flash attention would still round keys and values to F16.
        params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    }
    params.pooling_type = LLAMA_POOLING_TYPE_NONE;  // embeddings are per token
    params.no_perf = true;
    params.cb_eval = &RouterHooks::callback;
    params.cb_eval_user_data = &hooks_;
    if (placement.on_gpu() && options.n_batch_on_gpu > options.n_batch) {
        llama_context_params larger = params;
        larger.n_batch = larger.n_ubatch = static_cast<uint32_t>(options.n_batch_on_gpu);
        larger.n_ctx = std::max(params.n_ctx, larger.n_batch);
        context_ = llama_init_from_model(model_, larger);
        if (context_ != nullptr) {
            n_batch_ = options.n_batch_on_gpu;
        }
    }
    if (context_ == nullptr) {
        context_ = llama_init_from_model(model_, params);
    }
    if (context_ != nullptr && !has_memory() && n_batch_ < options.n_ctx) {
        llama_free(context_);
        n_batch_ = options.n_ctx;
        params.n_batch = params.n_ubatch = params.n_ctx;
        context_ = llama_init_from_model(model_, params);
    }
    if (context_ == nullptr) {
        const std::string reason = log.reason();
        const std::string possible = possible_context(model_, params);
        llama_model_free(model_);
        throw std::runtime_error("llama.cpp cannot make a context of " + std::to_string(params.n_ctx) +
                                 " tokens: " + reason +
                                 (possible.empty() ? "" : "; " + possible + " would fit"));
    }
}

Session::~Session() {
    const LogCapture log;  // llama.cpp reports buffer sizes even here
    llama_free(context_);
    llama_model_free(model_);
}

void Session::watch(const std::vector<int>& blocks, size_t n_experts, const std::vector<size_t>& top_k,
                    bool outputs, bool inputs) {
    tap_ = std::make_unique<RouterTap>(blocks, n_experts, top_k);
    if (outputs) {
        tap_->watch_outputs(n_threads());
    }
    tap_->set_early_end(true);
    tap_->set_complete(true);
    hooks_.tap = tap_.get();
    inputs_ = inputs ? std::make_unique<InputTap>(n_threads()) : nullptr;
    hooks_.inputs = inputs_.get();
    try {
        find_what_routers_see();
    } catch (...) {
        unwatch();
        throw;
    }
}

// On most architectures the last layer runs only for rows whose output is requested. Where it runs for all,
// one requested row is enough, which saves memory for logits: half a gigabyte with a vocabulary of 262,144
// and a batch of 512. Two test tokens tell which is the case.
void Session::find_what_routers_see() {
    router_sees_all_ = false;
    if (!has_memory() || n_batch_ < 2) {
        return;
    }
    reset();
    if (inputs_) {
        inputs_->begin_batch();
    }
    run({0, 0}, {0, 1}, {0, 0}, 1);
    if (inputs_) {
        inputs_->end_batch();
        inputs_->clear_sums();
    }
    tap_->collect();
    const std::vector<uint64_t> seen = tap_->tokens_seen();
    router_sees_all_ = std::all_of(seen.begin(), seen.end(), [](uint64_t tokens) { return tokens == 2; });
    tap_->discard();
    reset();
}

void Session::unwatch() {
    if (was_ended_early_ && has_memory()) {
        // Clear the data too: a NaN in it would spread to later sequences, though its weight is zero.
        llama_memory_clear(llama_get_memory(context_), true);
    }
    was_ended_early_ = false;
    tap_.reset();
    inputs_.reset();
    hooks_.tap = nullptr;
    hooks_.inputs = nullptr;
}

void Session::mask(const std::vector<int>& blocks, const std::vector<std::vector<int>>& kept,
                   size_t n_experts) {
    hooks_.mask.set(blocks, kept, n_experts);
    masked_blocks_ = blocks;
}

void Session::reset() {
    if (has_memory()) {
        llama_memory_clear(llama_get_memory(context_), false);
    }
}

void Session::forget(int32_t sequence) {
    if (has_memory() && !llama_memory_seq_rm(llama_get_memory(context_), sequence, -1, -1)) {
        throw std::runtime_error("llama.cpp could not forget sequence " + std::to_string(sequence));
    }
}

void Session::decode(const std::vector<int32_t>& tokens, const std::vector<int32_t>& positions,
                     const std::vector<int32_t>& sequences, size_t first_output) {
    const size_t n_tokens = tokens.size();
    if (simulated_) {
        throw std::logic_error("a simulated model has no weights, so it cannot run tokens");
    }
    if (n_tokens == 0 || n_tokens > static_cast<size_t>(n_batch_) || positions.size() != n_tokens ||
        sequences.size() != n_tokens) {
        throw std::invalid_argument("a batch holds 1 to " + std::to_string(n_batch_) +
                                    " tokens, each with a position and a sequence");
    }
    const int32_t vocabulary = n_vocab();
    for (const int32_t token : tokens) {
        if (token < 0 || token >= vocabulary) {
            throw std::invalid_argument("token " + std::to_string(token) + " is outside the vocabulary of " +
                                        std::to_string(vocabulary));
        }
    }
    if (tap_) {
        tap_->begin_batch();
    }
    if (inputs_) {
        inputs_->begin_batch();
    }
    if (hooks_.mask.active()) {
        hooks_.mask.take_applications(masked_blocks_);
    }
    run(tokens, positions, sequences, tap_ ? (router_sees_all_ ? n_tokens : 0) : first_output);
    if (tap_) {
        tap_->end_batch(n_tokens);
    }
    if (inputs_) {
        inputs_->end_batch();
    }
    if (hooks_.mask.active()) {
        const std::vector<uint64_t> applications = hooks_.mask.take_applications(masked_blocks_);
        for (size_t i = 0; i < applications.size(); ++i) {
            if (applications[i] == 0 && hooks_.mask.drops_in(masked_blocks_[i])) {
                throw std::runtime_error("the router of block " + std::to_string(masked_blocks_[i]) +
                                         " did not run, so the mask had no effect");
            }
        }
    }
}

std::string Session::smaller_batch() const {
    if (n_batch_ < 2) {
        return "";
    }
    const std::string half = std::to_string(n_batch_ / 2);
    // A model without memory between batches must run a whole window in one.
    return (has_memory() ? "; " : "; --ctx " + half + " ") + "--batch " + half +
           " needs about half of the compute memory";
}

void Session::run(const std::vector<int32_t>& tokens, const std::vector<int32_t>& positions,
                  const std::vector<int32_t>& sequences, size_t first_output) {
    const size_t n_tokens = tokens.size();
    // llama.cpp takes mutable pointers but does not change the data.
    std::vector<int32_t>& mutable_sequences = const_cast<std::vector<int32_t>&>(sequences);
    sequence_pointers_.resize(n_tokens);
    for (size_t i = 0; i < n_tokens; ++i) {
        sequence_pointers_[i] = &mutable_sequences[i];
    }
    sequence_counts_.assign(n_tokens, 1);
    outputs_.assign(n_tokens, 0);
    std::fill(outputs_.begin() + static_cast<std::ptrdiff_t>(std::min(first_output, n_tokens - 1)),
              outputs_.end(), int8_t{1});
    const llama_batch batch = {
        static_cast<int32_t>(n_tokens),
        const_cast<int32_t*>(tokens.data()),
        nullptr,
        const_cast<int32_t*>(positions.data()),
        sequence_counts_.data(),
        sequence_pointers_.data(),
        outputs_.data(),
    };
    hooks_.logits_seen = hooks_.ended_early = false;
    hooks_.error = nullptr;
    const LogCapture log;
    int32_t status = 0;
    std::string reason;
    try {
        status = has_memory() ? llama_decode(context_, batch) : llama_encode(context_, batch);
        reason = log.reason();
    } catch (const std::bad_alloc&) {  // llama.cpp's C functions may throw this
        status = -2;
        reason = "out of memory";
    }
    was_ended_early_ = was_ended_early_ || hooks_.ended_early;
    hooks_.rethrow();
    if (status != 0) {
        throw std::runtime_error("llama.cpp could not run a batch of " + std::to_string(n_tokens) +
                                 " tokens (status " + std::to_string(status) + ": " + reason + ")" +
                                 smaller_batch());
    }
}

const float* Session::logits(int32_t i) {
    if (!has_logits()) {
        throw std::invalid_argument(
            "there are no logits: the model is an encoder, or its graph was ended early");
    }
    const float* row = llama_get_logits_ith(context_, i);
    if (row == nullptr) {
        throw std::runtime_error("llama.cpp kept no logits for row " + std::to_string(i));
    }
    return row;
}

void Session::want_embeddings(bool on) {
    const LogCapture log;  // llama.cpp logs even this
    llama_set_embeddings(context_, on);
}

const float* Session::embeddings(int32_t i) {
    if (hooks_.ended_early) {
        throw std::invalid_argument("there are no embeddings: the graph was ended early");
    }
    const float* row = llama_get_embeddings_ith(context_, i);
    if (row == nullptr) {
        throw std::runtime_error("llama.cpp kept no embedding for row " + std::to_string(i));
    }
    return row;
}

std::vector<std::string> Session::record_graph(bool on) {
    hooks_.records = on;
    return std::exchange(hooks_.graph, {});
}

}  // namespace coe
