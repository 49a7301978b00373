/* The C header in plain C99, without a model: what a host may get wrong, and what it gets back. */
#include <stdio.h>
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

static void check_new_and_free(void) {
    const int32_t blocks[] = {0, 3, 4};
    const int32_t descending[] = {3, 0};
    const int32_t twice[] = {3, 3};
    const int32_t negative[] = {-1};
    coe_profiler* profiler = coe_profiler_new(blocks, 3, 8, 2);
    CHECK(profiler != NULL);
    coe_profiler_free(profiler);
    coe_profiler_free(NULL);
    profiler = coe_profiler_new(blocks, 1, 1, 1);
    CHECK(profiler != NULL);
    coe_profiler_free(profiler);

    CHECK(coe_profiler_new(NULL, 0, 8, 2) == NULL);
    CHECK(coe_profiler_new(blocks, 0, 8, 2) == NULL);
    CHECK(coe_profiler_new(blocks, 3, 0, 0) == NULL);
    CHECK(coe_profiler_new(blocks, 3, 8, 0) == NULL);
    CHECK(coe_profiler_new(blocks, 3, 8, 9) == NULL);
    CHECK(coe_profiler_new(descending, 2, 8, 2) == NULL);
    CHECK(coe_profiler_new(twice, 2, 8, 2) == NULL);
    CHECK(coe_profiler_new(negative, 1, 8, 2) == NULL);
    CHECK(coe_profiler_new(blocks, 3, SIZE_MAX, 1) == NULL); /* no vector is that long */
    CHECK(coe_profiler_new(NULL, 3, 8, 2) == NULL);
#if SIZE_MAX > 0xffffffff
    CHECK(coe_profiler_new(blocks, 1, (size_t)1 << 32, (size_t)1 << 32) == NULL); /* 2^64 cells are 0 cells */
#endif
}

static void check_null_profiler(void) {
    int64_t histograms[1] = {7};
    double weight_sum[1] = {7.0};
    uint64_t tokens[1] = {7};
    const int32_t kept[1] = {0};
    CHECK(coe_profiler_counts(NULL, histograms, weight_sum) == COE_INVALID_ARGUMENT);
    CHECK(coe_profiler_tokens(NULL, tokens) == COE_INVALID_ARGUMENT);
    CHECK(coe_profiler_reset(NULL) == COE_INVALID_ARGUMENT);
    CHECK(coe_profiler_mask(NULL, kept, 1) == COE_INVALID_ARGUMENT);
    CHECK(coe_profiler_mask(NULL, NULL, 0) == COE_INVALID_ARGUMENT);
    CHECK(histograms[0] == 7 && weight_sum[0] == 7.0 && tokens[0] == 7);
    CHECK(strcmp(coe_profiler_error(NULL), "") != 0);
}

static void check_counts_of_zero(void) {
    const int32_t blocks[] = {0, 3};
    int64_t histograms[2 * 4 * 2 + 1];
    double weight_sum[2 * 4 * 2 + 1];
    uint64_t tokens[2 + 1];
    size_t i;
    coe_profiler* profiler = coe_profiler_new(blocks, 2, 4, 2);
    memset(histograms, 0x55, sizeof(histograms));
    memset(tokens, 0x55, sizeof(tokens));
    for (i = 0; i < 17; ++i) {
        weight_sum[i] = 7.0;
    }
    CHECK(coe_profiler_counts(profiler, NULL, NULL) == COE_OK);
    CHECK(coe_profiler_counts(profiler, histograms, NULL) == COE_OK);
    CHECK(coe_profiler_counts(profiler, NULL, weight_sum) == COE_OK);
    CHECK(coe_profiler_counts(profiler, histograms, weight_sum) == COE_OK);
    CHECK(coe_profiler_tokens(profiler, tokens) == COE_OK);
    for (i = 0; i < 16; ++i) {
        CHECK(histograms[i] == 0);
        CHECK(weight_sum[i] == 0.0);
    }
    CHECK(tokens[0] == 0 && tokens[1] == 0);
    /* Not a number more is written. */
    CHECK(histograms[16] == 0x5555555555555555);
    CHECK(weight_sum[16] == 7.0);
    CHECK(tokens[2] == 0x5555555555555555);
    CHECK(coe_profiler_reset(profiler) == COE_OK);
    CHECK(coe_profiler_counts(profiler, histograms, weight_sum) == COE_OK);
    CHECK(strcmp(coe_profiler_error(profiler), "") == 0);
    coe_profiler_free(profiler);
}

static void check_mask_arguments(void) {
    const int32_t blocks[] = {0, 3};
    const int32_t good[] = {0, 1, 2, 3};
    const int32_t too_large[] = {0, 1, 2, 4};
    const int32_t negative[] = {0, -1, 2, 3};
    coe_profiler* profiler = coe_profiler_new(blocks, 2, 4, 2);
    CHECK(coe_profiler_mask(profiler, good, 2) == COE_OK);
    CHECK(strcmp(coe_profiler_error(profiler), "") == 0);
    CHECK(coe_profiler_mask(profiler, too_large, 2) == COE_INVALID_ARGUMENT);
    CHECK(strstr(coe_profiler_error(profiler), "expert 4 of 4") != NULL);
    CHECK(coe_profiler_mask(profiler, negative, 2) == COE_INVALID_ARGUMENT);
    CHECK(strstr(coe_profiler_error(profiler), "expert -1 of 4") != NULL);
    CHECK(coe_profiler_tokens(profiler, (uint64_t[2]){0, 0}) == COE_OK); /* an error lasts for one call */
    CHECK(strcmp(coe_profiler_error(profiler), "") == 0);
    CHECK(coe_profiler_tokens(profiler, NULL) == COE_INVALID_ARGUMENT);
    CHECK(coe_profiler_mask(profiler, NULL, 2) == COE_INVALID_ARGUMENT);
    CHECK(coe_profiler_mask(profiler, good, 1) == COE_INVALID_ARGUMENT); /* fewer than a token chooses */
    CHECK(coe_profiler_mask(profiler, good, 5) == COE_INVALID_ARGUMENT); /* more than there are */
    CHECK(coe_profiler_mask(profiler, (const int32_t[]){0, 1, 2, 2}, 2) == COE_INVALID_ARGUMENT);
    CHECK(coe_profiler_mask(profiler, NULL, 0) == COE_OK);
    CHECK(coe_profiler_mask(profiler, good, 0) == COE_OK);
    coe_profiler_free(profiler);
}

int main(void) {
    CHECK(coe_native_abi_version() == 1);
    CHECK(COE_OK == 0);
    check_new_and_free();
    check_null_profiler();
    check_counts_of_zero();
    check_mask_arguments();
    printf(n_failed == 0 ? "passed\n" : "%d checks failed\n", n_failed);
    return n_failed == 0 ? 0 : 1;
}
