#include <algorithm>
#include <exception>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "base/ggml_check.h"
#include "capture/live_profiler.h"
#include "coe_native.h"
#include "formats/atomic_file.h"
#include "formats/mask_file.h"
#include "formats/profile_file.h"
#include "ggml.h"
#include "model/fingerprint.h"

struct coe_profiler {
    coe::RouterLayout layout;
    coe::LiveProfiler live;

    explicit coe_profiler(coe::RouterLayout given)
        : layout(std::move(given)), live(layout.blocks, layout.shape.n_experts, layout.top_k) {}
};

struct coe_profile {
    coe::Profile value;
};

namespace {

thread_local std::string error_text;
thread_local const char* last_error = "";

void set_last_error(const char* message) noexcept {
    try {
        error_text = message;
        last_error = error_text.c_str();
    } catch (...) {
        last_error = "out of memory";
    }
}

// Runs `body`, and turns its exceptions into a status and a message.
template <typename Body>
int32_t guarded(Body body) noexcept {
    last_error = "";
    try {
        body();
        return COE_OK;
    } catch (const std::invalid_argument& exception) {
        set_last_error(exception.what());
        return COE_INVALID_ARGUMENT;
    } catch (const std::bad_alloc&) {
        set_last_error("out of memory");
    } catch (const std::exception& exception) {
        set_last_error(exception.what());
    } catch (...) {
        set_last_error("unknown error");
    }
    return COE_FAILED;
}

// Returns what `make` returns, or null if it throws.
template <typename Make>
auto made(Make make) noexcept -> decltype(make().release()) {
    decltype(make().release()) result = nullptr;
    guarded([&] { result = make().release(); });
    return result;
}

void require(bool holds, const char* otherwise) {
    if (!holds) {
        throw std::invalid_argument(otherwise);
    }
}

std::unique_ptr<coe_profiler> watching(coe::RouterLayout layout) {
    const std::string other = coe::find_other_ggml();
    if (!other.empty()) {
        throw std::runtime_error("libcoe_native was compiled against ggml " COE_GGML_VERSION
                                 ", but this program runs ggml " +
                                 other);
    }
    return std::make_unique<coe_profiler>(std::move(layout));
}

}  // namespace

int32_t coe_native_abi_version(void) { return COE_NATIVE_ABI_VERSION; }

const char* coe_last_error(void) { return last_error; }

coe_profiler* coe_profiler_open(const char* model_path) {
    return made([&] {
        require(model_path != nullptr, "model_path must not be NULL");
        coe::RouterLayout layout = coe::read_router_layout(model_path);
        try {
            layout.check_countable();
        } catch (const std::invalid_argument& wrong) {
            coe::refuse_file(model_path, wrong.what());
        }
        return watching(std::move(layout));
    });
}

coe_profiler* coe_profiler_new(const int32_t* blocks, const int32_t* top_k, size_t n_blocks, size_t n_experts,
                               size_t n_groups, size_t n_groups_used) {
    return made([&] {
        require(blocks != nullptr && top_k != nullptr, "blocks and top_k must not be NULL");
        require(std::all_of(top_k, top_k + n_blocks, [](int32_t k) { return k > 0; }),
                "top_k must be at least 1 in each layer");
        coe::RouterLayout layout;
        layout.blocks.assign(blocks, blocks + n_blocks);
        layout.top_k.assign(top_k, top_k + n_blocks);
        layout.shape = {n_experts,
                        n_blocks > 0 ? *std::max_element(layout.top_k.begin(), layout.top_k.end()) : 0,
                        n_groups, n_groups_used};
        layout.shape.check_groups();
        return watching(std::move(layout));
    });
}

void coe_profiler_free(coe_profiler* profiler) { delete profiler; }

bool coe_profiler_callback(ggml_tensor* tensor, bool ask, void* user_data) {
    return user_data == nullptr
               ? !ask
               : coe::LiveProfiler::callback(tensor, ask, &static_cast<coe_profiler*>(user_data)->live);
}

int32_t coe_profiler_chain(coe_profiler* profiler, coe_eval_callback callback, void* user_data) {
    return guarded([&] {
        require(profiler != nullptr, "profiler must not be NULL");
        profiler->live.chain(callback, user_data);
    });
}

int32_t coe_profiler_watch_norms(coe_profiler* profiler, int32_t n_threads) {
    return guarded([&] {
        require(profiler != nullptr, "profiler must not be NULL");
        require(n_threads > 0, "n_threads must be at least 1");
        profiler->live.watch_outputs(n_threads);
    });
}

coe_profile* coe_profiler_snapshot(coe_profiler* profiler) {
    return made([&] {
        require(profiler != nullptr, "profiler must not be NULL");
        coe::LiveCounts counts = profiler->live.counts(0);
        return std::make_unique<coe_profile>(
            coe_profile{coe::make_profile(profiler->layout, counts.stats, counts.tokens)});
    });
}

