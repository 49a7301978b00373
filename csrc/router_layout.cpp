#include "router_layout.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <optional>
#include <set>
#include <stdexcept>
#include <system_error>

#include "gguf_header.h"
#include "router_nodes.h"
#include "sha256.h"

namespace coe {

namespace {

constexpr size_t longest_name = 200;                    // characters of a model's name
constexpr uint64_t largest_header = uint64_t{1} << 28;  // bytes: a vocabulary of millions of tokens
constexpr uint64_t most_shards = 99999;

[[noreturn]] void refuse(const std::string& path, const std::string& what) {
    throw std::invalid_argument(path + ": " + what);
}

class File {
  public:
    explicit File(const std::string& path) : path_(path) {
        const std::filesystem::path place = std::filesystem::u8path(path);
        std::error_code error;
        if (!std::filesystem::is_regular_file(place, error)) {
            refuse(path, "is no file that can be read; give a GGUF file");
        }
        const uint64_t size = std::filesystem::file_size(place, error);
        if (error) {
            refuse(path, "cannot be read");
        }
        // A header says nowhere how long it is: more of it is read until it is whole.
        for (uint64_t length = uint64_t{1} << 20;; length *= 4) {
            bytes_ = read(0, std::min({length, size, largest_header}));
            try {
                header_ = read_gguf_header(bytes_.data(), bytes_.size(), size);
                return;
            } catch (const GgufError& caught) {
                if (length >= std::min(size, largest_header)) {
                    refuse(path, caught.what());
                }
            }
        }
    }

    const std::string& path() const { return path_; }
    const GgufHeader& header() const { return header_; }

    std::vector<uint8_t> read(uint64_t offset, uint64_t n_bytes) const {
        std::vector<uint8_t> bytes(n_bytes);
        std::ifstream file(std::filesystem::u8path(path_), std::ios::binary);
        file.seekg(static_cast<std::streamoff>(offset));
        if (!file.read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(n_bytes))) {
            refuse(path_, "cannot be read");
        }
        return bytes;
    }

    const GgufEntry* find(const std::string& key) const {
        const auto same = [&](const GgufEntry& entry) { return entry.key == key; };
        const auto found = std::find_if(header_.entries.begin(), header_.entries.end(), same);
        return found == header_.entries.end() ? nullptr : &*found;
    }

    std::optional<std::string> text(const std::string& key) const {
        const GgufEntry* entry = find(key);
        if (entry == nullptr || entry->type != GgufType::string) {
            return std::nullopt;
        }
        // The entry ends with the text, whose length stands before it.
        const size_t begin = entry->value + sizeof(uint64_t);
        return std::string(reinterpret_cast<const char*>(&bytes_[0]) + begin, entry->end - begin);
    }

    // A number that is given once, or in a list for each block; nothing for a block that the list leaves out.
    std::optional<uint64_t> count(const std::string& key, size_t block = 0) const {
        const GgufEntry* entry = find(key);
        if (entry == nullptr) {
            return std::nullopt;
        }
        const GgufType type = entry->element_type;
        const size_t size = gguf_type_size(type);
        const bool is_list = entry->type == GgufType::array;
        if (size == 0 || type == GgufType::f32 || type == GgufType::f64 || type == GgufType::boolean) {
            refuse(path_, key + " is no count; it is damaged");
        }
        if (is_list && block >= entry->count) {
            return std::nullopt;
        }
        uint64_t value = 0;
        std::memcpy(&value, &bytes_[entry->value + (is_list ? block : 0) * size], size);
        const bool is_signed =
            type == GgufType::i8 || type == GgufType::i16 || type == GgufType::i32 || type == GgufType::i64;
        if (is_signed && (value >> (8 * size - 1)) != 0) {
            refuse(path_, key + " is below 0; it is damaged");
        }
        return value;
    }

