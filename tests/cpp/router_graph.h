// Runs routers as real ggml graphs on the CPU, with the node names that llama.cpp gives them, and works out
// in plain double precision what they must choose.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "ggml-backend.h"
#include "ggml.h"

namespace coe::tests {

struct RouterKind {
    int n_experts = 8;
    int top_k = 3;
    bool sigmoid = false;             // instead of softmax over all experts
    bool softmax_over_top_k = false;  // instead of any gating before the selection
    bool normalised = false;
    bool scaled = false;       // by 2.5, behind everything else
    bool second_bank = false;  // one more bank of experts, whose choice is half the first's ids
    // Real experts: expert e makes of token t's input (t + 1, 0, ...) the output ((e + 1) (t + 1), 0), then
    // halved, then with (0, e + 1) added to it.
    bool experts = false;
    bool experts_scaled = false;
    bool experts_biased = false;
    bool weights_in_input = false;  // times the router's weight, instead of the output
    bool by_table = false;          // ids looked up by token (0, 1, ...): those of expected_table
    std::vector<float> bias;        // selects, but does not weight; [n_experts] or none
};

// What one layer's router sees: logits are [token, expert].
struct LayerInput {
    int block;
    size_t n_tokens;
    std::vector<float> logits;
};

// The ids that a router by table gives `n_tokens` tokens, [token, rank].
std::vector<int32_t> expected_table(const RouterKind& kind, size_t n_tokens);

// Distinct logits in random order.
LayerInput random_input(int block, size_t n_tokens, const RouterKind& kind, unsigned seed);

// Histograms and sums of weights as [layer, expert, rank].
struct Counts {
    std::vector<int64_t> histograms;
    std::vector<double> weight_sum;
    std::vector<double> norm_sum;  // [layer, expert]; of real experts
    std::vector<double> weighted_norm_sum;
};

// The choices of all tokens of the inputs, each of which counts for layer `layers[i]`.
Counts expected_counts(const RouterKind& kind, const std::vector<LayerInput>& inputs,
                       const std::vector<size_t>& layers, size_t n_layers);
// The same where input i counts for layer i.
Counts expected_counts(const RouterKind& kind, const std::vector<LayerInput>& inputs);

// Whether sums of floats are what they must be.
void check_sums(const std::vector<double>& sums, const std::vector<double>& expected);

void check_counts(const std::vector<int64_t>& histograms, const std::vector<double>& weight_sum,
                  const Counts& expected);

class RouterRunner {
  public:
    RouterRunner();
    ~RouterRunner();
    RouterRunner(const RouterRunner&) = delete;
    RouterRunner& operator=(const RouterRunner&) = delete;

    void set_callback(ggml_backend_sched_eval_callback callback, void* user_data);

    // Runs one graph with a router for each input, in their order. Each is followed by its experts, if they
    // are real, and by a node "ffn_moe_weighted-N" (or "ffn_moe_out-N") that uses the choices as the experts
    // would.
    void run(const RouterKind& kind, const std::vector<LayerInput>& inputs);

    // Since the last `forget`: the nodes that the callback was asked about and those it wanted, and how many
    // of the nodes behind a router have really been computed.
    const std::vector<std::string>& asked() const { return asked_; }
    const std::vector<std::string>& wanted() const { return wanted_; }
    size_t n_outputs_computed() const { return n_outputs_computed_; }
    void forget();

  private:
    static bool receive(ggml_tensor* node, bool ask, void* self);
    static void compute_output(ggml_tensor* output, const ggml_tensor* weights, const ggml_tensor* ids,
                               int thread, int n_threads, void* self);

    ggml_backend_t backend_ = nullptr;
    ggml_backend_sched_t scheduler_ = nullptr;
    ggml_backend_sched_eval_callback callback_ = nullptr;
    void* user_data_ = nullptr;
    std::vector<std::string> asked_;
    std::vector<std::string> wanted_;
    size_t n_outputs_computed_ = 0;
};

}  // namespace coe::tests
