#include "formats/profile_file.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <stdexcept>

#include "base/limits.h"
#include "ggml.h"
#include "gguf.h"

namespace coe {

namespace {

constexpr uint64_t version_whole = 1;
constexpr uint64_t version_of_counts = 2;  // weights or ranks may be unknown
constexpr uint64_t version_by_layer = 3;   // layers may have seen different numbers of tokens
constexpr uint64_t known_version = version_by_layer;
constexpr uint64_t most_bytes = 1 << 26;  // of one part of all layers; 100 layers, 10 of 512 experts: 4 MB

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument(what); }

struct Free {
    void operator()(gguf_context* context) const { gguf_free(context); }
    void operator()(ggml_context* context) const { ggml_free(context); }
};

uint64_t version_of(const Profile& profile) {
    if (!profile.is_whole()) {
        return version_by_layer;
    }
    return profile.has_ranks() && profile.has_weights ? version_whole : version_of_counts;
}

// Tensors and their data, as they follow the metadata.
class TensorWriter {
  public:
    TensorWriter(gguf_context* file, const Profile& profile)
        : file_(file),
          profile_(profile),
          context_(ggml_init({ggml_tensor_overhead() * (7 * profile.blocks.size() + 1), nullptr, true})) {}

    void add(size_t layer, const char* part, const std::vector<int64_t>& values) {
        add(layer, part, GGML_TYPE_I64, profile_.n_ranks, values.data());
    }
    void add(size_t layer, const char* part, const std::vector<double>& values) {
        add(layer, part, GGML_TYPE_F64, profile_.n_ranks, values.data());
    }
    // One number for each expert.
    void add_per_expert(size_t layer, const char* part, const std::vector<double>& values) {
        add(layer, part, GGML_TYPE_F64, 1, values.data());
    }

    const std::vector<uint8_t>& data() const { return data_; }

  private:
    void add(size_t layer, const char* part, ggml_type type, size_t n_ranks, const void* values) {
        const auto n_experts = static_cast<int64_t>(profile_.n_experts);
        const bool is_flat = std::strncmp(part, "expert.", 7) == 0;
        ggml_tensor* tensor =
            is_flat ? ggml_new_tensor_1d(context_.get(), type, n_experts)
                    : ggml_new_tensor_2d(context_.get(), type, static_cast<int64_t>(n_ranks), n_experts);
        ggml_format_name(tensor, "blk.%d.%s", profile_.blocks[layer], part);
        gguf_add_tensor(file_, tensor);
        const size_t n_bytes = ggml_nbytes(tensor);
        const auto* bytes = static_cast<const uint8_t*>(values) + layer * n_bytes;
        data_.insert(data_.end(), bytes, bytes + n_bytes);
        data_.resize(GGML_PAD(data_.size(), gguf_get_alignment(file_)));
    }

