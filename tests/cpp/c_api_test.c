/* The C header in plain C99, without a model: what a host may get wrong, and what it gets back. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "coe_native.h"

static int n_failed = 0;

#define CHECK(condition)                                                           \
    do {                                                                           \
        if (!(condition)) {                                                        \
            printf("FAILED %s:%d: %s is false\n", __FILE__, __LINE__, #condition); \
            ++n_failed;                                                            \
        }                                                                          \
    } while (0)

static const int32_t blocks[] = {1, 3};
static const int32_t top_k[] = {2, 2};

static void check_refused(coe_profiler* profiler, const char* why) {
    CHECK(profiler == NULL);
    CHECK(strstr(coe_last_error(), why) != NULL);
    coe_profiler_free(profiler);
}

static void check_new_and_free(void) {
    const int32_t descending[] = {3, 1};
    const int32_t negative[] = {-1, 3};
    const int32_t too_large[] = {1, 65536};
    const int32_t no_choice[] = {2, 0};
    const int32_t too_many[] = {2, 5};
    coe_profiler* profiler = coe_profiler_new(blocks, top_k, 2, 4, 1, 1);
    CHECK(profiler != NULL);
    CHECK(strcmp(coe_last_error(), "") == 0);
    coe_profiler_free(profiler);
    coe_profiler_free(NULL);
    check_refused(coe_profiler_new(NULL, top_k, 2, 4, 1, 1), "must not be NULL");
    check_refused(coe_profiler_new(blocks, NULL, 2, 4, 1, 1), "must not be NULL");
    check_refused(coe_profiler_new(blocks, top_k, 0, 4, 1, 1), "MoE layers");
    check_refused(coe_profiler_new(blocks, top_k, 2, 0, 1, 1), "experts");
    check_refused(coe_profiler_new(blocks, no_choice, 2, 4, 1, 1), "top_k");
    check_refused(coe_profiler_new(blocks, too_many, 2, 4, 1, 1), "top-k");
    check_refused(coe_profiler_new(blocks, top_k, 2, (size_t)1 << 40, 1, 1), "top-k");
    check_refused(coe_profiler_new(blocks, top_k, 2, 4, 0, 1), "groups");
    check_refused(coe_profiler_new(blocks, top_k, 2, 4, 3, 1), "groups");
    check_refused(coe_profiler_new(blocks, top_k, 2, 4, 2, 2), "groups");
    check_refused(coe_profiler_new(blocks, top_k, 2, 4, 1, 0), "groups");
    check_refused(coe_profiler_new(descending, top_k, 2, 4, 1, 1), "ascending");
    check_refused(coe_profiler_new(negative, top_k, 2, 4, 1, 1), "ascending");
    check_refused(coe_profiler_new(too_large, top_k, 2, 4, 1, 1), "ascending");
    check_refused(coe_profiler_open(NULL), "must not be NULL");
    check_refused(coe_profiler_open("no such file"), "no such file: ");
    check_refused(coe_profiler_open("."), "not a file");
}

static void check_null(void) {
    uint64_t numbers[2];
    CHECK(coe_profiler_snapshot(NULL) == NULL);
    CHECK(strstr(coe_last_error(), "profiler") != NULL);
    CHECK(coe_profiler_reset(NULL) == COE_INVALID_ARGUMENT);
    CHECK(coe_profiler_mask(NULL, blocks, 2) == COE_INVALID_ARGUMENT);
    CHECK(coe_profiler_load_mask(NULL, "mask.json") == COE_INVALID_ARGUMENT);
    CHECK(coe_profiler_clear_mask(NULL) == COE_INVALID_ARGUMENT);
    CHECK(coe_profiler_mask_applications(NULL, numbers) == COE_INVALID_ARGUMENT);
    CHECK(coe_profiler_chain(NULL, NULL, NULL) == COE_INVALID_ARGUMENT);
    CHECK(!coe_profiler_callback(NULL, true, NULL));
    CHECK(coe_profiler_callback(NULL, false, NULL));
    CHECK(coe_profile_n_blocks(NULL) == 0 && coe_profile_n_experts(NULL) == 0 &&
          coe_profile_top_k(NULL) == 0);
    CHECK(coe_profile_blocks(NULL) == NULL && coe_profile_tokens(NULL) == NULL);
    CHECK(coe_profile_histograms(NULL) == NULL && coe_profile_weight_sum(NULL) == NULL);
    CHECK(coe_profile_merge(NULL, NULL) == COE_INVALID_ARGUMENT);
    CHECK(coe_profile_save(NULL, "x", "y") == COE_INVALID_ARGUMENT);
    CHECK(coe_profile_load(NULL) == NULL);
    CHECK(coe_profile_load("no such file") == NULL);
    CHECK(strstr(coe_last_error(), "no such file: ") != NULL);
    coe_profile_free(NULL);
}

static void check_counts_of_nothing(void) {
    const int32_t others[] = {1, 4};
    coe_profiler* profiler = coe_profiler_new(blocks, top_k, 2, 4, 1, 1);
    coe_profiler* other = coe_profiler_new(others, top_k, 2, 4, 1, 1);
    coe_profile* profile = coe_profiler_snapshot(profiler);
    coe_profile* of_other = coe_profiler_snapshot(other);
    size_t i;
    CHECK(profile != NULL && of_other != NULL);
    CHECK(coe_profile_n_blocks(profile) == 2 && coe_profile_n_experts(profile) == 4);
    CHECK(coe_profile_top_k(profile) == 2);
    CHECK(coe_profile_blocks(profile)[0] == 1 && coe_profile_blocks(profile)[1] == 3);
    CHECK(coe_profile_tokens(profile)[0] == 0 && coe_profile_tokens(profile)[1] == 0);
    for (i = 0; i < 2 * 4 * 2; ++i) {
        CHECK(coe_profile_histograms(profile)[i] == 0);
        CHECK(coe_profile_weight_sum(profile)[i] == 0.0);
    }
    CHECK(coe_profile_merge(profile, profile) == COE_OK);
    CHECK(coe_profile_merge(profile, of_other) == COE_INVALID_ARGUMENT);
    CHECK(strstr(coe_last_error(), "one model") != NULL);
    CHECK(coe_profile_save(profile, NULL, "text") == COE_INVALID_ARGUMENT);
    CHECK(coe_profile_save(profile, "no such directory/profile.gguf", "text") == COE_FAILED);
    CHECK(strstr(coe_last_error(), "no such directory/profile.gguf: cannot be written") != NULL);
    CHECK(coe_profile_save(profile, ".", "text") == COE_FAILED);
    CHECK(coe_profiler_reset(profiler) == COE_OK);
    coe_profiler_free(profiler);
    coe_profiler_free(other);
    CHECK(coe_profile_n_experts(profile) == 4); /* a profile outlives its profiler */
    coe_profile_free(profile);
    coe_profile_free(of_other);
}

