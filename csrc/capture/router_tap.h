// Watches the routers of a running model and counts their choices.
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

// How the tap knows which nodes of a layer to read: the weights that multiply the experts' outputs are the
// last node of a short chain whose length depends on the architecture, and so are the outputs. In the first
// graph the tap reads every node of a chain; from then on it reads the last one alone.
//
// Backends reorder the nodes of a graph (Metal and Vulkan do), so nothing here depends on an order other than
// that of the data. A chain is over when the product of weights and outputs comes by, which depends on both.
// What was read counts when the layer's next graph begins or the batch ends; if the graph ended before its
// chains did, it does not count. The ids are read with the weights as long as their memory is sure to hold
// them, else with the product with the down matrices, which reads them last.
class RouterTap {
  public:
    // `blocks`: block indices of the MoE layers, ascending; `top_k`: how many experts each of them chooses
    // for a token, in most models the same. Throws std::invalid_argument.
    RouterTap(std::vector<int> blocks, size_t n_experts, const std::vector<size_t>& top_k);
    RouterTap(const std::vector<int>& blocks, size_t n_experts, size_t top_k)
        : RouterTap(blocks, n_experts, std::vector<size_t>(blocks.size(), top_k)) {}

    // The two halves of llama.cpp's evaluation callback. `read` returns false where the rest of the graph
    // may be left out. Both throw std::runtime_error when the graph is not what it is taken for.
    bool wants(const ggml_tensor* node, RouterNodeName name);
    bool read(const ggml_tensor* node, RouterNodeName name);

    // Also sums the norms of the experts' outputs, with `n_threads` threads. Call before the first graph.
    void watch_outputs(int32_t n_threads);

    // Stop computing once everything of the last layer has been read: right for profiling, where nothing of
    // what follows is used.
    void set_early_end(bool on) { early_end_ = on; }

    // The blocks are all that have routers: one that runs in another block is an error, not somebody else's.
    void set_complete(bool on) { complete_ = on; }

    // Call around each decode: `end_batch` collects, and throws std::runtime_error unless every layer has
    // seen exactly `n_tokens` tokens more. The counts are of no use after that.
    void begin_batch();
    void end_batch(size_t n_tokens);

    // For hosts that do not announce their batches: adds all that was read, where no graph is running; or
    // what is known to be final, where one may be.
    void collect();
    void collect_final();

    // Tokens counted in each layer since construction or `clear`.
    std::vector<uint64_t> tokens_seen() const;
    // Forgets the counts; what was read and not yet counted too; and which nodes were learnt to be final.
    void clear_counts();
    void discard();
    void clear();

    // The ids of all experts that have been found chosen in a block's last graph.
    struct Choices {
        const int32_t* begin;
        const int32_t* end;
    };
    Choices last_choices(int block) const;

    const RoutingStats& stats() const { return stats_; }
    const std::vector<int>& blocks() const { return blocks_; }

  private:
    // One of the chains of which the last node counts.
    struct Chain {
        std::string final_name;  // empty until learnt
        std::string read_name;   // of the last node that was read

        // Whether to read this node, the next of the chain. `was_read`: one has been in this graph.
        bool wants(const char* name, bool was_read) const;
        void learn();
        bool is_learnt() const { return !final_name.empty(); }
    };

    // What a graph was found to hold, [token, k]; memory is kept from graph to graph.
    template <typename Value>
    struct Part {
        std::vector<Value> values;
        size_t n_tokens = 0;
        bool was_read = false;

        // Space for the values of `tokens` tokens.
        Value* fill(size_t tokens, size_t k);
        void forget();
    };

    enum class Stage {
        idle,  // no node of the layer's next graph has come by
        open,  // some have
        over,  // what follows of the graph is not to be read; ends with the product with the down matrices
    };

    struct Layer {
        size_t top_k = 0;
        Chain weights_chain;
        Chain outputs_chain;
        // Of the graph that runs or ran last, until it is counted.
        Stage stage = Stage::idle;
        bool began_with_down = false;  // before the router's first node
        bool down_was_seen = false;
        Part<int32_t> experts;
        Part<float> weights;
        Part<float> norms;              // of outputs, in the order of `experts`
        bool weights_are_over = false;  // what follows of these names is a second bank's
        bool weights_in_input = false;  // the experts' input was weighted, not their outputs

        bool has_second_bank = false;  // in any graph
        uint64_t tokens = 0;           // tokens counted
        uint64_t tokens_before_batch = 0;

        void forget_graph(Stage next);
        // What the layer is in where the rest of the graph is not to be read, if any is left.
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
    void add_outputs(size_t index);

    std::vector<int> blocks_;
    std::vector<size_t> layer_index_;  // by block; or no_layer
    RoutingStats stats_;
    std::vector<Layer> layers_;
    std::vector<char> device_copy_;
    std::optional<NormReader> norm_reader_;
    bool early_end_ = false;
    bool complete_ = false;
};

}  // namespace coe
