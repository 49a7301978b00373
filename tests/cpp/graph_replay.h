// Runs a graph of llama.cpp again on the CPU, with real data, but in another order of its nodes and cut into
// splits: what a callback sees on backends that reorder nodes, without having one.
#pragma once

#include <cstddef>
#include <deque>
#include <map>
#include <vector>

#include "ggml-backend.h"
#include "ggml.h"

namespace coe::tests {

// One graph as llama.cpp was about to run it. What the graph was given as input or may write to, keys and
// values for example, is kept as it was before. Tensors are known by the addresses that they had in
// llama.cpp, where others may be by now.
class RecordedGraph {
  public:
    // Adds the next node. Before anything of the graph has been computed.
    void add(const ggml_tensor* node);

    struct Leaf {
        ggml_tensor tensor;
        std::vector<char> bytes;  // none of weights
    };

    size_t size() const { return nodes_.size(); }
    const ggml_tensor& node(size_t i) const { return nodes_[i]; }
    const ggml_tensor* address(size_t i) const { return addresses_[i]; }
    // The number of a node, or size() for a leaf.
    size_t index(const ggml_tensor* address) const;
    // The tensor whose memory another one shares: itself, but for views.
    const ggml_tensor* owner(const ggml_tensor* address) const;
    const ggml_tensor* owner(size_t i) const { return owner(addresses_[i]); }
    const std::map<const ggml_tensor*, Leaf>& leaves() const { return leaves_; }

  private:
    void add_leaf(const ggml_tensor* tensor);

    std::deque<ggml_tensor> nodes_;
    std::vector<const ggml_tensor*> addresses_;
    std::map<const ggml_tensor*, size_t> indices_;
    std::map<const ggml_tensor*, Leaf> leaves_;
};

// Whether a node computes nothing.
bool is_empty(const ggml_tensor& node);

// The nodes of a graph in some order, cut before some places into splits, which run on two backends in turn.
struct Schedule {
    std::vector<size_t> order;
    std::vector<size_t> cuts;  // ascending
};

// How often a callback wanted a node, and how many nodes were computed.
struct ReplayCounts {
    size_t n_stops = 0;
    size_t n_computed = 0;
};

// Runs a graph with a callback as ggml_backend_sched does. A split copies what it reads from the other
// backend when it begins. Memory is overwritten once the last node that reads it has run, for an allocator
// could then give it to another tensor.
ReplayCounts replay(const RecordedGraph& graph, const Schedule& schedule, ggml_backend_t cpu,
                    ggml_backend_sched_eval_callback callback, void* user_data);

}  // namespace coe::tests
