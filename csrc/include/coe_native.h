/* coe-native: counts which experts of a mixture-of-experts model its routers choose, inside llama.cpp.
 *
 * A profiler is the callback of one llama_context:
 *
 *     coe_profiler * profiler = coe_profiler_new(blocks, n_blocks, n_experts, top_k);
 *     params.cb_eval           = coe_profiler_callback;
 *     params.cb_eval_user_data = profiler;
 *
 * Then decode as usual and read the counts. A host asks for few logits, and on most architectures the last
 * layer runs for those tokens only: coe_profiler_tokens tells how many tokens each layer has seen.
 *
 * Functions return COE_OK or an error code and never end the process; coe_profiler_error has the reason.
 * After COE_FAILED the counts are of no use: every call fails until coe_profiler_reset. A profiler must not
 * be used from two threads at once.
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

#ifdef __cplusplus
extern "C" {
#endif

struct ggml_tensor;
typedef struct coe_profiler coe_profiler;

enum coe_status {
    COE_OK = 0,
    COE_INVALID_ARGUMENT = 1,
    COE_FAILED = 2 /* something went wrong while a graph ran */
};

/* Raised by one whenever a function or a struct of this header changes. */
COE_API int32_t coe_native_abi_version(void);

/* blocks: block indices of the MoE layers, ascending [n_blocks]; n_experts: routed experts of a layer; top_k:
 * experts chosen for a token. NULL where these make no sense. */
COE_API coe_profiler* coe_profiler_new(const int32_t* blocks, size_t n_blocks, size_t n_experts,
                                       size_t top_k);
COE_API void coe_profiler_free(coe_profiler* profiler);

/* A ggml_backend_sched_eval_callback; user_data: the profiler. */
COE_API bool coe_profiler_callback(struct ggml_tensor* tensor, bool ask, void* user_data);

/* Copies the counts so far, as [n_blocks, n_experts, top_k]. histograms: how often an expert was the choice
 * of each rank; weight_sum: the sum of the router weights of those choices. Either may be NULL. */
COE_API int32_t coe_profiler_counts(coe_profiler* profiler, int64_t* histograms, double* weight_sum);

/* Tokens that each layer has seen, [n_blocks]. */
COE_API int32_t coe_profiler_tokens(coe_profiler* profiler, uint64_t* tokens);

/* Forgets all counts. */
COE_API int32_t coe_profiler_reset(coe_profiler* profiler);

/* Makes all experts but the kept ones unselectable from the next decode on. kept: n_kept expert indices for
 * each block, one block after another [n_blocks, n_kept]; n_kept is from top_k to n_experts, or 0, which
 * takes the mask away. */
COE_API int32_t coe_profiler_mask(coe_profiler* profiler, const int32_t* kept, size_t n_kept);

/* The reason of the last error, or "". Valid until the profiler's next call. */
COE_API const char* coe_profiler_error(const coe_profiler* profiler);

#ifdef __cplusplus
}
#endif

#endif
