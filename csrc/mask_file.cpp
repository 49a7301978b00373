#include "mask_file.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <system_error>

#include "router_nodes.h"

namespace coe {

namespace {

constexpr int known_version = 1;
constexpr uintmax_t most_bytes = 16 << 20;
constexpr int most_depth = 100;

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument(what); }

int block_index(const std::string& text) {
    const bool is_number = !text.empty() && text.size() < 7 && (text == "0" || text[0] != '0') &&
                           text.find_first_not_of("0123456789") == std::string::npos;
    const int block = is_number ? std::stoi(text) : most_blocks;
    if (block >= most_blocks) {
        refuse("a layer is named by no block index");
    }
    return block;
}

// A whole number from 1 to `most`.
size_t count(const nlohmann::json& document, const char* key, size_t most) {
    const nlohmann::json& value = document.at(key);
    if (!value.is_number_unsigned() || value.get<uint64_t>() == 0 || value.get<uint64_t>() > most) {
        refuse(std::string(key) + " is no count");
    }
    return value.get<size_t>();
}

// Python's reader gives up on deep nesting. (A callback of nlohmann_json's parser would take quadratic time.)
void check_depth(const std::string& text) {
    int depth = 0;
    bool in_string = false;
    for (size_t i = 0; i < text.size(); ++i) {
        if (in_string) {
            if (text[i] == '\\') {
                ++i;  // what is escaped ends no string
            } else {
                in_string = text[i] != '"';
            }
        } else if (text[i] == '"') {
            in_string = true;
        } else if (text[i] == '[' || text[i] == '{') {
            if (++depth > most_depth) {
                refuse("is a damaged mask: it is nested too deeply");
            }
        } else if (text[i] == ']' || text[i] == '}') {
            --depth;
        }
    }
}

const nlohmann::json& list(const nlohmann::json& document, const char* key) {
    static const nlohmann::json none = nlohmann::json::array();
    const auto found = document.find(key);
    if (found != document.end() && !found->is_array()) {
        refuse(std::string(key) + " is not a list");
    }
    return found == document.end() ? none : *found;
}

// How the mask came about: checked, so that a file is good for all programs or for none, and otherwise
// unused.
void check_history(const nlohmann::json& document) {
    for (const nlohmann::json& swap : list(document, "swaps")) {
        for (const char* key : {"layer", "incoming", "outgoing", "stage"}) {
            if (!swap.at(key).is_number_integer()) {
                refuse(std::string("a swap's ") + key + " is not a whole number");
            }
        }
        for (const char* key : {"incoming_score", "outgoing_score"}) {
            if (!swap.at(key).is_number()) {
                refuse(std::string("a swap's ") + key + " is not a number");
            }
        }
        if (swap["stage"] != 2 && swap["stage"] != 3) {
            refuse("a mask's swaps are of the second pass or the third");
        }
    }
    for (const nlohmann::json& pair : list(document, "unplaced")) {
        if (!pair.is_array() || pair.size() != 2 || !pair[0].is_number_integer() ||
            !pair[1].is_number_integer()) {
            refuse("unplaced is not a list of pairs of block and expert");
        }
    }
    const auto provenance = document.find("provenance");
    if (provenance != document.end() && !provenance->is_object()) {
        refuse("provenance is not an object");
    }
}

}  // namespace