    gguf_context* file_;
    const Profile& profile_;
    std::unique_ptr<ggml_context, Free> context_;
    std::vector<uint8_t> data_;
};

void write_metadata(gguf_context* file, const Profile& profile, const ExtraMetadata& extra) {
    gguf_set_val_str(file, "general.architecture", profile.architecture.c_str());
    gguf_set_val_str(file, "general.type", "routing-profile");
    gguf_set_val_str(file, "general.name", profile.model_name.c_str());
    gguf_set_val_u32(file, "coe.profile.version", static_cast<uint32_t>(version_of(profile)));
    gguf_set_val_str(file, "coe.profile.fingerprint", profile.fingerprint.c_str());
    gguf_set_val_u32(file, "coe.profile.expert_count", static_cast<uint32_t>(profile.n_experts));
    gguf_set_val_u32(file, "coe.profile.expert_used_count", static_cast<uint32_t>(profile.top_k()));
    if (!profile.has_weights) {
        gguf_set_val_bool(file, "coe.profile.has_weights", false);
    }
    if (!profile.has_ranks()) {
        gguf_set_val_bool(file, "coe.profile.has_ranks", false);
    }
    std::vector<int32_t> chosen;
    for (const int64_t k : profile.layer_top_k()) {
        chosen.push_back(static_cast<int32_t>(k));
    }
    gguf_set_arr_data(file, "coe.profile.layer_expert_used_count", GGUF_TYPE_INT32, chosen.data(),
                      chosen.size());
    gguf_set_val_u32(file, "coe.profile.expert_group_count", static_cast<uint32_t>(profile.n_groups));
    gguf_set_val_u32(file, "coe.profile.expert_group_used_count",
                     static_cast<uint32_t>(profile.n_groups_used));
    gguf_set_val_u64(file, "coe.profile.tokens", profile.n_tokens);
    if (!profile.is_whole()) {
        gguf_set_arr_data(file, "coe.profile.layer_tokens", GGUF_TYPE_UINT64, profile.layer_tokens.data(),
                          profile.layer_tokens.size());
    }
    gguf_set_val_str(file, "coe.profile.corpora", encode_corpora(profile.corpora).c_str());
    for (const auto& [key, value] : extra) {
        if (const auto* number = std::get_if<uint64_t>(&value)) {
            gguf_set_val_u64(file, key.c_str(), *number);
        } else {
            gguf_set_val_str(file, key.c_str(), std::get<std::string>(value).c_str());
        }
    }
}

// Reads the parts of a profile from the tensors of a file.
class TensorReader {
  public:
    explicit TensorReader(const GgufFile& file) : file_(file) {
        for (const GgufTensor& tensor : file.header().tensors) {
            tensors_[tensor.name] = &tensor;
            const size_t dot = tensor.name.find('.', 4);
            if (tensor.name.compare(0, 4, "blk.") == 0 && dot != std::string::npos) {
                parts_.insert(tensor.name.substr(dot + 1));
            }
            add_block(tensor.name);
        }
        std::sort(blocks_.begin(), blocks_.end());
    }

    const std::vector<int>& blocks() const { return blocks_; }
    bool has(const std::string& part) const { return parts_.count(part) > 0; }

    // The shape of a part, the fastest dimension first, which all layers must have in common.
    std::vector<uint64_t> shape(const std::string& part, ggml_type type, size_t n_dimensions) const {
        if (blocks_.empty()) {
            refuse("it has no " + part + " of any layer");
        }
        std::vector<uint64_t> shape;
        uint64_t n_bytes = 0;
        for (const int block : blocks_) {
            const GgufTensor& tensor = of_block(block, part);
            std::vector<uint64_t> own = tensor.shape;
            own.resize(std::max(own.size(), n_dimensions), 1);  // ggml leaves out dimensions of 1 at the end
            shape = shape.empty() ? own : shape;
            if (tensor.type != static_cast<uint32_t>(type) || own.size() != n_dimensions || own != shape) {
                refuse(tensor.name + " has another type or shape than the " + part + " of a profile");
            }
            n_bytes += tensor.n_bytes;
        }
        const auto is_count = [](uint64_t size) { return size > 0 && size <= most_experts; };
        if (n_bytes > most_bytes || !std::all_of(shape.begin(), shape.end(), is_count)) {
            refuse("its " + part + " is larger than that of any model");
        }
        return shape;
    }

    template <typename Value>
    std::vector<Value> read(const std::string& part, ggml_type type, size_t n_dimensions) const {
        shape(part, type, n_dimensions);
        std::vector<Value> values;
        for (const int block : blocks_) {
            const std::vector<uint8_t> bytes = file_.read(of_block(block, part));
            const size_t at = values.size();
            values.resize(at + bytes.size() / sizeof(Value));
            std::memcpy(values.data() + at, bytes.data(), bytes.size());
        }
        return values;
    }

    // Sums and, where other programs have not left them out, their rests.
    ExactSums sums(const std::string& part, size_t n_dimensions) const {
        std::vector<double> totals = read<double>(part, GGML_TYPE_F64, n_dimensions);
        std::vector<double> rests = has(part + "_rest")
                                        ? read<double>(part + "_rest", GGML_TYPE_F64, n_dimensions)
                                        : std::vector<double>(totals.size());
        return ExactSums(std::move(totals), std::move(rests));
    }