int32_t coe_profiler_reset(coe_profiler* profiler) {
    return guarded([&] {
        require(profiler != nullptr, "profiler must not be NULL");
        profiler->live.reset();
    });
}

int32_t coe_profiler_load_mask(coe_profiler* profiler, const char* path) {
    return guarded([&] {
        require(profiler != nullptr && path != nullptr, "profiler and path must not be NULL");
        const coe::Mask mask = coe::read_mask(path).mask;
        try {
            mask.check_cut(profiler->layout);
        } catch (const std::invalid_argument& wrong) {
            throw std::invalid_argument(std::string(path) + ": " + wrong.what());
        }
        std::vector<std::vector<int>> kept;
        for (const auto& layer : mask.kept) {
            kept.push_back(layer.second);
        }
        profiler->live.mask(kept);
    });
}

int32_t coe_profiler_mask(coe_profiler* profiler, const int32_t* kept, size_t n_kept) {
    return guarded([&] {
        require(profiler != nullptr && kept != nullptr, "profiler and kept must not be NULL");
        coe::Mask mask;
        mask.fingerprint = profiler->layout.fingerprint;
        mask.architecture = profiler->layout.architecture;
        mask.n_experts = profiler->layout.shape.n_experts;
        mask.keep = n_kept;
        require(n_kept <= mask.n_experts, "n_kept must be at most the number of experts");
        std::vector<std::vector<int>> by_layer;
        for (const int block : profiler->layout.blocks) {
            by_layer.emplace_back(kept, kept + n_kept);
            mask.kept[block] = by_layer.back();
            kept += n_kept;
        }
        mask.check();
        mask.check_cut(profiler->layout);
        profiler->live.mask(by_layer);
    });
}

int32_t coe_profiler_clear_mask(coe_profiler* profiler) {
    return guarded([&] {
        require(profiler != nullptr, "profiler must not be NULL");
        profiler->live.unmask();
    });
}

int32_t coe_profiler_mask_applications(coe_profiler* profiler, uint64_t* applications) {
    return guarded([&] {
        require(profiler != nullptr && applications != nullptr, "profiler and applications must not be NULL");
        const std::vector<uint64_t> found = profiler->live.mask_applications();
        std::copy(found.begin(), found.end(), applications);
    });
}

void coe_profile_free(coe_profile* profile) { delete profile; }

size_t coe_profile_n_blocks(const coe_profile* profile) {
    return profile == nullptr ? 0 : profile->value.blocks.size();
}

size_t coe_profile_n_experts(const coe_profile* profile) {
    return profile == nullptr ? 0 : profile->value.n_experts;
}

size_t coe_profile_top_k(const coe_profile* profile) {
    return profile == nullptr ? 0 : profile->value.n_ranks;
}

const int32_t* coe_profile_blocks(const coe_profile* profile) {
    return profile == nullptr ? nullptr : profile->value.blocks.data();
}

const uint64_t* coe_profile_tokens(const coe_profile* profile) {
    return profile == nullptr ? nullptr : profile->value.layer_tokens.data();
}

const int64_t* coe_profile_histograms(const coe_profile* profile) {
    return profile == nullptr ? nullptr : profile->value.histograms.data();
}

const double* coe_profile_weight_sum(const coe_profile* profile) {
    return profile == nullptr ? nullptr : profile->value.weight_sum.sums().data();
}

const double* coe_profile_norm_sum(const coe_profile* profile) {
    return profile == nullptr || !profile->value.outputs ? nullptr
                                                         : profile->value.outputs->norm_sum.sums().data();
}

const double* coe_profile_weighted_norm_sum(const coe_profile* profile) {
    return profile == nullptr || !profile->value.outputs
               ? nullptr
               : profile->value.outputs->weighted_norm_sum.sums().data();
}

coe_profile* coe_profile_load(const char* path) {
    return made([&] {
        require(path != nullptr, "path must not be NULL");
        return std::make_unique<coe_profile>(coe_profile{coe::decode_profile(coe::GgufFile(path))});
    });
}

int32_t coe_profile_merge(coe_profile* profile, const coe_profile* other) {
    return guarded([&] {
        require(profile != nullptr && other != nullptr, "profile and other must not be NULL");
        profile->value.add(other->value);
    });
}

int32_t coe_profile_save(const coe_profile* profile, const char* path, const char* source) {
    return guarded([&] {
        require(profile != nullptr && path != nullptr && source != nullptr,
                "profile, path and source must not be NULL");
        coe::Profile named = profile->value;
        uint64_t n_named = 0;
        for (const coe::CorpusRecord& record : named.corpora) {
            n_named += record.tokens;
        }
        if (n_named < named.n_tokens || named.corpora.empty()) {
            coe::CorpusRecord record;
            record.name = source;
            record.tokens = named.n_tokens - std::min(n_named, named.n_tokens);
            named.corpora.push_back(record);
        }
        coe::write_file(path, coe::encode_profile(named));
    });
}
