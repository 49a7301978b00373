/* coe-native for programs that run llama.cpp: counts which experts of a mixture-of-experts model its routers
 * choose, writes a profile, and masks experts while the model runs.
 *
 * A profiler is the callback of one llama_context:
 *
 *     coe_profiler * profiler  = coe_profiler_open("model.gguf");
 *     params.cb_eval           = coe_profiler_callback;
 *     params.cb_eval_user_data = profiler;
 *
 * Then decode as usual, read or save the counts, and free the context before its profiler:
 *
 *     coe_profile * profile = coe_profiler_snapshot(profiler);
 *     coe_profile_save(profile, "model.profile.gguf", "what my program was asked");
 *     coe_profile_free(profile);
 *
 * `coe-native mask`, `score`, `report` and `merge` read the file. No text is kept.
 *
 * Each layer counts its own tokens: hosts request few logits, and on most architectures the last layer runs
 * for those tokens only. coe_profile_tokens returns the tokens of each layer; the file has them too.
 *
 * Warm-up: llama.cpp's own tools first run a few tokens (llama_set_warmup), for which most architectures use
 * all experts; these tokens are not counted. Nemotron-H, Kimi, DeepSeek 4 and BERT choose experts in a
 * warm-up as usual, which looks like a short text: call coe_profiler_reset after the warm-up to leave it out.
 * Masks may be set before or after it.
 *
 * Errors: functions that return int32_t return COE_OK or another coe_status, functions that return a pointer
 * return NULL on failure, and coe_last_error returns the reason, in one line. No function ends the process or
 * throws an exception. An error while a graph runs is reported by the next call that needs the counts. The
 * counts are invalid then, and every such call fails until coe_profiler_reset.
 *
 * Threads: the callback runs in the thread that decodes; all other functions may be called from any thread.
 * Between two decodes the counts are those of all tokens so far; during one, some layers are ahead of others.
 */
#ifndef COE_NATIVE_H
#define COE_NATIVE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#if defined(COE_NATIVE_BUILD)
#define COE_API __declspec(dllexport)
#else
#define COE_API __declspec(dllimport)
#endif
#else
#define COE_API __attribute__((visibility("default")))
#endif

/* The version of this header; coe_native_abi_version returns that of the library. It increases by one
 * whenever a function or a type of this header changes. */
#define COE_NATIVE_ABI_VERSION 5

