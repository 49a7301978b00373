/* coe-native in a program that runs llama.cpp: counts which experts of a mixture-of-experts model its routers
 * choose, writes that as a profile, and makes experts unselectable while the model runs.
 *
 * A profiler is the callback of one llama_context:
 *
 *     coe_profiler * profiler  = coe_profiler_open("model.gguf");
 *     params.cb_eval           = coe_profiler_callback;
 *     params.cb_eval_user_data = profiler;
 *
 * Then decode as usual, look at the counts or write them, and free the context before its profiler:
 *
 *     coe_profile * profile = coe_profiler_snapshot(profiler);
 *     coe_profile_save(profile, "model.profile.gguf", "what my program was asked");
 *     coe_profile_free(profile);
 *
 * `coe-native mask`, `score`, `report` and `merge` take the file. Nothing of any text is kept.
 *
 * Layers count for themselves: a host asks for few logits, and on most architectures the last layer runs for
 * those tokens only. coe_profile_tokens has the tokens of each layer, and so has the file.
 *
 * Warm-up: llama.cpp's own tools run a few tokens first (llama_set_warmup), for which most architectures use
 * all experts; these are not counted. Nemotron-H, Kimi, DeepSeek 4 and BERT choose experts in a warm-up as
 * they do elsewhere, which looks like a short text: call coe_profiler_reset after the warm-up to leave it
 * out. Masks may be set before or after it.
 *
 * Errors: functions that return int32_t return COE_OK or another coe_status, those that return a pointer
 * return NULL, and coe_last_error tells why, in one line. Nothing here ends the process, and no exception
 * leaves it. What goes wrong while a graph runs is reported by the next call that needs the counts; they are
 * of no use then, and every such call fails until coe_profiler_reset.
 *
 * Threads: the callback runs in the thread that decodes; all other functions may be called from any. Between
 * two decodes the counts are those of all tokens so far; during one, some layers are ahead of others.
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

/* What this header describes; coe_native_abi_version tells what the library does. Raised by one whenever a
 * function or a type of this header changes. */
#define COE_NATIVE_ABI_VERSION 4

#ifdef __cplusplus
extern "C" {
#endif

struct ggml_tensor;

/* Watches the routers of one context. */
typedef struct coe_profiler coe_profiler;

/* Counts, at one moment. Nobody but its owner changes it. */
typedef struct coe_profile coe_profile;

/* llama.cpp's ggml_backend_sched_eval_callback. */
typedef bool (*coe_eval_callback)(struct ggml_tensor* tensor, bool ask, void* user_data);

enum coe_status {
    COE_OK = 0,
    COE_INVALID_ARGUMENT = 1, /* an argument or a file is not what is needed; nothing has changed */
    COE_FAILED = 2            /* something went wrong while a graph ran, or a file could not be written */
};

COE_API int32_t coe_native_abi_version(void);

/* Why the last call in this thread that can fail did, or "" if it did not. Valid until the next such call. */
COE_API const char* coe_last_error(void);

/* ---- Watching a context ---- */

/* For a model's file: for a split one, its first. Its header and its routers' weights are read, which takes a
 * moment; the weights tell this model from others of its shape, in any quantisation. */
COE_API coe_profiler* coe_profiler_open(const char* model_path);

/* For given sizes. blocks: block indices of the MoE layers, ascending [n_blocks]; top_k: experts that each of
 * them chooses for a token [n_blocks]; n_experts: routed experts of a layer; n_groups, n_groups_used: groups
 * of experts, and how many of them a token uses (expert_group_count and expert_group_used_count of the
 * model's metadata), 1 and 1 without groups. Its profiles name no model. */
COE_API coe_profiler* coe_profiler_new(const int32_t* blocks, const int32_t* top_k, size_t n_blocks,
                                       size_t n_experts, size_t n_groups, size_t n_groups_used);

COE_API void coe_profiler_free(coe_profiler* profiler);

/* A ggml_backend_sched_eval_callback; user_data: the profiler. */
COE_API bool coe_profiler_callback(struct ggml_tensor* tensor, bool ask, void* user_data);

/* Passes every node on to a callback that the host has already, which goes on seeing what it asks for and may
 * end graphs; NULL takes it away. Not while a graph runs. */
COE_API int32_t coe_profiler_chain(coe_profiler* profiler, coe_eval_callback callback, void* user_data);

/* What has been counted so far; to be freed with coe_profile_free. */
COE_API coe_profile* coe_profiler_snapshot(coe_profiler* profiler);

/* Forgets all counts, and what went wrong. A mask stays. */
COE_API int32_t coe_profiler_reset(coe_profiler* profiler);

/* ---- Masking a context ----
 *
 * From the next graph on, all experts but the kept ones are unselectable: the model is the specialist that
 * `coe-native prune` would write. A model that cannot be cut so is refused. What the context has in its
 * memory was computed before: clear that first. That no other expert is chosen is checked at every token;
 * where one is, the counts fail as above. A mask stays in force whatever goes wrong with the counts. */

/* A mask's file, which must be for the profiler's model. */
COE_API int32_t coe_profiler_load_mask(coe_profiler* profiler, const char* path);

/* kept: n_kept expert indices for each layer, one layer after another [n_blocks, n_kept], each ascending;
 * n_kept is from the largest top_k to n_experts. */
COE_API int32_t coe_profiler_mask(coe_profiler* profiler, const int32_t* kept, size_t n_kept);

COE_API int32_t coe_profiler_clear_mask(coe_profiler* profiler);

/* How often the mask was written over the router of each layer since it was set, once or twice for each graph
 * [n_blocks]: 0 where it has had nothing to act on. */
COE_API int32_t coe_profiler_mask_applications(coe_profiler* profiler, uint64_t* applications);

/* ---- Profiles ---- */

COE_API void coe_profile_free(coe_profile* profile);

/* Sizes: MoE layers, experts of a layer, and the most experts that a layer chooses for a token. 0 for NULL.
 */
COE_API size_t coe_profile_n_blocks(const coe_profile* profile);
COE_API size_t coe_profile_n_experts(const coe_profile* profile);
COE_API size_t coe_profile_top_k(const coe_profile* profile);

/* Valid until the profile is freed or added to; NULL for NULL.
 * blocks: block indices [n_blocks].
 * tokens: how many each layer has seen [n_blocks].
 * histograms: how often an expert was the choice of each rank, 0 the heaviest [n_blocks, n_experts, top_k].
 * weight_sum: the sum of the router weights of those choices [n_blocks, n_experts, top_k]. */
COE_API const int32_t* coe_profile_blocks(const coe_profile* profile);
COE_API const uint64_t* coe_profile_tokens(const coe_profile* profile);
COE_API const int64_t* coe_profile_histograms(const coe_profile* profile);
COE_API const double* coe_profile_weight_sum(const coe_profile* profile);

/* Reads a profile's file; to be freed with coe_profile_free. One that was imported from another tool's counts
 * has no weights (all weight_sum are 0), or no ranks (top_k is 1: all choices are counted at rank 0). */
COE_API coe_profile* coe_profile_load(const char* path);

/* Adds the counts of another profile of the same model, of another context for example. */
COE_API int32_t coe_profile_merge(coe_profile* profile, const coe_profile* other);

/* Writes the profile's file, whole or not at all; one that exists is replaced. source: what the text was, in
 * a few words; it is written into the file, beside the corpora of profiles that were loaded. */
COE_API int32_t coe_profile_save(const coe_profile* profile, const char* path, const char* source);

#ifdef __cplusplus
}
#endif

#endif
