// A model that is loaded in llama.cpp, with one context whose routers can be watched and masked.
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

// Options of a session.
struct SessionOptions : PlacementOptions {
    int32_t n_ctx = 512;         // tokens held at once, in all sequences
    int32_t n_batch = 512;       // tokens of one decode, and of one ubatch; at least n_ctx for some models
    int32_t n_batch_on_gpu = 0;  // the same where layers run on a GPU that has the memory; 0: n_batch
    int32_t n_sequences = 1;     // maximum sequences held at once
    int32_t n_threads = 1;
    bool f32_kv = false;    // keys and values in F32 instead of F16
    bool mtp = false;       // load MTP layers, which no decode runs
    bool simulate = false;  // allocate and read no weights: only the tokenizer and memory() can be used
    // Number of tokens, if their texts are not to be read, which takes long for a large vocabulary; 0: read
    // them.
    int32_t n_nameless_tokens = 0;
    std::string vocab_size_key;  // the metadata key of that number: ARCHITECTURE.vocab_size
};

// A loaded model and its context.
class Session {
  public:
    // Loads a model. Throws std::runtime_error, with llama.cpp's reason, if it cannot be loaded.
    Session(const std::string& path, const SessionOptions& options);
    ~Session();
    Session(const Session&) = delete;
    Session& operator=(const Session&) = delete;

    // Returns the maximum tokens of one decode. It is larger than n_batch on a GPU, and if a model keeps no
    // keys and values (encoders, diffusion models), because it must compute each window at once.
    int32_t n_batch() const { return n_batch_; }
    bool has_memory() const { return llama_get_memory(context_) != nullptr; }
    const Tokenizer& tokenizer() const { return tokenizer_; }
    int32_t n_vocab() const { return tokenizer_.n_vocab(); }

    // Starts counting, with `outputs` also activation norms, and with `inputs` also the squared inputs of all
    // matrices. Each graph ends once everything that counts has been read.
    void watch(const std::vector<int>& blocks, size_t n_experts, const std::vector<size_t>& top_k,
               bool outputs, bool inputs);
    // Stops counting. If a graph was ended early, all sequences are forgotten: its later splits still ran,
    // and wrote keys, values and states from tensors that were never computed.
    void unwatch();
    const RouterTap* tap() const { return tap_.get(); }
    const InputTap* inputs() const { return inputs_.get(); }

    void mask(const std::vector<int>& blocks, const std::vector<std::vector<int>>& kept, size_t n_experts);
    void unmask() { hooks_.mask.clear(); }

    // Forgets all sequences.
    void reset();
    // Forgets one sequence. Throws std::runtime_error if the model's memory cannot.
    void forget(int32_t sequence);
    // Runs at most n_batch tokens; all arrays have the same length. Outputs are computed from row
    // `first_output` on, and always of the last row. Throws std::runtime_error.
    void decode(const std::vector<int32_t>& tokens, const std::vector<int32_t>& positions,
                const std::vector<int32_t>& sequences, size_t first_output);
    // Returns whether the last decode computed logits.
    bool has_logits() const { return hooks_.logits_seen && !hooks_.ended_early; }
    // Returns the logits of row `i` of the last decode, [n_vocab].
    const float* logits(int32_t i);
    int32_t n_threads() const { return llama_n_threads_batch(context_); }
    std::vector<MemoryUse> memory() const { return memory_use(context_); }

    // Sets whether embeddings are computed, from the next decode on. `embeddings` returns those of row `i` of
    // the last decode, [n_embd].
    void want_embeddings(bool on);
    int32_t n_embd() const { return llama_model_n_embd_out(model_); }
    const float* embeddings(int32_t i);

    // Starts or stops recording the operations of each graph. Returns those recorded so far.
    std::vector<std::string> record_graph(bool on);

  private:
    void find_what_routers_see();
    // Returns advice if memory was not enough for a batch, as the end of a message.
    std::string smaller_batch() const;
    void run(const std::vector<int32_t>& tokens, const std::vector<int32_t>& positions,
             const std::vector<int32_t>& sequences, size_t first_output);

    const LogLease lease_;
    llama_model* model_ = nullptr;
    llama_context* context_ = nullptr;
    Tokenizer tokenizer_;
    RouterHooks hooks_;
    std::unique_ptr<RouterTap> tap_;
    std::unique_ptr<InputTap> inputs_;
    std::vector<int> masked_blocks_;
    int32_t n_batch_ = 0;
    const bool simulated_;
    std::vector<llama_seq_id*> sequence_pointers_;
    bool was_ended_early_ = false;  // whether a graph was, since `watch`
    bool router_sees_all_ = false;  // while counting: even tokens whose output is not requested
    std::vector<int32_t> sequence_counts_;
    std::vector<int8_t> outputs_;
};

}  // namespace coe
