// Makes dropped experts unselectable in a running model.
#pragma once

#include <cstdint>
#include <vector>

#include "ggml.h"
#include "router_nodes.h"

namespace coe {

// Writes minus infinity over the dropped experts' router logits, before anything reads them: softmax, top-k
// and normalisation then see kept experts only, which is what a pruned file computes. Where a selection bias
// is added to the probabilities, the biased ones are overwritten too, lest the bias lift a dropped expert.
class LiveMask {
  public:
    // `kept[i]`: the experts that stay in block `blocks[i]`, ascending. Throws std::invalid_argument.
    void set(const std::vector<int>& blocks, const std::vector<std::vector<int>>& kept, size_t n_experts);
    void clear() { dropped_.clear(); }
    bool active() const { return !dropped_.empty(); }

    bool wants(RouterNodeName name) const;
    void apply(ggml_tensor* node, RouterNodeName name);

    // Times that the mask was written over a router's logits in each block since the last call; a block
    // whose router never came by is not masked, and the caller must know.
    std::vector<uint64_t> take_applications(const std::vector<int>& blocks);

  private:
    const std::vector<size_t>* dropped_in(int block) const;

    size_t n_experts_ = 0;
    std::vector<std::vector<size_t>> dropped_;  // by block
    std::vector<uint64_t> applications_;        // by block
    std::vector<float> device_copy_;
};

}  // namespace coe
