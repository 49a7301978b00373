// What a model's GGUF says of its routers: all that counting, masking and naming a profile takes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace coe {

struct RouterLayout {
    std::string architecture = "unknown";
    std::string model_name;
    std::string fingerprint = "unknown";  // as in a profile's file; of a model that nobody named: "unknown"
    std::vector<int> blocks;              // block indices of the MoE layers that run, ascending
    std::vector<size_t> top_k;            // experts that each of them chooses for a token
    size_t n_experts = 0;
    size_t n_groups = 1;  // groups of experts, of which a token uses so many
    size_t n_groups_used = 1;
    std::string obstacle;          // why the model cannot do with fewer experts, if it cannot
    size_t least_keep = 1;         // llama.cpp wants more experts than the metadata counts groups of them
    size_t variant_n_experts = 0;  // number of experts with which llama.cpp computes another model; 0: none
};

// Reads the layout of a model, whose path is that of its first shard where it is split. Throws
// std::invalid_argument, in one line that names the file.
RouterLayout read_router_layout(const std::string& path);

}  // namespace coe