  private:
    void add_block(const std::string& name) {
        const std::string start = "blk.";
        const std::string end = ".router.histogram";
        if (name.size() <= start.size() + end.size() || name.compare(0, start.size(), start) != 0 ||
            name.compare(name.size() - end.size(), end.size(), end) != 0) {
            return;
        }
        const std::string digits = name.substr(start.size(), name.size() - start.size() - end.size());
        const bool is_number = digits.size() < 7 && (digits == "0" || digits[0] != '0') &&
                               digits.find_first_not_of("0123456789") == std::string::npos;
        if (is_number) {
            blocks_.push_back(std::stoi(digits));
        }
    }

    const GgufTensor& of_block(int block, const std::string& part) const {
        const auto found = tensors_.find("blk." + std::to_string(block) + "." + part);
        if (found == tensors_.end()) {
            refuse("it has no " + part + " of block " + std::to_string(block));
        }
        return *found->second;
    }

    const GgufFile& file_;
    std::map<std::string, const GgufTensor*> tensors_;
    std::set<std::string> parts_;
    std::vector<int> blocks_;
};

std::string required_text(const GgufFile& file, const std::string& key) {
    const std::optional<std::string> text = file.text(key);
    if (!text) {
        refuse("its " + key + " is not a text");
    }
    if (text->find('\0') != std::string::npos) {
        refuse("its " + key + " contains a zero byte");
    }
    return *text;
}

std::optional<uint64_t> optional_count(const GgufFile& file, const std::string& key) {
    const GgufEntry* entry = file.find(key);
    if (entry != nullptr && entry->type == GgufType::array) {
        refuse("its " + key + " is not a number");
    }
    try {
        return file.count(key);
    } catch (const std::invalid_argument&) {
        refuse("its " + key + " is not a whole number");
    }
}

uint64_t required_count(const GgufFile& file, const std::string& key) {
    const std::optional<uint64_t> number = optional_count(file, key);
    if (!number) {
        refuse("its " + key + " is missing");
    }
    return *number;
}

std::vector<uint64_t> counts(const GgufFile& file, const std::string& key) {
    const GgufEntry* entry = file.find(key);
    if (entry == nullptr || entry->type != GgufType::array) {
        refuse("its " + key + " is not a list of counts");
    }
    std::vector<uint64_t> values;
    for (size_t i = 0; i < std::min<uint64_t>(entry->count, most_blocks + 1); ++i) {
        try {
            values.push_back(*file.count(key, i));
        } catch (const std::invalid_argument&) {
            refuse("its " + key + " is not a list of counts");
        }
    }
    return values;
}

bool is_false(const GgufFile& file, const std::string& key) {
    const GgufEntry* entry = file.find(key);
    return entry != nullptr && entry->type == GgufType::boolean && file.header_bytes()[entry->value] == 0;
}

Profile decode(const GgufFile& file, uint64_t version) {
    const TensorReader tensors(file);
    Profile profile;
    profile.architecture = required_text(file, "general.architecture");
    profile.model_name = file.find("general.name") == nullptr ? "" : required_text(file, "general.name");
    profile.fingerprint = required_text(file, "coe.profile.fingerprint");
    profile.blocks = tensors.blocks();
    profile.n_tokens = required_count(file, "coe.profile.tokens");
    const std::vector<uint64_t> shape = tensors.shape("router.histogram", GGML_TYPE_I64, 2);
    if (tensors.shape("router.weight_sum", GGML_TYPE_F64, 2) != shape) {
        refuse("its histograms and weight sums have different shapes");
    }
    profile.n_ranks = shape[0];
    profile.n_experts = shape[1];
    profile.histograms = tensors.read<int64_t>("router.histogram", GGML_TYPE_I64, 2);
    profile.weight_sum = tensors.sums("router.weight_sum", 2);
    profile.n_groups = optional_count(file, "coe.profile.expert_group_count").value_or(1);
    profile.n_groups_used = optional_count(file, "coe.profile.expert_group_used_count").value_or(1);
    profile.has_weights = version < version_of_counts || !is_false(file, "coe.profile.has_weights");
    if (version >= version_of_counts && is_false(file, "coe.profile.has_ranks")) {
        profile.n_chosen = required_count(file, "coe.profile.expert_used_count");
        if (profile.n_chosen == 0) {
            refuse("a profile without ranks cannot choose 0 experts for a token");
        }
    }
    profile.layer_tokens = version >= version_by_layer
                               ? counts(file, "coe.profile.layer_tokens")
                               : std::vector<uint64_t>(profile.blocks.size(), profile.n_tokens);
    const bool has_outputs = tensors.has("expert.norm_sum") || tensors.has("expert.weighted_norm_sum") ||
                             tensors.has("expert.norm_sum_rest") ||
                             tensors.has("expert.weighted_norm_sum_rest");
    if (has_outputs) {
        profile.outputs =
            OutputSums{tensors.sums("expert.norm_sum", 1), tensors.sums("expert.weighted_norm_sum", 1)};
    }
    profile.corpora = decode_corpora(required_text(file, "coe.profile.corpora"));
    profile.check();
    if (file.find("coe.profile.layer_expert_used_count") != nullptr) {
        const std::vector<int64_t> chosen = profile.layer_top_k();
        const std::vector<uint64_t> said = counts(file, "coe.profile.layer_expert_used_count");
        if (!std::equal(said.begin(), said.end(), chosen.begin(), chosen.end(),
                        [](uint64_t a, int64_t b) { return a == static_cast<uint64_t>(b); })) {
            refuse("its layers choose other numbers of experts than its metadata say");
        }
    }
    return profile;
}

}  // namespace

