// The one place that knows what a model's file calls the tensors of its experts and routers.
#pragma once

#include <cstddef>
#include <optional>
#include <string>

namespace coe {

enum class TensorKind {
    other,
    router,         // the router's matrix: one row for each expert
    router_part,    // the router's bias, and biases that only select
    weights,        // the experts' weights and biases: where they are zero, so is the output
    scales,         // scales of quantised experts
    expert_table,   // from tokens to experts (DeepSeek 4)
    group_experts,  // experts that belong to several others (GroveMoE)
    other_experts,  // experts of a kind that is not known here
    mtp,            // part of a layer that predicts further tokens
};

struct BlockTensor {
    size_t block;
    TensorKind kind;
};

// Reads a name such as "blk.12.ffn_gate_inp.weight"; nothing for a tensor outside the blocks.
std::optional<BlockTensor> parse_tensor_name(const std::string& name);

// Whether tensors of this kind have one slice for each expert.
bool has_expert_slices(TensorKind kind);

}  // namespace coe
