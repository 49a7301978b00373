#include <algorithm>
#include <exception>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "coe_native.h"
#include "router_hooks.h"

struct coe_profiler {
    coe::RouterTap tap;
    coe::RouterHooks hooks;
    std::string error;
    bool failed = false;  // a graph went wrong: the counts are of no use until they are reset
};

namespace {

// Runs `body`, turning what it throws into a status and a message.
template <typename Body>
int32_t guarded(coe_profiler* profiler, Body body) noexcept {
    if (profiler == nullptr) {
        return COE_INVALID_ARGUMENT;
    }
    if (profiler->failed) {
        return COE_FAILED;
    }
    try {
        profiler->error.clear();
        body();
        return COE_OK;
    } catch (const std::invalid_argument& exception) {
        profiler->error = exception.what();
        return COE_INVALID_ARGUMENT;
    } catch (const std::exception& exception) {
        profiler->error = exception.what();
        profiler->failed = true;
        return COE_FAILED;
    }
}

void require(bool holds, const char* otherwise) {
    if (!holds) {
        throw std::invalid_argument(otherwise);
    }
}

// Adds what the last decodes read; throws what went wrong in them.
void collect(coe_profiler& profiler) {
    profiler.hooks.rethrow();
    profiler.tap.collect();
}

}  // namespace

int32_t coe_native_abi_version(void) { return 1; }

coe_profiler* coe_profiler_new(const int32_t* blocks, size_t n_blocks, size_t n_experts, size_t top_k) {
    if (blocks == nullptr) {
        return nullptr;
    }
    try {
        auto profiler = std::make_unique<coe_profiler>(coe_profiler{
            coe::RouterTap(std::vector<int>(blocks, blocks + n_blocks), n_experts, top_k), {}, {}, false});
        profiler->hooks.tap = &profiler->tap;
        return profiler.release();
    } catch (const std::exception&) {
        return nullptr;
    }
}

void coe_profiler_free(coe_profiler* profiler) { delete profiler; }

bool coe_profiler_callback(ggml_tensor* tensor, bool ask, void* user_data) {
    return user_data == nullptr
               ? !ask
               : coe::RouterHooks::callback(tensor, ask, &static_cast<coe_profiler*>(user_data)->hooks);
}

int32_t coe_profiler_counts(coe_profiler* profiler, int64_t* histograms, double* weight_sum) {
    return guarded(profiler, [&] {
        collect(*profiler);
        const coe::RoutingStats& stats = profiler->tap.stats();
        if (histograms != nullptr) {
            std::copy(stats.histograms().begin(), stats.histograms().end(), histograms);
        }
        if (weight_sum != nullptr) {
            std::copy(stats.weight_sum().begin(), stats.weight_sum().end(), weight_sum);
        }
    });
}

int32_t coe_profiler_tokens(coe_profiler* profiler, uint64_t* tokens) {
    return guarded(profiler, [&] {
        require(tokens != nullptr, "tokens must not be NULL");
        collect(*profiler);
        const std::vector<uint64_t> seen = profiler->tap.tokens_seen();
        std::copy(seen.begin(), seen.end(), tokens);
    });
}

int32_t coe_profiler_reset(coe_profiler* profiler) {
    if (profiler != nullptr) {
        profiler->failed = false;
    }
    return guarded(profiler, [&] {
        profiler->hooks.error = nullptr;
        profiler->tap.clear();
    });
}

int32_t coe_profiler_mask(coe_profiler* profiler, const int32_t* kept, size_t n_kept) {
    return guarded(profiler, [&] {
        if (n_kept == 0) {
            profiler->hooks.mask.clear();
            return;
        }
        const coe::RoutingStats& stats = profiler->tap.stats();
        require(kept != nullptr, "kept must not be NULL");
        require(n_kept >= stats.top_k() && n_kept <= stats.n_experts(),
                "a mask must keep at least top-k experts and at most all");
        const size_t n_blocks = profiler->tap.blocks().size();
        std::vector<std::vector<int>> by_block;
        for (size_t i = 0; i < n_blocks; ++i) {
            by_block.emplace_back(kept + i * n_kept, kept + (i + 1) * n_kept);
        }
        profiler->hooks.mask.set(profiler->tap.blocks(), by_block, stats.n_experts());
    });
}

const char* coe_profiler_error(const coe_profiler* profiler) {
    return profiler == nullptr ? "no profiler" : profiler->error.c_str();
}
