#include "formats/mask_file.h"

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <system_error>

#include "base/limits.h"

namespace coe {

namespace {

using nlohmann::json;

constexpr int known_version = 1;
constexpr int most_depth = 100;
const char* const no_mask = "is not a mask; make one with `coe-native mask`";

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument(what); }
[[noreturn]] void refuse_damaged(const std::string& what) {
    refuse("is a damaged mask (" + what + "); make it again");
}

// Counted before parsing: a callback of nlohmann_json's parser would take quadratic time.
void check_depth(const std::string& text) {
    int depth = 0;
    bool in_string = false;
    for (size_t i = 0; i < text.size(); ++i) {
        if (in_string) {
            if (text[i] == '\\') {
                ++i;  // an escaped quote does not end the string
            } else {
                in_string = text[i] != '"';
            }
        } else if (text[i] == '"') {
            in_string = true;
        } else if (text[i] == '[' || text[i] == '{') {
            if (++depth > most_depth) {
                refuse_damaged("it is nested too deeply");
            }
        } else if (text[i] == ']' || text[i] == '}') {
            --depth;
        }
    }
}

int block_index(const std::string& text) {
    const bool is_number = !text.empty() && text.size() < 7 && (text == "0" || text[0] != '0') &&
                           text.find_first_not_of("0123456789") == std::string::npos;
    if (!is_number || std::stoi(text) >= most_blocks) {
        refuse_damaged("a layer is not named by a block index");
    }
    return std::stoi(text);
}

size_t count(const json& document, const char* key, size_t most) {
    const json& value = document.at(key);
    if (!value.is_number_unsigned() || value.get<uint64_t>() == 0 || value.get<uint64_t>() > most) {
        refuse_damaged(std::string(key) + " is not a number from 1 to " + std::to_string(most));
    }
    return value.get<size_t>();
}

int64_t whole_number(const json& value, const char* what) {
    // A number above int64_t's range is an unsigned one.
    if (!value.is_number_integer() ||
        (value.is_number_unsigned() && value.get<uint64_t>() > static_cast<uint64_t>(INT64_MAX))) {
        refuse_damaged(std::string(what) + " is not a whole number");
    }
    return value.get<int64_t>();
}

double number(const json& value, const char* what) {
    if (!value.is_number()) {
        refuse_damaged(std::string(what) + " is not a number");
    }
    return value.get<double>();
}

const json& list(const json& document, const char* key) {
    static const json none = json::array();
    const auto found = document.find(key);
    if (found != document.end() && !found->is_array()) {
        refuse_damaged(std::string(key) + " is not a list");
    }
    return found == document.end() ? none : *found;
}

std::vector<int> kept_experts(const json& experts, size_t n_experts) {
    std::vector<int> kept;
    for (const json& expert : experts.get_ref<const json::array_t&>()) {
        if (!expert.is_number_unsigned() || expert.get<uint64_t>() >= n_experts) {
            refuse_damaged("an expert is not a number from 0 to " + std::to_string(n_experts - 1));
        }
        kept.push_back(expert.get<int>());
    }
    return kept;
}

Swap swap_of(const json& swap) {
    const Swap made = {whole_number(swap.at("layer"), "a swap's layer"),
                       whole_number(swap.at("incoming"), "a swap's incoming expert"),
                       whole_number(swap.at("outgoing"), "a swap's outgoing expert"),
                       whole_number(swap.at("stage"), "a swap's stage"),
                       number(swap.at("incoming_score"), "a swap's incoming score"),
                       number(swap.at("outgoing_score"), "a swap's outgoing score")};
    if (made.stage != 2 && made.stage != 3) {
        refuse_damaged("a swap's stage is neither 2 nor 3");
    }
    return made;
}

std::pair<int64_t, int64_t> pair_of(const json& pair) {
    if (!pair.is_array() || pair.size() != 2) {
        refuse_damaged("unplaced is not a list of pairs of block and expert");
    }
    return {whole_number(pair[0], "an unplaced expert's block"), whole_number(pair[1], "an unplaced expert")};
}

void check_version(const json& document) {
    const json& version = document.at("version");
    if (!version.is_number_unsigned() || version.get<uint64_t>() < 1) {
        refuse_damaged("its version is not a number");
    }
    if (version.get<uint64_t>() > known_version) {
        refuse("has mask version " + version.dump() + "; this coe-native reads up to " +
               std::to_string(known_version));
    }
}

MaskFile decode(const json& document) {
    MaskFile file;
    Mask& mask = file.mask;
    mask.architecture = document.at("architecture").get<std::string>();
    mask.fingerprint = document.at("fingerprint").get<std::string>();
    mask.n_experts = count(document, "expert_count", most_experts);
    mask.keep = count(document, "keep", mask.n_experts);
    for (const auto& [name, experts] : document.at("layers").get_ref<const json::object_t&>()) {
        mask.kept[block_index(name)] = kept_experts(experts, mask.n_experts);
    }
    for (const json& swap : list(document, "swaps")) {
        file.swaps.push_back(swap_of(swap));
    }
    for (const json& pair : list(document, "unplaced")) {
        file.unplaced.push_back(pair_of(pair));
    }
    const auto provenance = document.find("provenance");
    if (provenance != document.end()) {
        if (!provenance->is_object()) {
            refuse_damaged("provenance is not an object");
        }
        file.provenance = provenance->dump();
    }
    try {
        mask.check();
    } catch (const std::invalid_argument& wrong) {
        refuse_damaged(wrong.what());
    }
    return file;
}

}  // namespace

MaskFile parse_mask(const std::string& text) {
    if (text.size() > most_mask_bytes) {
        refuse("is not a mask: it has more than " + std::to_string(most_mask_bytes >> 20) + " MB");
    }
    // nlohmann_json ignores a byte order mark, and a zero byte at the end.
    if (text.empty() || text[0] == '\xef' || text.find('\0') != std::string::npos) {
        refuse(no_mask);
    }
    check_depth(text);
    json document;
    try {
        document = json::parse(text);
    } catch (const json::exception&) {
        refuse(no_mask);
    }
    if (!document.is_object() || document.find("format") == document.end() ||
        document["format"] != "coe-native.expert-mask") {
        refuse(no_mask);
    }
    try {
        check_version(document);
        return decode(document);
    } catch (const json::out_of_range&) {
        refuse_damaged("a field is missing");
    } catch (const json::exception&) {
        refuse_damaged("a field has another type than a mask's");
    }
}

MaskFile read_mask(const std::string& path) {
    const std::filesystem::path place = std::filesystem::u8path(path);
    std::error_code error;
    if (!std::filesystem::is_regular_file(place, error)) {
        refuse_file(path, "is not a file that can be read; give a mask");
    }
    const uintmax_t size = std::filesystem::file_size(place, error);
    if (error || size > most_mask_bytes) {
        refuse_file(path, "is not a mask: it has more than " + std::to_string(most_mask_bytes >> 20) + " MB");
    }
    std::string text(size, '\0');
    std::ifstream file(place, std::ios::binary);
    if (!file.read(text.data(), static_cast<std::streamsize>(size))) {
        refuse_file(path, "cannot be read");
    }
    try {
        return parse_mask(text);
    } catch (const std::invalid_argument& wrong) {
        refuse_file(path, wrong.what());
    }
}

}  // namespace coe
