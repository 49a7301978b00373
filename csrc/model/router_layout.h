// What a model's files say about its experts and routers: all that counting, masking and cutting need.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "model/router_shape.h"
#include "model/shards.h"

namespace coe {

struct TensorPosition {
    size_t file;   // index in ModelFiles
    size_t index;  // in that file's header
};

struct MoeLayer {
    int block = 0;
    size_t top_k = 0;       // experts that the router chooses for a token
    bool by_table = false;  // a table gives the experts of each token; the router only weighs them
    bool is_mtp = false;    // predicts further tokens: no forward pass runs it
    TensorPosition router = {};
    std::vector<TensorPosition> tensors;  // with one slice for each expert, the router's included
    std::vector<TensorPosition> weights;  // those of them that are the experts' own weights and biases
};

struct RouterLayout {
    std::string architecture = "unknown";
    std::string model_name;
    // Tells a model from others (see docs/formats.md); "unknown" where no file was given.
    std::string fingerprint = "unknown";
    std::string old_fingerprint;  // as version 0.1.0 computed it, where that differs
    std::vector<int> blocks;      // block indices of the MoE layers that run, ascending
    std::vector<size_t> top_k;    // of each of them
    RouterShape shape;
    size_t n_blocks = 0;
    size_t first_mtp_block = 0;  // n_blocks where there are none
    std::vector<MoeLayer> layers;
    std::string obstacle;          // why the model cannot be cut to fewer experts, if it cannot
    std::string cannot_count;      // why its routers' choices cannot be counted, if they cannot
    size_t least_keep = 1;         // llama.cpp wants more experts than the metadata counts groups of them
    size_t variant_n_experts = 0;  // number of experts with which llama.cpp computes another model; 0: none

    bool has_fingerprint(const std::string& other) const;
    // Throws std::invalid_argument, with the reason, where the routers' choices cannot be counted.
    void check_countable() const;
    // Throws std::invalid_argument, with the reason, where llama.cpp could not run the model with `keep`
    // experts a layer, or would compute something else than the kept experts' share.
    void check_keep(int64_t keep) const;
};

// The layout without fingerprints: nothing but headers is read. Throws std::invalid_argument, in one line
// that names the file.
RouterLayout find_router_layout(const ModelFiles& files);

}  // namespace coe
