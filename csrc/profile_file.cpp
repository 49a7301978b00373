#include "profile_file.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>
#include <stdexcept>
#include <system_error>
#include <utility>

#include "ggml.h"
#include "gguf.h"

#ifdef _WIN32
#include <io.h>
#else
#include <fcntl.h>
#include <unistd.h>
#endif

namespace coe {

namespace {

constexpr uint32_t version_of_whole_texts = 1;
constexpr uint32_t version_by_layer = 3;  // layers have seen unlike numbers of tokens

struct Free {
    void operator()(gguf_context* context) const { gguf_free(context); }
    void operator()(ggml_context* context) const { ggml_free(context); }
};

// How many experts each layer has chosen for a token, as far as it has seen any.
std::vector<int32_t> chosen_by_layer(const Profile& profile) {
    std::vector<int32_t> chosen;
    for (size_t layer = 0; layer < profile.tokens.size(); ++layer) {
        chosen.push_back(profile.tokens[layer] > 0 ? static_cast<int32_t>(profile.layout.top_k[layer]) : 0);
    }
    return chosen;
}

std::string corpora(const Profile& profile, const std::string& source) {
    const nlohmann::ordered_json record = {
        {"name", source}, {"documents", 0}, {"tokens", profile.n_tokens()}, {"sha256", ""}};
    // What a host calls its text may be no UTF-8.
    return nlohmann::ordered_json::array({record}).dump(-1, ' ', true,
                                                        nlohmann::json::error_handler_t::replace);
}

#ifdef _WIN32
void sync(std::FILE* file) { _commit(_fileno(file)); }
void sync_directory(const std::filesystem::path&) {}
#else
void sync(std::FILE* file) {
    if (fsync(fileno(file)) != 0) {
        throw std::system_error(errno, std::generic_category());
    }
}

// Makes a rename last. Some file systems refuse it.
void sync_directory(const std::filesystem::path& directory) {
    const int descriptor = open(directory.c_str(), O_RDONLY);
    if (descriptor >= 0) {
        fsync(descriptor);
        close(descriptor);
    }
}
#endif

}  // namespace

uint64_t Profile::n_tokens() const { return *std::max_element(tokens.begin(), tokens.end()); }

void Profile::add(const Profile& other) {
    if (layout.fingerprint != other.layout.fingerprint || layout.blocks != other.layout.blocks ||
        layout.top_k != other.layout.top_k || layout.n_experts != other.layout.n_experts) {
        throw std::invalid_argument("only profiles of one model add up");
    }
    stats.add(other.stats);
    for (size_t layer = 0; layer < tokens.size(); ++layer) {
        tokens[layer] += other.tokens[layer];
    }
}

std::vector<uint8_t> encode_profile(const Profile& profile, const std::string& source) {
    const RouterLayout& layout = profile.layout;
    const uint64_t n_tokens = profile.n_tokens();
    const auto saw_all = [&](uint64_t seen) { return seen == n_tokens; };
    const bool whole = std::all_of(profile.tokens.begin(), profile.tokens.end(), saw_all);
    const std::vector<int32_t> chosen = chosen_by_layer(profile);

    const std::unique_ptr<gguf_context, Free> file(gguf_init_empty());
    gguf_set_val_str(file.get(), "general.architecture", layout.architecture.c_str());
    gguf_set_val_str(file.get(), "general.type", "routing-profile");
    if (!layout.model_name.empty()) {
        gguf_set_val_str(file.get(), "general.name", layout.model_name.c_str());
    }
    gguf_set_val_u32(file.get(), "coe.profile.version", whole ? version_of_whole_texts : version_by_layer);
    gguf_set_val_str(file.get(), "coe.profile.fingerprint", layout.fingerprint.c_str());
    gguf_set_val_u32(file.get(), "coe.profile.expert_count", static_cast<uint32_t>(layout.n_experts));
    gguf_set_val_u32(file.get(), "coe.profile.expert_used_count",
                     static_cast<uint32_t>(profile.stats.top_k()));
    gguf_set_arr_data(file.get(), "coe.profile.layer_expert_used_count", GGUF_TYPE_INT32, chosen.data(),
                      chosen.size());
    gguf_set_val_u32(file.get(), "coe.profile.expert_group_count", static_cast<uint32_t>(layout.n_groups));
    gguf_set_val_u32(file.get(), "coe.profile.expert_group_used_count",
                     static_cast<uint32_t>(layout.n_groups_used));
    gguf_set_val_u64(file.get(), "coe.profile.tokens", n_tokens);
    if (!whole) {
        gguf_set_arr_data(file.get(), "coe.profile.layer_tokens", GGUF_TYPE_UINT64, profile.tokens.data(),
                          profile.tokens.size());
    }
    gguf_set_val_str(file.get(), "coe.profile.corpora", corpora(profile, source).c_str());

    const size_t n_layers = layout.blocks.size();
    const std::unique_ptr<ggml_context, Free> context(
        ggml_init({ggml_tensor_overhead() * (3 * n_layers + 1), nullptr, true}));
    std::vector<uint8_t> data;
    const auto add = [&](int block, const char* part, ggml_type type, const void* values) {
        ggml_tensor* tensor =
            ggml_new_tensor_2d(context.get(), type, static_cast<int64_t>(profile.stats.top_k()),
                               static_cast<int64_t>(profile.stats.n_experts()));
        ggml_format_name(tensor, "blk.%d.router.%s", block, part);
        gguf_add_tensor(file.get(), tensor);
        const auto* bytes = static_cast<const uint8_t*>(values);
        data.insert(data.end(), bytes, bytes + ggml_nbytes(tensor));
        data.resize(GGML_PAD(data.size(), gguf_get_alignment(file.get())));
    };
    for (size_t layer = 0; layer < n_layers; ++layer) {
        const size_t first = layer * profile.stats.n_experts() * profile.stats.top_k();
        const int block = layout.blocks[layer];
        add(block, "histogram", GGML_TYPE_I64, &profile.stats.histograms()[first]);
        add(block, "weight_sum", GGML_TYPE_F64, &profile.stats.weight_sum()[first]);
        add(block, "weight_sum_rest", GGML_TYPE_F64, &profile.stats.weight_sum_rest()[first]);
    }
    std::vector<uint8_t> bytes(gguf_get_meta_size(file.get()));
    gguf_get_meta_data(file.get(), bytes.data());
    bytes.insert(bytes.end(), data.begin(), data.end());
    return bytes;
}

void write_file(const std::string& path, const std::vector<uint8_t>& bytes) {
    namespace fs = std::filesystem;
    try {
        // A link stays, and leads to what is written.
        const fs::path target = fs::weakly_canonical(fs::path(path));
        if (fs::exists(target) && !fs::is_regular_file(target)) {
            throw std::runtime_error("is no regular file; name one to write");
        }
        // As Python's writer names them, which removes what a killed process has left.
        std::random_device random;
        char suffix[32];
        std::snprintf(suffix, sizeof(suffix), "%08x%08x.coe-tmp", random(), random());
        const fs::path temporary =
            target.parent_path() / ("." + target.filename().string().substr(0, 200) + "." + suffix);
        std::FILE* file = std::fopen(temporary.string().c_str(), "wbx");
        if (file == nullptr) {
            throw std::system_error(errno, std::generic_category());
        }
        try {
            if (std::fwrite(bytes.data(), 1, bytes.size(), file) != bytes.size() || std::fflush(file) != 0) {
                throw std::system_error(errno, std::generic_category());
            }
            sync(file);
            const int closed = std::fclose(std::exchange(file, nullptr));
            if (closed != 0) {
                throw std::system_error(errno, std::generic_category());
            }
            fs::rename(temporary, target);
        } catch (...) {
            if (file != nullptr) {
                std::fclose(file);
            }
            std::error_code ignored;
            fs::remove(temporary, ignored);
            throw;
        }
        sync_directory(target.parent_path());
    } catch (const std::system_error& error) {
        throw std::runtime_error(path + ": cannot be written: " + error.code().message());
    } catch (const std::runtime_error& error) {
        throw std::runtime_error(path + ": " + error.what());
    }
}

}  // namespace coe
