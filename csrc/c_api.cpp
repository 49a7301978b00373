#include <algorithm>
#include <exception>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "coe_native.h"
#include "ggml.h"
#include "ggml_check.h"
#include "live_profiler.h"
#include "mask_file.h"
#include "profile_file.h"

struct coe_profiler {
    coe::RouterLayout layout;
    coe::LiveProfiler live;

    explicit coe_profiler(coe::RouterLayout given)
        : layout(std::move(given)), live(layout.blocks, layout.n_experts, layout.top_k) {}
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

// Runs `body`, turning what it throws into a status and a message.
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

// What `make` returns, or null.
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
        require(model_path != nullptr, "the model's path must not be NULL");
        return watching(coe::read_router_layout(model_path));
    });
}

coe_profiler* coe_profiler_new(const int32_t* blocks, const int32_t* top_k, size_t n_blocks, size_t n_experts,
                               size_t n_groups, size_t n_groups_used) {
    return made([&] {
        require(blocks != nullptr && top_k != nullptr, "blocks and top_k must not be NULL");
        require(std::all_of(top_k, top_k + n_blocks, [](int32_t k) { return k > 0; }),
                "a layer chooses one expert or more for a token");
        require(
            n_groups == 1
                ? n_groups_used == 1
                : n_groups > 1 && n_groups_used > 0 && n_groups_used < n_groups && n_experts % n_groups == 0,
            "n_groups must divide n_experts, and a token uses fewer groups than there are; 1 and 1 without "
            "groups");
        coe::RouterLayout layout;
        layout.blocks.assign(blocks, blocks + n_blocks);
        layout.top_k.assign(top_k, top_k + n_blocks);
        layout.n_experts = n_experts;
        layout.n_groups = n_groups;
        layout.n_groups_used = n_groups_used;
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
        require(profiler != nullptr, "no profiler");
        profiler->live.chain(callback, user_data);
    });
}

coe_profile* coe_profiler_snapshot(coe_profiler* profiler) {
    return made([&] {
        require(profiler != nullptr, "no profiler");
        coe::LiveCounts counts = profiler->live.counts(0);
        return std::make_unique<coe_profile>(
            coe_profile{{profiler->layout, std::move(counts.stats), std::move(counts.tokens)}});
    });
}

int32_t coe_profiler_reset(coe_profiler* profiler) {
    return guarded([&] {
        require(profiler != nullptr, "no profiler");
        profiler->live.reset();
    });
}

int32_t coe_profiler_load_mask(coe_profiler* profiler, const char* path) {
    return guarded([&] {
        require(profiler != nullptr && path != nullptr, "no profiler, or no path");
        const coe::Mask mask = coe::read_mask(path);
        try {
            coe::check_mask(mask, profiler->layout);
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
        require(profiler != nullptr && kept != nullptr, "no profiler, or no experts");
        coe::Mask mask;
        mask.fingerprint = profiler->layout.fingerprint;
        mask.architecture = profiler->layout.architecture;
        mask.n_experts = profiler->layout.n_experts;
        mask.keep = n_kept;
        require(n_kept <= mask.n_experts, "a mask keeps all experts at most");
        std::vector<std::vector<int>> by_layer;
        for (const int block : profiler->layout.blocks) {
            const int32_t* end = kept + n_kept;
            require(std::is_sorted(kept, end), "kept experts must be in ascending order");
            require(std::all_of(kept, end,
                                [&](int32_t expert) {
                                    return expert >= 0 && static_cast<size_t>(expert) < mask.n_experts;
                                }),
                    "a mask keeps an expert that there is not");
            by_layer.emplace_back(kept, end);
            mask.kept[block] = by_layer.back();
            kept = end;
        }
        coe::check_mask(mask, profiler->layout);
        profiler->live.mask(by_layer);
    });
}

int32_t coe_profiler_clear_mask(coe_profiler* profiler) {
    return guarded([&] {
        require(profiler != nullptr, "no profiler");
        profiler->live.unmask();
    });
}

int32_t coe_profiler_mask_applications(coe_profiler* profiler, uint64_t* applications) {
    return guarded([&] {
        require(profiler != nullptr && applications != nullptr, "no profiler, or no room for numbers");
        const std::vector<uint64_t> found = profiler->live.mask_applications();
        std::copy(found.begin(), found.end(), applications);
    });
}

void coe_profile_free(coe_profile* profile) { delete profile; }

size_t coe_profile_n_blocks(const coe_profile* profile) {
    return profile == nullptr ? 0 : profile->value.layout.blocks.size();
}

size_t coe_profile_n_experts(const coe_profile* profile) {
    return profile == nullptr ? 0 : profile->value.layout.n_experts;
}

size_t coe_profile_top_k(const coe_profile* profile) {
    return profile == nullptr ? 0 : profile->value.stats.top_k();
}

const int32_t* coe_profile_blocks(const coe_profile* profile) {
    return profile == nullptr ? nullptr : profile->value.layout.blocks.data();
}

const uint64_t* coe_profile_tokens(const coe_profile* profile) {
    return profile == nullptr ? nullptr : profile->value.tokens.data();
}

const int64_t* coe_profile_histograms(const coe_profile* profile) {
    return profile == nullptr ? nullptr : profile->value.stats.histograms().data();
}

const double* coe_profile_weight_sum(const coe_profile* profile) {
    return profile == nullptr ? nullptr : profile->value.stats.weight_sum().sums().data();
}

int32_t coe_profile_merge(coe_profile* profile, const coe_profile* other) {
    return guarded([&] {
        require(profile != nullptr && other != nullptr, "a profile is missing");
        profile->value.add(other->value);
    });
}

int32_t coe_profile_save(const coe_profile* profile, const char* path, const char* source) {
    return guarded([&] {
        require(profile != nullptr && path != nullptr && source != nullptr,
                "no profile, no path or no source");
        coe::write_file(path, coe::encode_profile(profile->value, source));
    });
}