#ifdef __cplusplus
extern "C" {
#endif

struct ggml_tensor;

/* A profiler, which watches and masks the routers of one context. */
typedef struct coe_profiler coe_profiler;

/* Counts at one moment. Only its owner changes it. */
typedef struct coe_profile coe_profile;

/* llama.cpp's ggml_backend_sched_eval_callback. */
typedef bool (*coe_eval_callback)(struct ggml_tensor* tensor, bool ask, void* user_data);

enum coe_status {
    COE_OK = 0,
    COE_INVALID_ARGUMENT = 1, /* an argument or a file cannot be used; nothing has changed */
    COE_FAILED = 2            /* something went wrong while a graph ran, or a file could not be written */
};

/* Returns the library's COE_NATIVE_ABI_VERSION. */
COE_API int32_t coe_native_abi_version(void);

/* Returns why the last call in this thread failed, or "" if it succeeded; calls that cannot fail do not
 * count. Valid until the next call that can fail. */
COE_API const char* coe_last_error(void);

/* ---- Watching a context ---- */

/* Makes a profiler for a model's file; of a split model, the first file. Reads the header and the routers'
 * weights, which takes a moment: the weights distinguish the model from others of its shape, in any
 * quantisation. */
COE_API coe_profiler* coe_profiler_open(const char* model_path);

/* Makes a profiler for given sizes. blocks: block indices of the MoE layers, ascending [n_blocks]; top_k:
 * experts that each of them chooses for a token [n_blocks]; n_experts: routed experts of a layer; n_groups,
 * n_groups_used: groups of experts, and how many of them a token uses (expert_group_count and
 * expert_group_used_count of the model's metadata), 1 and 1 without groups. Its profiles name no model. */
COE_API coe_profiler* coe_profiler_new(const int32_t* blocks, const int32_t* top_k, size_t n_blocks,
                                       size_t n_experts, size_t n_groups, size_t n_groups_used);

/* Frees a profiler. NULL is allowed. */
COE_API void coe_profiler_free(coe_profiler* profiler);

/* The callback for llama_context_params, a ggml_backend_sched_eval_callback; user_data: the profiler. */
COE_API bool coe_profiler_callback(struct ggml_tensor* tensor, bool ask, void* user_data);

/* Passes every node on to a callback of the host, which still sees the nodes that it asks for and may end
 * graphs. NULL removes it. Do not call this while a graph runs. */
COE_API int32_t coe_profiler_chain(coe_profiler* profiler, coe_eval_callback callback, void* user_data);

/* Sums the activation norms of the experts' outputs too, by which masks are best. n_threads: threads for
 * experts in host memory, such as llama_context_params' n_threads. Call this before the first graph runs. */
COE_API int32_t coe_profiler_watch_norms(coe_profiler* profiler, int32_t n_threads);

/* Returns the counts so far; free them with coe_profile_free. */
COE_API coe_profile* coe_profiler_snapshot(coe_profiler* profiler);

/* Forgets all counts and errors. A mask stays. */
COE_API int32_t coe_profiler_reset(coe_profiler* profiler);

/* ---- Masking a context ----
 *
 * From the next graph on, only the kept experts can be selected: the model is the specialist that `coe-native
 * prune` would write. A model that cannot be cut to them is refused. The context's memory was computed
 * before, so clear it first. Every token is checked; if a dropped expert is chosen, the counts fail as above.
 * A mask stays in force even if the counts fail. */

/* Sets the mask of a file, which must be for the profiler's model. */
COE_API int32_t coe_profiler_load_mask(coe_profiler* profiler, const char* path);

/* Sets a mask. kept: n_kept expert indices for each layer, one layer after another [n_blocks, n_kept], each
 * layer ascending; n_kept is from the largest top_k to n_experts. */
COE_API int32_t coe_profiler_mask(coe_profiler* profiler, const int32_t* kept, size_t n_kept);

/* Removes the mask. */
COE_API int32_t coe_profiler_clear_mask(coe_profiler* profiler);

/* Writes how often the mask was applied to each layer's router since it was set, once or twice for each graph
 * [n_blocks]. 0: it has had no effect there. */
COE_API int32_t coe_profiler_mask_applications(coe_profiler* profiler, uint64_t* applications);

/* ---- Profiles ---- */

/* Frees a profile. NULL is allowed. */
COE_API void coe_profile_free(coe_profile* profile);

/* Return the number of MoE layers, of experts of a layer, and of experts that a layer chooses for a token
 * (the maximum). 0 for NULL. */
COE_API size_t coe_profile_n_blocks(const coe_profile* profile);
COE_API size_t coe_profile_n_experts(const coe_profile* profile);
COE_API size_t coe_profile_top_k(const coe_profile* profile);

/* Return arrays that are valid until the profile is freed or merged into; NULL for NULL.
 * blocks: block indices [n_blocks].
 * tokens: number of tokens that each layer has seen [n_blocks].
 * histograms: how often an expert was chosen at each rank, 0: highest weight [n_blocks, n_experts, top_k].
 * weight_sum: the sum of the router weights of those choices [n_blocks, n_experts, top_k]. */
COE_API const int32_t* coe_profile_blocks(const coe_profile* profile);
COE_API const uint64_t* coe_profile_tokens(const coe_profile* profile);
COE_API const int64_t* coe_profile_histograms(const coe_profile* profile);
COE_API const double* coe_profile_weight_sum(const coe_profile* profile);

/* Return sums of the norms of each expert's outputs over the tokens that chose it, before and after they are
 * multiplied with the router's weights [n_blocks, n_experts]. Valid as above; NULL for a profile without
 * norms. */
COE_API const double* coe_profile_norm_sum(const coe_profile* profile);
COE_API const double* coe_profile_weighted_norm_sum(const coe_profile* profile);

/* Reads a profile's file; free it with coe_profile_free. A profile imported from another tool's counts has no
 * weights (all weight_sum are 0), or no ranks (top_k is 1: all choices are counted at rank 0). */
COE_API coe_profile* coe_profile_load(const char* path);

/* Adds the counts of another profile of the same model, for example of another context. Both must have norms,
 * or neither. */
COE_API int32_t coe_profile_merge(coe_profile* profile, const coe_profile* other);

/* Writes the profile's file, whole or not at all; an existing file is replaced. source: a few words on what
 * the text was; they are written to the file, beside the corpora of loaded profiles. */
COE_API int32_t coe_profile_save(const coe_profile* profile, const char* path, const char* source);

#ifdef __cplusplus
}
#endif

#endif
