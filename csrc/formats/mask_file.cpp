#include "formats/mask_file.h"

#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <system_error>

#include "base/limits.h"
#include "formats/json_fields.h"

namespace coe {

namespace {

const char* const no_mask = "is not a mask; make one with `coe-native mask`";

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument(what); }
[[noreturn]] void refuse_damaged(const std::string& what) {
    refuse("is a damaged mask (" + what + "); make it again");
}

int block_index(const std::string& text) {
    const bool is_number = !text.empty() && text.size() < 7 && (text == "0" || text[0] != '0') &&
                           text.find_first_not_of("0123456789") == std::string::npos;
    if (!is_number || std::stoi(text) >= most_blocks) {
        refuse(shortened(text) + " is not a block index");
    }
    return std::stoi(text);
}

std::vector<int> kept_experts(const Json& experts, const std::string& block, size_t n_experts) {
    if (!experts.is_array()) {
        refuse("the experts of block " + block + " are not a list");
    }
    const std::string name = "an expert in block " + block;
    std::vector<int> kept;
    for (const Json& expert : experts) {
        kept.push_back(static_cast<int>(count(expert, name.c_str(), 0, n_experts - 1)));
    }
    return kept;
}

double score(const Json& swap, const char* key) {
    const Json& value = field(swap, key);
    if (!value.is_number()) {
        refuse(std::string(key) + " is " + shortened(value) + ", not a number");
    }
    return value.get<double>();
}

Swap swap_of(const Json& swap) {
    const auto number = [&](const char* key) { return integer(field(swap, key), key); };
    const Swap made = {number("layer"),
                       number("incoming"),
                       number("outgoing"),
                       number("stage"),
                       score(swap, "incoming_score"),
                       score(swap, "outgoing_score")};
    if (made.stage != 2 && made.stage != 3) {
        refuse("stage is " + std::to_string(made.stage) + ", neither 2 nor 3");
    }
    return made;
}

std::pair<int64_t, int64_t> pair_of(const Json& pair) {
    if (!pair.is_array() || pair.size() != 2) {
        refuse("unplaced is not a list of pairs of block and expert");
    }
    return {integer(pair[0], "the block of an unplaced expert"), integer(pair[1], "an unplaced expert")};
}

MaskFile decode(const Json& document) {
    MaskFile file;
    Mask& mask = file.mask;
    mask.architecture = text_field(document, "architecture");
    mask.fingerprint = text_field(document, "fingerprint");
    mask.n_experts = count(field(document, "expert_count"), "expert_count", 1, most_experts);
    mask.keep = count(field(document, "keep"), "keep", 1, mask.n_experts);
    const Json& layers = field(document, "layers");
    if (!layers.is_object()) {
        refuse("layers is not an object");
    }
    for (const auto& [name, experts] : layers.items()) {
        mask.kept[block_index(name)] = kept_experts(experts, name, mask.n_experts);
    }
    for (const Json& swap : list_field(document, "swaps")) {
        file.swaps.push_back(swap_of(swap));
    }
    for (const Json& pair : list_field(document, "unplaced")) {
        file.unplaced.push_back(pair_of(pair));
    }
    const auto provenance = document.find("provenance");
    if (provenance != document.end()) {
        if (!provenance->is_object()) {
            refuse("provenance is not an object");
        }
        file.provenance = provenance->dump();
    }
    mask.check();
    return file;
}

// Returns the document, if it is a mask of a version that can be read.
Json parse_document(const std::string& text) {
    if (text.size() > most_mask_bytes) {
        refuse("is not a mask: it has more than " + std::to_string(most_mask_bytes >> 20) + " MB");
    }
    // nlohmann_json ignores a byte order mark, and a zero byte at the end.
    if (text.empty() || text[0] == '\xef' || text.find('\0') != std::string::npos) {
        refuse(no_mask);
    }
    const Json document = parse_json(text);
    if (!document.is_object() || document.find("format") == document.end() ||
        document["format"] != mask_format) {
        refuse(no_mask);
    }
    const auto version = document.find("version");
    if (version == document.end() || !version->is_number_unsigned() || version->get<uint64_t>() < 1) {
        refuse_damaged("its version is not a number");
    }
    if (version->get<uint64_t>() > mask_version) {
        refuse("has mask version " + version->dump() + "; this coe-native reads up to " +
               std::to_string(mask_version));
    }
    return document;
}

}  // namespace

MaskFile parse_mask(const std::string& text) {
    const Json document = parse_document(text);
    try {
        return decode(document);
    } catch (const std::invalid_argument& wrong) {
        refuse_damaged(wrong.what());
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
