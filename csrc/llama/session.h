// A model loaded in llama.cpp with one context whose routers can be watched and masked.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "capture/router_hooks.h"
#include "llama.h"
#include "llama/llama_log.h"
#include "llama/memory_use.h"
#include "llama/placement.h"
#include "llama/tokenizer.h"

namespace coe {

struct SessionOptions : PlacementOptions {
    int32_t n_ctx = 512;      // tokens held at once, over all sequences
    int32_t n_batch = 512;    // tokens of one decode, and of one ubatch; at least n_ctx for some models
    int32_t n_sequences = 1;  // sequences held at once
    int32_t n_threads = 1;
    bool f32_kv = false;  // keys and values in F32 instead of F16
    bool mtp = false;     // load the layers that predict further tokens, which no decode runs
    bool simulate =
        false;  // allocate and read no weights: it tokenizes, and tells memory(), but runs nothing
};

class Session {
  public:
    // Throws std::runtime_error with llama.cpp's own reason where the model can't be loaded.
    Session(const std::string& path, const SessionOptions& options);
    ~Session();
    Session(const Session&) = delete;
    Session& operator=(const Session&) = delete;

    // Tokens of one decode: more than was asked for where a model keeps no keys and values (encoders,
    // diffusion models), so that every window must be computed in one go.
    int32_t n_batch() const { return n_batch_; }
    bool has_memory() const { return llama_get_memory(context_) != nullptr; }
    const Tokenizer& tokenizer() const { return tokenizer_; }
    int32_t n_vocab() const { return tokenizer_.n_vocab(); }

    // Starts counting, with `outputs` also the norms of the experts' outputs. Counting ends each graph once
    // the last router, or its experts, have been read.
    void watch(const std::vector<int>& blocks, size_t n_experts, const std::vector<size_t>& top_k,
               bool outputs);
    // Ends counting. If a graph was ended early, all sequences are forgotten: its later splits ran on, and
    // wrote keys, values and states computed from tensors that were never filled.
    void unwatch();
    const RouterTap* tap() const { return tap_.get(); }

    void mask(const std::vector<int>& blocks, const std::vector<std::vector<int>>& kept, size_t n_experts);
    void unmask() { hooks_.mask.clear(); }

    // Forgets all sequences.
    void reset();
    // Runs at most n_batch tokens; arrays of one length. Outputs are computed from row `first_output` on, and
    // of the last row always. Throws std::runtime_error.
    void decode(const std::vector<int32_t>& tokens, const std::vector<int32_t>& positions,
                const std::vector<int32_t>& sequences, size_t first_output);
    // Whether the last decode's graph ended in logits.
    bool has_logits() const { return hooks_.logits_seen && !hooks_.ended_early; }
    // Logits of row `i` of the last decode, [n_vocab].
    const float* logits(int32_t i);
    // The token that a chain of llama.cpp's samplers draws from the last decode's last row, which it accepts.
    int32_t sample(llama_sampler* chain);
    int32_t n_threads() const { return llama_n_threads_batch(context_); }
    std::vector<MemoryUse> memory() const { return memory_use(context_); }

    // Embeddings, from the next decode on: of row `i` of the last decode, [n_embd].
    void want_embeddings(bool on);
    int32_t n_embd() const { return llama_model_n_embd_out(model_); }
    const float* embeddings(int32_t i);

    // Starts or stops recording the operations of each graph; returns those recorded so far.
    std::vector<std::string> record_graph(bool on);

  private:
    void find_what_routers_see();
    // What to do where memory was not enough for a batch, as the end of a message.
    std::string smaller_batch() const;
    void run(const std::vector<int32_t>& tokens, const std::vector<int32_t>& positions,
             const std::vector<int32_t>& sequences, size_t first_output);

    const LogLease lease_;
    llama_model* model_ = nullptr;
    llama_context* context_ = nullptr;
    Tokenizer tokenizer_;
    RouterHooks hooks_;
    std::unique_ptr<RouterTap> tap_;
    std::vector<int> masked_blocks_;
    int32_t n_batch_ = 0;
    const bool simulated_;
    std::vector<llama_seq_id*> sequence_pointers_;
    bool was_ended_early_ = false;  // a graph, since `watch`
    bool router_sees_all_ = false;  // while counting: also tokens whose output nobody asks for
    std::vector<int32_t> sequence_counts_;
    std::vector<int8_t> outputs_;
};

}  // namespace coe