Mask parse_mask(const std::string& text) {
    try {
        // nlohmann_json ignores a byte order mark, and a zero byte at the end.
        if (text.empty() || text[0] == '\xef' || text.find('\0') != std::string::npos) {
            refuse("is no mask; make one with `coe-native mask`");
        }
        check_depth(text);
        const nlohmann::json document = nlohmann::json::parse(text);
        if (!document.is_object() || document.value("format", "") != "coe-native.expert-mask") {
            refuse("is no mask; make one with `coe-native mask`");
        }
        const nlohmann::json& version = document.at("version");
        if (!version.is_number_unsigned() || version.get<uint64_t>() < 1) {
            refuse("its version is no number");
        }
        if (version.get<uint64_t>() > known_version) {
            refuse("has mask version " + version.dump() + "; this coe-native reads up to " +
                   std::to_string(known_version));
        }
        Mask mask;
        mask.architecture = document.at("architecture").get<std::string>();
        mask.fingerprint = document.at("fingerprint").get<std::string>();
        mask.n_experts = count(document, "expert_count", most_experts);
        mask.keep = count(document, "keep", mask.n_experts);
        for (const auto& [name, experts] : document.at("layers").get_ref<const nlohmann::json::object_t&>()) {
            std::vector<int>& kept = mask.kept[block_index(name)];
            for (const nlohmann::json& expert : experts.get_ref<const nlohmann::json::array_t&>()) {
                if (!expert.is_number_unsigned() || expert.get<uint64_t>() >= mask.n_experts) {
                    refuse("keeps an expert outside 0 to " + std::to_string(mask.n_experts - 1) +
                           " in block " + name);
                }
                kept.push_back(expert.get<int>());
            }
            const bool ascending = std::is_sorted(kept.begin(), kept.end(), std::less_equal<int>());
            if (kept.size() != mask.keep || !ascending) {
                refuse("must keep " + std::to_string(mask.keep) + " different experts in block " + name +
                       ", ascending");
            }
        }
        check_history(document);
        return mask;
    } catch (const nlohmann::json::exception&) {
        refuse("is a damaged mask; make it again with `coe-native mask`");
    }
}

Mask read_mask(const std::string& path) {
    const std::filesystem::path place = std::filesystem::u8path(path);
    std::error_code error;
    if (!std::filesystem::is_regular_file(place, error)) {
        refuse(path + ": is no file that can be read; give a mask");
    }
    const uintmax_t size = std::filesystem::file_size(place, error);
    if (error || size > most_bytes) {
        refuse(path + ": is no mask: it has more than " + std::to_string(most_bytes) + " bytes");
    }
    std::string text(size, '\0');
    std::ifstream file(place, std::ios::binary);
    if (!file.read(text.data(), static_cast<std::streamsize>(size))) {
        refuse(path + ": cannot be read");
    }
    try {
        return parse_mask(text);
    } catch (const std::invalid_argument& wrong) {
        refuse(path + ": " + wrong.what());
    }
}

void check_mask(const Mask& mask, const RouterLayout& layout) {
    const bool named = mask.fingerprint != "unknown" && layout.fingerprint != "unknown";
    std::vector<int> blocks;
    for (const auto& layer : mask.kept) {
        blocks.push_back(layer.first);
    }
    if (mask.n_experts != layout.n_experts || blocks != layout.blocks ||
        (named && (mask.fingerprint != layout.fingerprint || mask.architecture != layout.architecture))) {
        refuse("was made for another model; profile this one and make its own mask");
    }
    const size_t most_chosen = *std::max_element(layout.top_k.begin(), layout.top_k.end());
    if (mask.keep < most_chosen) {
        refuse("keeps " + std::to_string(mask.keep) + " experts, but a token needs " +
               std::to_string(most_chosen));
    }
    if (mask.keep == layout.n_experts) {
        return;
    }
    if (!layout.obstacle.empty()) {
        refuse("cannot be used: " + layout.obstacle);
    }
    if (mask.keep == layout.variant_n_experts) {
        refuse("keeps " + std::to_string(mask.keep) + " experts, with which llama.cpp takes " +
               layout.architecture + " for a variant of its own; keep another number");
    }
    if (mask.keep < layout.least_keep) {
        refuse("keeps " + std::to_string(mask.keep) +
               " experts, but llama.cpp wants more than groups of them");
    }
    // llama.cpp scores a group by its two best experts, and chooses within the best groups alone.
    const size_t in_each =
        std::max(size_t{2}, (most_chosen + layout.n_groups_used - 1) / layout.n_groups_used);
    if (layout.n_groups > 1 && mask.keep < in_each * layout.n_groups) {
        refuse("keeps " + std::to_string(mask.keep) + " experts, but each of the " +
               std::to_string(layout.n_groups) + " groups needs " + std::to_string(in_each));
    }
    const size_t group_size = layout.n_experts / layout.n_groups;
    for (const auto& [block, kept] : mask.kept) {
        std::vector<size_t> in_group(layout.n_groups);
        for (const int expert : kept) {
            in_group[static_cast<size_t>(expert) / group_size] += 1;
        }
        if (std::adjacent_find(in_group.begin(), in_group.end(), std::not_equal_to<>()) != in_group.end()) {
            refuse("keeps unlike numbers of the " + std::to_string(layout.n_groups) +
                   " groups of experts in block " + std::to_string(block));
        }
    }
}

}  // namespace coe
