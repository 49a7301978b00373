// A mask in a running model: dropped experts cannot be selected.
#pragma once

#include <cstdint>
#include <vector>

#include "capture/router_nodes.h"
#include "ggml.h"

namespace coe {

// Overwrites the router logits of dropped experts with minus infinity, before they are read. Softmax and
// normalisation then see kept experts only, which is what a pruned file computes. The probabilities that
// follow are overwritten too, so that a selection bias cannot raise a dropped expert above minus infinity,
// and a dropped expert cannot tie with a kept one whose probability rounds to zero.
//
// In most architectures a warm-up of llama.cpp uses all experts, whatever their scores. The weights of
// dropped experts are then set to zero: minus infinity would fill the context with NaN, which stays in its
// memory.
class LiveMask {
  public:
    // Sets the mask. `kept[i]`: the experts that stay in block `blocks[i]`, ascending. Throws
    // std::invalid_argument.
    void set(const std::vector<int>& blocks, const std::vector<std::vector<int>>& kept, size_t n_experts);
    void clear() { dropped_.clear(); }
    bool active() const { return !dropped_.empty(); }

    // Returns whether a node must be overwritten once it is computed.
    bool wants(const ggml_tensor* node, RouterNodeName name) const;
    bool drops_in(int block) const { return dropped_in(block) != nullptr; }
    // Overwrites the dropped experts' values of a node.
    void apply(ggml_tensor* node, RouterNodeName name);

    // Throws std::runtime_error if a router has chosen an expert that should have been unselectable.
    void check(int block, const int32_t* begin, const int32_t* end) const;

    // Returns how often the mask was applied to each block's router since the last call. A block whose router
    // did not run is not masked, which the caller must check.
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
