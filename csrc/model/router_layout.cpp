#include "model/router_layout.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <optional>
#include <set>
#include <stdexcept>

#include "base/limits.h"
#include "model/expert_tensors.h"

namespace coe {

namespace {

constexpr size_t longest_name = 200;    // characters of a model's name
constexpr size_t llama4_variant = 128;  // with this number of experts, llama.cpp builds another graph

std::string first_characters(const std::string& text, size_t n_characters) {
    size_t end = 0;
    for (size_t n_seen = 0; end < text.size(); ++end) {
        const bool begins = (static_cast<uint8_t>(text[end]) & 0xc0) != 0x80;  // of a UTF-8 sequence
        if (begins && n_seen++ == n_characters) {
            break;
        }
    }
    return text.substr(0, end);
}

std::string listed(const std::vector<int>& numbers) {
    std::string text;
    for (const int number : numbers) {
        text += (text.empty() ? "" : ", ") + std::to_string(number);
    }
    return text;
}

// Finds the layout of one model: the steps share what they have found so far.
class LayoutFinder {
  public:
    explicit LayoutFinder(const ModelFiles& files) : files_(files), path_(files[0]->path()) {}

    RouterLayout find() {
        find_sizes();
        find_layers();
        check_layers();
        find_groups();
        find_obstacle();
        find_second_router();
        return layout_;
    }

  private:
    uint64_t count(const std::string& key, size_t block = 0) const {
        return files_[0]->count(layout_.architecture + "." + key, block).value_or(0);
    }

    const GgufTensor& tensor(TensorPosition position) const {
        return files_[position.file]->header().tensors[position.index];
    }

    void find_sizes() {
        const GgufFile& first = *files_[0];
        layout_.architecture = first.text("general.architecture").value_or("");
        if (layout_.architecture.empty() || layout_.architecture.size() > longest_name ||
            layout_.architecture.find('\0') != std::string::npos) {
            refuse_file(path_, "names no architecture; it is not a model");
        }
        const uint64_t n_experts = count("expert_count");
        const uint64_t n_blocks = count("block_count");
        if (n_experts == 0) {
            refuse_file(path_, "has no experts; it is not a mixture-of-experts model");
        }
        if (n_experts > most_experts || n_blocks == 0 || n_blocks > most_blocks) {
            refuse_file(path_, "counts " + std::to_string(n_experts) + " experts in " +
                                   std::to_string(n_blocks) + " blocks; it is damaged");
        }
        layout_.shape.n_experts = n_experts;
        layout_.n_blocks = layout_.first_mtp_block = n_blocks;
        const std::string stem = std::filesystem::u8path(path_).stem().u8string();
        const std::string name = first.text("general.name").value_or(stem);
        layout_.model_name = first_characters(name.substr(0, name.find('\0')), longest_name);
    }

    void find_layers() {
        // Layers that predict further tokens are the last; their tensors say so too (DeepSeek 4 counts layers
        // among them that are like all others).
        const uint64_t n_mtp = std::min<uint64_t>(count("nextn_predict_layers"), layout_.n_blocks);
        const uint64_t n_by_table = count("hash_layer_count");
        for (size_t file = 0; file < files_.size(); ++file) {
            const std::vector<GgufTensor>& tensors = files_[file]->header().tensors;
            for (size_t index = 0; index < tensors.size(); ++index) {
                const std::optional<BlockTensor> name = parse_tensor_name(tensors[index].name);
                if (!name) {
                    continue;
                }
                if (name->kind == TensorKind::mtp && name->block >= layout_.n_blocks - n_mtp) {
                    layout_.first_mtp_block = std::min(layout_.first_mtp_block, name->block);
                } else if (name->kind == TensorKind::expert_table && name->block < n_by_table) {
                    by_table_.insert(name->block);
                } else if (name->kind == TensorKind::group_experts ||
                           name->kind == TensorKind::other_experts) {
                    other_experts_.push_back({file, index});
                } else if (has_expert_slices(name->kind)) {
                    add_tensor({file, index}, *name);
                }
            }
        }
    }

    void add_tensor(TensorPosition position, BlockTensor name) {
        const std::vector<uint64_t>& shape = tensor(position).shape;
        if (shape.empty() || shape.back() != layout_.shape.n_experts) {
            refuse_file(path_,
                        tensor(position).name + " holds " + std::to_string(shape.empty() ? 0 : shape.back()) +
                            " slices, not one for each of the " + std::to_string(layout_.shape.n_experts) +
                            " experts; it is damaged or of a kind that cannot be cut");
        }
        if (name.block >= layout_.n_blocks) {
            refuse_file(path_, tensor(position).name + " is beyond the " + std::to_string(layout_.n_blocks) +
                                   " blocks that the metadata counts; the file is damaged");
        }
        MoeLayer& layer = layers_[name.block];
        layer.tensors.push_back(position);
        if (name.kind == TensorKind::weights) {
            layer.weights.push_back(position);
        }
        if (name.kind == TensorKind::router && shape.size() == 2) {
            layer.router = position;
            has_router_.insert(name.block);
        }
    }