std::vector<uint8_t> encode_profile(const Profile& profile, const ExtraMetadata& extra) {
    const std::unique_ptr<gguf_context, Free> file(gguf_init_empty());
    write_metadata(file.get(), profile, extra);
    TensorWriter tensors(file.get(), profile);
    for (size_t layer = 0; layer < profile.blocks.size(); ++layer) {
        tensors.add(layer, "router.histogram", profile.histograms);
        tensors.add(layer, "router.weight_sum", profile.weight_sum.sums());
        tensors.add(layer, "router.weight_sum_rest", profile.weight_sum.rests());
        if (profile.outputs) {
            tensors.add_per_expert(layer, "expert.norm_sum", profile.outputs->norm_sum.sums());
            tensors.add_per_expert(layer, "expert.weighted_norm_sum",
                                   profile.outputs->weighted_norm_sum.sums());
            tensors.add_per_expert(layer, "expert.norm_sum_rest", profile.outputs->norm_sum.rests());
            tensors.add_per_expert(layer, "expert.weighted_norm_sum_rest",
                                   profile.outputs->weighted_norm_sum.rests());
        }
    }
    std::vector<uint8_t> bytes(gguf_get_meta_size(file.get()));
    gguf_get_meta_data(file.get(), bytes.data());
    bytes.insert(bytes.end(), tensors.data().begin(), tensors.data().end());
    return bytes;
}

Profile decode_profile(const GgufFile& file) {
    if (file.text("general.type") != "routing-profile") {
        refuse_file(file.path(), "is not a routing profile; make one with `coe-native profile`");
    }
    std::optional<uint64_t> version;
    try {
        version = optional_count(file, "coe.profile.version");
    } catch (const std::invalid_argument&) {
        version = 0;
    }
    if (!version || *version < 1 || *version > known_version) {
        refuse_file(file.path(), "has profile version " + (version ? std::to_string(*version) : "none") +
                                     "; this coe-native reads up to " + std::to_string(known_version));
    }
    try {
        return decode(file, *version);
    } catch (const std::invalid_argument& wrong) {
        refuse_file(file.path(), std::string("is a damaged profile: ") + wrong.what() + "; make it again");
    }
}

}  // namespace coe
