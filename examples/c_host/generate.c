/* Generates text with llama.cpp, and writes which experts the model chose while it read and wrote.
 *
 *     generate MODEL.gguf OUTPUT.profile.gguf N_TOKENS PROMPT... [--mask MASK.json] [--no-repack]
 *
 * All that has to do with coe-native is marked with "profile:".
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "coe_native.h" /* profile: */
#include "llama.h"

static void quiet(enum ggml_log_level level, const char* text, void* user_data) {
    (void)user_data;
    if (level == GGML_LOG_LEVEL_ERROR) {
        fputs(text, stderr);
    }
}

static int fail(const char* what) {
    fprintf(stderr, "generate: %s\n", what);
    return 1;
}

static void print_token(const struct llama_vocab* vocab, llama_token token) {
    char piece[256];
    const int32_t length = llama_token_to_piece(vocab, token, piece, sizeof(piece), 0, false);
    if (length > 0) {
        fwrite(piece, 1, (size_t)length, stdout);
    }
}

/* The prompt's tokens, to be freed; NULL where there are none. */
static llama_token* tokenized(const struct llama_vocab* vocab, const char* prompt, int32_t* n_tokens) {
    const int32_t length = (int32_t)strlen(prompt);
    const int32_t n_needed = -llama_tokenize(vocab, prompt, length, NULL, 0, true, false);
    llama_token* tokens = n_needed > 0 ? malloc((size_t)n_needed * sizeof(llama_token)) : NULL;
    *n_tokens = tokens == NULL ? 0 : llama_tokenize(vocab, prompt, length, tokens, n_needed, true, false);
    return tokens;
}

int main(int n_arguments, char** arguments) {
    struct llama_model_params model_params = llama_model_default_params();
    struct llama_context_params params = llama_context_default_params();
    const char* mask_path = NULL;
    int status = 0;

    while (n_arguments > 5) {
        if (strcmp(arguments[n_arguments - 1], "--no-repack") == 0) {
            model_params.use_extra_bufts = false;
            n_arguments -= 1;
        } else if (strcmp(arguments[n_arguments - 2], "--mask") == 0) {
            mask_path = arguments[n_arguments - 1];
            n_arguments -= 2;
        } else {
            break;
        }
    }
    if (n_arguments != 5) {
        return fail("give MODEL OUTPUT N_TOKENS PROMPT, and --mask MASK or --no-repack behind them");
    }
    const char* model_path = arguments[1];
    const char* output_path = arguments[2];
    const int n_wanted = atoi(arguments[3]);

    if (coe_native_abi_version() != COE_NATIVE_ABI_VERSION) { /* profile: */
        return fail("this was built for another version of libcoe_native");
    }
    llama_log_set(quiet, NULL);
    ggml_backend_load_all();
    struct llama_model* model = llama_model_load_from_file(model_path, model_params);
    if (model == NULL) {
        return fail("the model cannot be loaded");
    }
    const struct llama_vocab* vocab = llama_model_get_vocab(model);
    int32_t n_tokens = 0;
    llama_token* prompt = tokenized(vocab, arguments[4], &n_tokens);
    if (prompt == NULL) {
        return fail("the prompt has no tokens");
    }

    coe_profiler* profiler = coe_profiler_open(model_path); /* profile: */
    if (profiler == NULL || (mask_path != NULL && coe_profiler_load_mask(profiler, mask_path) != COE_OK)) {
        return fail(coe_last_error());
    }
    params.n_ctx = (uint32_t)(n_tokens + n_wanted + 1);
    params.n_batch = params.n_ctx;
    params.cb_eval = coe_profiler_callback; /* profile: */
    params.cb_eval_user_data = profiler;    /* profile: */
    struct llama_context* context = llama_init_from_model(model, params);
    if (context == NULL) {
        return fail("there is no room for the context");
    }
    struct llama_sampler* sampler = llama_sampler_init_greedy();

    struct llama_batch batch = llama_batch_get_one(prompt, n_tokens);
    llama_token token = 0;
    for (int n_made = 0;; ++n_made) {
        if (llama_decode(context, batch) != 0) {
            status = fail("llama.cpp cannot go on");
            break;
        }
        if (n_made == n_wanted) {
            break;
        }
        token = llama_sampler_sample(sampler, context, -1);
        if (llama_vocab_is_eog(vocab, token)) {
            break;
        }
        print_token(vocab, token);
        batch = llama_batch_get_one(&token, 1);
    }
    putchar('\n');

    coe_profile* profile = coe_profiler_snapshot(profiler); /* profile: */
    if (profile == NULL || coe_profile_save(profile, output_path, "what was generated") != COE_OK) {
        status = fail(coe_last_error());
    }
    coe_profile_free(profile);

    llama_sampler_free(sampler);
    llama_free(context);
    coe_profiler_free(profiler); /* profile: behind its context */
    llama_model_free(model);
    free(prompt);
    return status;
}