    void check_layers() {
        for (auto& [block, layer] : layers_) {
            if (has_router_.count(block) == 0) {
                refuse_file(path_, "block " + std::to_string(block) + " has experts but no router");
            }
            layer.block = static_cast<int>(block);
            layer.top_k = count("expert_used_count", block);
            layer.by_table = by_table_.count(block) > 0;
            layer.is_mtp = block >= layout_.first_mtp_block;
            if (!layer.is_mtp) {
                check_top_k(layer);
                layout_.blocks.push_back(layer.block);
                layout_.top_k.push_back(layer.top_k);
            }
            layout_.shape.top_k = std::max(layout_.shape.top_k, layer.top_k);
            layout_.layers.push_back(layer);
        }
        if (layout_.layers.empty()) {
            refuse_file(path_, "counts " + std::to_string(layout_.shape.n_experts) +
                                   " experts but holds no tensors of experts");
        }
        if (layout_.blocks.empty()) {
            refuse_file(path_, "has experts only in layers that predict further tokens (MTP)");
        }
    }

    void check_top_k(const MoeLayer& layer) const {
        if (layer.top_k == 0 || layer.top_k > layout_.shape.n_experts) {
            refuse_file(path_, "chooses " + std::to_string(layer.top_k) + " of " +
                                   std::to_string(layout_.shape.n_experts) + " experts in block " +
                                   std::to_string(layer.block) + "; it is damaged");
        }
    }

    void find_groups() {
        const uint64_t n_groups = count("expert_group_count");
        layout_.least_keep = n_groups + 1;
        layout_.shape.n_groups = std::max(uint64_t{1}, n_groups);
        layout_.shape.n_groups_used = n_groups > 1 ? count("expert_group_used_count") : 1;
        try {
            layout_.shape.check_groups();
        } catch (const std::invalid_argument& wrong) {
            refuse_file(path_, wrong.what());
        }
    }

    void find_obstacle() {
        if (layout_.architecture == "llama4") {
            layout_.variant_n_experts = llama4_variant;
        }
        std::vector<int> by_table;
        for (const MoeLayer& layer : layout_.layers) {
            if (layer.by_table) {
                by_table.push_back(layer.block);
            }
        }
        if (!by_table.empty()) {
            layout_.obstacle = "blocks [" + listed(by_table) +
                               "] look their experts up in a table from tokens to experts, so none of them "
                               "can be dropped, and llama.cpp wants the same number of experts in all layers";
        } else if (!other_experts_.empty()) {
            const std::string& name = tensor(other_experts_[0]).name;
            layout_.obstacle =
                parse_tensor_name(name)->kind == TensorKind::group_experts
                    ? name +
                          " belongs to groups of experts, whose weights llama.cpp takes from the experts "
                          "with "
                          "the groups' numbers, so with fewer experts it would compute something else"
                    : name + " holds experts of a kind that cannot be cut";
        } else if (layout_.variant_n_experts == layout_.shape.n_experts) {
            layout_.obstacle = "llama.cpp computes " + layout_.architecture + " with " +
                               std::to_string(layout_.shape.n_experts) +
                               " experts in another way than with any other number";
        }
    }

    // llama.cpp runs GroveMoE's router once for the experts and once for their groups. The ids of the groups
    // are computed from the experts', and so can be told from choices; but not where each expert is a group.
    void find_second_router() {
        for (const TensorPosition position : other_experts_) {
            const GgufTensor& found = tensor(position);
            if (parse_tensor_name(found.name)->kind == TensorKind::group_experts && !found.shape.empty() &&
                found.shape.back() == layout_.shape.n_experts) {
                layout_.cannot_count =
                    found.name +
                    " has a group for each expert, so llama.cpp runs the router twice in a "
                    "layer, and its choices cannot be told apart";
            }
        }
    }

    const ModelFiles& files_;
    const std::string& path_;
    RouterLayout layout_;
    std::map<size_t, MoeLayer> layers_;  // by block
    std::set<size_t> has_router_;
    std::set<size_t> by_table_;
    std::vector<TensorPosition> other_experts_;
};

}  // namespace

bool RouterLayout::has_fingerprint(const std::string& other) const {
    return other == fingerprint || (!old_fingerprint.empty() && other == old_fingerprint);
}

void RouterLayout::check_countable() const {
    if (!cannot_count.empty()) {
        throw std::invalid_argument("cannot be profiled: " + cannot_count);
    }
}

void RouterLayout::check_keep(int64_t wanted) const {
    shape.check_keep(wanted);
    const auto keep = static_cast<size_t>(wanted);
    if (keep == shape.n_experts) {
        return;
    }
    if (!obstacle.empty()) {
        throw std::invalid_argument(obstacle);
    }
    if (keep == variant_n_experts) {
        throw std::invalid_argument(
            "llama.cpp computes " + architecture + " with " + std::to_string(keep) +
            " experts in another way than with any other number; keep another number");
    }
    if (keep < least_keep) {
        throw std::invalid_argument("llama.cpp wants more experts than groups of them; keep more");
    }
}

RouterLayout find_router_layout(const ModelFiles& files) { return LayoutFinder(files).find(); }

}  // namespace coe