static void check_mask_arguments(void) {
    const int32_t good[] = {0, 1, 2, 3};
    const int32_t outside[] = {0, 1, 2, 4};
    const int32_t negative[] = {-1, 1, 2, 3};
    const int32_t twice[] = {0, 1, 2, 2};
    const int32_t descending[] = {0, 1, 3, 2};
    const int32_t many[10] = {0, 1, 2, 3, 3, 0, 1, 2, 3, 3};
    uint64_t applications[] = {7, 7};
    coe_profiler* profiler = coe_profiler_new(blocks, top_k, 2, 4, 1, 1);
    CHECK(coe_profiler_mask(profiler, good, 2) == COE_OK);
    CHECK(coe_profiler_mask(profiler, outside, 2) == COE_INVALID_ARGUMENT);
    CHECK(coe_profiler_mask(profiler, negative, 2) == COE_INVALID_ARGUMENT);
    CHECK(coe_profiler_mask(profiler, twice, 2) == COE_INVALID_ARGUMENT);
    CHECK(coe_profiler_mask(profiler, descending, 2) == COE_INVALID_ARGUMENT);
    CHECK(coe_profiler_mask(profiler, NULL, 2) == COE_INVALID_ARGUMENT);
    CHECK(coe_profiler_mask(profiler, good, 1) == COE_INVALID_ARGUMENT); /* fewer than a token chooses */
    CHECK(strstr(coe_last_error(), "a token needs 2") != NULL);
    CHECK(coe_profiler_mask(profiler, many, 5) == COE_INVALID_ARGUMENT); /* more than there are */
    CHECK(coe_profiler_mask(profiler, good, 0) == COE_INVALID_ARGUMENT);
    CHECK(coe_profiler_mask_applications(profiler, applications) == COE_OK);
    CHECK(applications[0] == 0 && applications[1] == 0);
    CHECK(coe_profiler_mask_applications(profiler, NULL) == COE_INVALID_ARGUMENT);
    CHECK(coe_profiler_load_mask(profiler, "no such file") == COE_INVALID_ARGUMENT);
    CHECK(strstr(coe_last_error(), "no such file: ") != NULL);
    CHECK(coe_profiler_clear_mask(profiler) == COE_OK);
    coe_profiler_free(profiler);
}

int main(void) {
    CHECK(coe_native_abi_version() == COE_NATIVE_ABI_VERSION);
    CHECK(COE_OK == 0);
    check_new_and_free();
    check_null();
    check_counts_of_nothing();
    check_mask_arguments();
    printf(n_failed == 0 ? "passed\n" : "%d checks failed\n", n_failed);
    return n_failed == 0 ? 0 : 1;
}