  private:
    std::string path_;
    std::vector<uint8_t> bytes_;
    GgufHeader header_;
};

std::string padded(uint64_t number) {
    const std::string digits = std::to_string(number);
    return std::string(digits.size() < 5 ? 5 - digits.size() : 0, '0') + digits;
}

std::vector<File> open_shards(const std::string& path) {
    std::vector<File> files;
    files.emplace_back(path);
    const uint64_t count = files[0].count("split.count").value_or(1);
    if (count <= 1) {
        return files;
    }
    const std::string ending = "-00001-of-" + padded(count) + ".gguf";
    if (count > most_shards || path.size() < ending.size() ||
        path.compare(path.size() - ending.size(), ending.size(), ending) != 0) {
        refuse(path,
               "is one of " + std::to_string(count) + " shards, and not named as the first: NAME" + ending);
    }
    const std::string stem = path.substr(0, path.size() - ending.size());
    for (uint64_t number = 2; number <= count; ++number) {
        files.emplace_back(stem + "-" + padded(number) + "-of-" + padded(count) + ".gguf");
        const File& file = files.back();
        if (file.count("split.no") != number - 1 || file.count("split.count") != count) {
            refuse(file.path(), "is not shard " + std::to_string(number) + " of " + std::to_string(count));
        }
    }
    return files;
}

// "blk.12.ffn_gate_inp.weight" is block 12 and the rest.
struct BlockName {
    size_t block;
    std::string rest;
};

std::optional<BlockName> parse_block(const std::string& name) {
    const size_t dot = name.find('.', 4);
    if (name.compare(0, 4, "blk.") != 0 || dot == std::string::npos || dot == 4 || dot > 9) {
        return std::nullopt;
    }
    const auto is_digit = [](char character) { return character >= '0' && character <= '9'; };
    if (!std::all_of(name.begin() + 4, name.begin() + static_cast<std::ptrdiff_t>(dot), is_digit)) {
        return std::nullopt;
    }
    return BlockName{std::stoul(name.substr(4, dot - 4)), name.substr(dot + 1)};
}

// Whether it is a tensor with a slice for each expert.
bool has_experts(const std::string& rest) {
    static const std::set<std::string> router_parts = {"ffn_gate_inp.weight", "ffn_gate_inp.bias",
                                                       "exp_probs_b",         "exp_probs_b.bias",
                                                       "exp_probs_b_vl",      "exp_probs_b_vl.bias"};
    static const std::set<std::string> banks = {"ffn_gate_exps", "ffn_up_exps", "ffn_down_exps",
                                                "ffn_gate_up_exps"};
    static const std::set<std::string> parts = {"weight", "bias", "scale", "input_scale"};
    const size_t dot = rest.find('.');
    return router_parts.count(rest) > 0 ||
           (dot != std::string::npos && banks.count(rest.substr(0, dot)) > 0 &&
            parts.count(rest.substr(dot + 1)) > 0);
}

// Experts of a kind that no mask is for: ffn_*exps that has_experts() does not know. ffn_norm_exps is none.
bool has_other_experts(const std::string& rest) {
    const size_t dot = rest.find('.');
    const std::string bank = rest.substr(0, dot);
    const auto ends = [&](const char* end) {
        const std::string ending = end;
        return bank.size() > ending.size() &&
               bank.compare(bank.size() - ending.size(), ending.size(), ending) == 0;
    };
    return dot != std::string::npos && bank.compare(0, 4, "ffn_") == 0 &&
           bank.compare(0, 9, "ffn_norm_") != 0 && ends("exps") && !has_experts(rest);
}

struct Router {
    const File* file = nullptr;
    const GgufTensor* tensor = nullptr;
};

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

std::string as_tuple(const std::vector<uint64_t>& shape) {
    return "(" + std::to_string(shape[0]) + ", " + std::to_string(shape[1]) + ")";
}

}  // namespace

