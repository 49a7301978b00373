// Makes dropped experts unselectable in a running model.
#pragma once

#include <cstdint>
#include <vector>

#include "capture/router_nodes.h"
#include "ggml.h"

namespace coe {

// Writes minus infinity over the dropped experts' router logits, before anything reads them: softmax and
// normalisation then see kept experts only, which is what a pruned file computes. The probabilities that
// follow are overwritten too: no selection bias lifts a dropped expert out of minus infinity, and none ties
// with a kept one whose probability is too small to be told from zero.
//
// In most architectures a warm-up of llama.cpp uses all experts, dropped ones too, whatever their scores.
// Their weights are set to zero then: minus infinity would fill the context with NaN, which stays in its
// memory.
class LiveMask {
  public:
    // `kept[i]`: the experts that stay in block `blocks[i]`, ascending. Throws std::invalid_argument.
    void set(const std::vector<int>& blocks, const std::vector<std::vector<int>>& kept, size_t n_experts);
    void clear() { dropped_.clear(); }
    bool active() const { return !dropped_.empty(); }

    bool wants(const ggml_tensor* node, RouterNodeName name) const;
    bool drops_in(int block) const { return dropped_in(block) != nullptr; }
    void apply(ggml_tensor* node, RouterNodeName name);

    // Throws std::runtime_error if a router has chosen an expert that should have been unselectable.
    void check(int block, const int32_t* begin, const int32_t* end) const;

    // Times that the mask was written over a router's logits in each block since the last call; a block
    // whose router never came by is not masked, and the caller must know.
    std::vector<uint64_t> take_applications(const std::vector<int>& blocks);

  private:
    const std::vector<size_t>* dropped_in(int block) const;
    void write_minus_infinity(float* scores, size_t n_values, int block) const;

    size_t n_experts_ = 0;
    std::vector<std::vector<size_t>> dropped_;  // by block
    std::vector<uint64_t> applications_;        // by block
    std::vector<float> device_copy_;
};

}  // namespace coe
