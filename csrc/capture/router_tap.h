// The tap that watches a running model's routers and counts their choices.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "capture/norm_reader.h"
#include "capture/router_nodes.h"
#include "capture/routing_stats.h"
#include "ggml.h"

namespace coe {

// Which nodes of a layer the tap reads: the weights that multiply the experts' outputs are the last node of a
// short chain, whose length depends on the architecture, and so are the outputs. In the first graph the tap
// reads every node of a chain; from then on it reads only the last one.
//
// Some backends reorder the nodes of a graph (Metal, Vulkan), so nothing here depends on an order other than
// that of the data. A chain ends when the product of weights and outputs runs, which depends on both. What
// was read is counted when the layer's next graph begins or the batch ends. It is not counted if the graph
// ended before its chains. The ids are read with the weights if their memory is sure to be intact, else with
// the product with the down matrices, which is their last reader.
class RouterTap {
  public:
    // Takes the block indices of the MoE layers, ascending, and the number of experts that each of them
    // chooses for a token, which is the same in most models. Throws std::invalid_argument.
    RouterTap(std::vector<int> blocks, size_t n_experts, const std::vector<size_t>& top_k);
    RouterTap(const std::vector<int>& blocks, size_t n_experts, size_t top_k)
        : RouterTap(blocks, n_experts, std::vector<size_t>(blocks.size(), top_k)) {}

    // The two halves of llama.cpp's evaluation callback. `read` returns false if the tap needs nothing of the
    // rest of the graph. Both throw std::runtime_error if the graph is not as expected.
    bool wants(const ggml_tensor* node, RouterNodeName name);
    bool read(const ggml_tensor* node, RouterNodeName name);

    // Sums activation norms too, with `n_threads` threads. Call before the first graph.
    void watch_outputs(int32_t n_threads);

    // Sets whether a graph ends once all of the last layer has been read: for profiling, which does not use
    // the rest.
    void set_early_end(bool on) { early_end_ = on; }

    // Sets whether the blocks are all that have routers. If so, a router in another block is an error.
    void set_complete(bool on) { complete_ = on; }

    // Call before and after each decode. `end_batch` collects, and throws std::runtime_error unless every
    // layer has seen exactly `n_tokens` more tokens; the counts are invalid then.
    void begin_batch();
    void end_batch(size_t n_tokens);

    // For hosts that do not announce their batches. `collect` adds all that was read, and needs that no graph
    // is running; `collect_final` adds what is known to be final.
    void collect();
    void collect_final();

    // For tokens that the host may reject. While held, tokens are kept instead of counted; `hold` forgets
    // those that were kept before. `count_held` counts those before the n-th that was kept, unless they are
    // counted already.
    void hold(bool on);
    void count_held(size_t n);

    // Returns the tokens counted in each layer since construction or `clear`.
    std::vector<uint64_t> tokens_seen() const;
    // Forget the counts (`clear_counts`), also what was read and not yet counted (`discard`), and also which
    // nodes were found to be final (`clear`).
    void clear_counts();
    void discard();
    void clear();

    // The ids of all choices in a block's last graph.
    struct Choices {
        const int32_t* begin;
        const int32_t* end;
    };
    Choices last_choices(int block) const;

    const RoutingStats& stats() const { return stats_; }
    const std::vector<int>& blocks() const { return blocks_; }

  private:
    // A chain of nodes whose last one is read.
    struct Chain {
        std::string final_name;  // empty until learnt
        std::string read_name;   // name of the last node that was read

        // Returns whether to read this node, the next of the chain. `was_read`: one was read in this graph.
        bool wants(const char* name, bool was_read) const;
        void learn();
        bool is_learnt() const { return !final_name.empty(); }
    };

    // Values that were read from a graph, [token, k]. Memory is reused for the next graph.
    template <typename Value>
    struct Part {
        std::vector<Value> values;
        size_t n_tokens = 0;
        bool was_read = false;

        // Returns space for the values of `tokens` tokens.
        Value* fill(size_t tokens, size_t k);
        void forget();
    };

    enum class Stage {
        idle,  // no node of the layer's next graph has run
        open,  // some have run
        over,  // the rest of the graph is not read, until the product with the down matrices
    };

    struct Layer {
        size_t top_k = 0;
        Chain weights_chain;
        Chain outputs_chain;
        // State of the current or last graph, until it is counted.
        Stage stage = Stage::idle;
        bool began_with_down = false;  // before the router's first node
        bool down_was_seen = false;
        Part<int32_t> experts;
        Part<float> weights;
        Part<float> norms;              // of outputs, in the order of `experts`
        bool weights_are_over = false;  // later nodes of these names are a second bank's
        bool weights_in_input = false;  // the experts' input was weighted, not their outputs

        // Choices of tokens that are held, [token, k], and how many of these tokens are counted.
        std::vector<int32_t> held_experts;
        std::vector<float> held_weights;
        std::vector<float> held_norms;  // if outputs are watched
        size_t n_held_counted = 0;

        bool has_second_bank = false;       // in any graph
        bool outputs_are_weighted = false;  // in any graph: norms of outputs contain the weights
        uint64_t tokens = 0;                // tokens counted
        uint64_t tokens_before_batch = 0;

        void forget_graph(Stage next);
        // Returns the stage in which the rest of the graph, if any, is not read.
        Stage stage_of_rest() const {
            return stage == Stage::idle || down_was_seen ? Stage::idle : Stage::over;
        }
    };

    static constexpr size_t no_layer = static_cast<size_t>(-1);
    size_t layer_of(int block) const;
    void begin_graph(size_t index);
    bool wants_weights(const ggml_tensor* node, RouterNodeName name);
    bool wants_down(const ggml_tensor* node, size_t index);
    bool wants_outputs(const ggml_tensor* node, const Layer& layer) const;
    static void see_weighted(Layer& layer);
    void read_weights(const ggml_tensor* node, RouterNodeName name, Layer& layer);
    void read_experts(const ggml_tensor* ids, RouterNodeName name, Layer& layer);
    void read_outputs(const ggml_tensor* node, RouterNodeName name, Layer& layer);
    bool is_whole(const Layer& layer) const;
    void count(size_t index);
    void check_outputs(Layer& layer);
    void hold_tokens(Layer& layer);
    void add_token(size_t index, int32_t* experts, float* weights, const float* norms);

    std::vector<int> blocks_;
    std::vector<size_t> layer_index_;  // by block; or no_layer
    RoutingStats stats_;
    std::vector<Layer> layers_;
    std::vector<char> device_copy_;
    std::optional<NormReader> norm_reader_;
    bool holds_ = false;
    bool early_end_ = false;
    bool complete_ = false;
};

}  // namespace coe