RouterLayout read_router_layout(const std::string& path) {
    const std::vector<File> files = open_shards(path);
    const File& first = files[0];
    RouterLayout layout;
    layout.architecture = first.text("general.architecture").value_or("");
    if (layout.architecture.empty() || layout.architecture.size() > longest_name) {
        refuse(path, "names no architecture; it is not a model");
    }
    const auto count = [&](const std::string& key, size_t block = 0) {
        return first.count(layout.architecture + "." + key, block).value_or(0);
    };
    layout.n_experts = count("expert_count");
    const uint64_t n_blocks = count("block_count");
    if (layout.n_experts == 0) {
        refuse(path, "has no experts; it is not a mixture-of-experts model");
    }
    if (layout.n_experts > most_experts || n_blocks == 0 || n_blocks > most_blocks) {
        refuse(path, "counts " + std::to_string(layout.n_experts) + " experts in " +
                         std::to_string(n_blocks) + " blocks; it is damaged");
    }
    layout.model_name = first_characters(
        first.text("general.name").value_or(std::filesystem::u8path(path).stem().u8string()), longest_name);

    std::map<size_t, Router> routers;  // by block; null where a block has experts and no router
    size_t first_mtp = n_blocks;  // layers that predict further tokens are the last, and run in no decode
    const uint64_t n_mtp = std::min(count("nextn_predict_layers"), n_blocks);
    const uint64_t n_by_table = count("hash_layer_count");
    for (const File& file : files) {
        for (const GgufTensor& tensor : file.header().tensors) {
            const std::optional<BlockName> name = parse_block(tensor.name);
            if (!name) {
                continue;
            }
            if (name->rest.compare(0, 6, "nextn.") == 0 && name->block >= n_blocks - n_mtp) {
                first_mtp = std::min(first_mtp, name->block);
            }
            if (name->rest == "ffn_gate_tid2eid.weight" && name->block < n_by_table) {
                layout.obstacle = "block " + std::to_string(name->block) +
                                  " looks its experts up in a table from tokens to experts, so none can go";
            } else if (has_other_experts(name->rest)) {
                layout.obstacle = tensor.name + " holds experts of a kind that cannot be left out";
            }
            if (!has_experts(name->rest)) {
                continue;
            }
            if (tensor.shape.empty() || tensor.shape.back() != layout.n_experts) {
                refuse(path, tensor.name + " holds no slice for each of the " +
                                 std::to_string(layout.n_experts) + " experts");
            }
            Router& router = routers[name->block];
            if (name->rest == "ffn_gate_inp.weight") {
                router = {&file, &tensor};
            }
        }
    }
    for (const auto& [block, router] : routers) {
        if (router.tensor == nullptr || router.tensor->shape.size() != 2) {
            refuse(path, "block " + std::to_string(block) + " has experts but no router");
        }
        if (block >= first_mtp) {
            continue;
        }
        const uint64_t top_k = count("expert_used_count", block);
        if (top_k == 0 || top_k > layout.n_experts) {
            refuse(path, "chooses " + std::to_string(top_k) + " of " + std::to_string(layout.n_experts) +
                             " experts in block " + std::to_string(block) + "; it is damaged");
        }
        layout.blocks.push_back(static_cast<int>(block));
        layout.top_k.push_back(top_k);
    }
    if (layout.blocks.empty()) {
        refuse(path, "has no layer with experts that runs for every token");
    }
    layout.n_groups = std::max(uint64_t{1}, count("expert_group_count"));
    layout.n_groups_used = layout.n_groups > 1 ? count("expert_group_used_count") : 1;
    layout.least_keep = count("expert_group_count") + 1;
    // llama.cpp asserts that fewer groups are used than there are.
    if (layout.n_experts % layout.n_groups != 0 || layout.n_groups_used == 0 ||
        (layout.n_groups > 1 && layout.n_groups_used >= layout.n_groups)) {
        refuse(path, "chooses " + std::to_string(layout.n_groups_used) + " of " +
                         std::to_string(layout.n_groups) + " groups of experts; it is damaged");
    }

    if (layout.architecture == "llama4") {
        layout.variant_n_experts = 128;
    }
    if (layout.n_experts == layout.variant_n_experts) {
        layout.obstacle = "llama.cpp takes llama4 with 128 experts for a variant of its own";
    }

    Sha256 digest;
    const auto add = [&](const std::string& text) {
        digest.update(text);
        digest.update("\0", 1);
    };
    add(layout.architecture);
    add(std::to_string(n_blocks));
    add(std::to_string(layout.n_experts));
    add(std::to_string(*std::max_element(layout.top_k.begin(), layout.top_k.end())));
    for (const auto& [block, router] : routers) {
        add(router.tensor->name);
        add(as_tuple(router.tensor->shape));
        add(std::to_string(router.tensor->type));
        const std::vector<uint8_t> bytes = router.file->read(router.tensor->offset, router.tensor->n_bytes);
        digest.update(bytes.data(), bytes.size());
    }
    layout.fingerprint = digest.hex();
    return layout;
}

}  // namespace coe
