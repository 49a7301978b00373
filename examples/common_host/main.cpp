// A program on llama.cpp's `common`, with its options (-m, -p, -n, -ngl, ...), that profiles itself: what had
// to be added to it is marked, and llama.cpp itself is left alone.
#include <clocale>
#include <cstdio>
#include <string>
#include <vector>

#include "arg.h"
#include "coe_native.h"  // added
#include "common.h"
#include "sampling.h"

int main(int argc, char** argv) {
    std::setlocale(LC_NUMERIC, "C");
    common_params params;
    params.n_predict = 32;
    common_init();
    if (!common_params_parse(argc, argv, params, LLAMA_EXAMPLE_COMMON)) {
        return 1;
    }

    // Added: `common` hands the callback on to the context that it makes.
    coe_profiler* profiler = coe_profiler_open(params.model.path.c_str());
    if (profiler == nullptr) {
        std::fprintf(stderr, "%s\n", coe_last_error());
        return 1;
    }
    params.cb_eval = coe_profiler_callback;
    params.cb_eval_user_data = profiler;
    // To here.

    int status = 0;
    {
        const common_init_result_ptr loaded = common_init_from_params(params);
        llama_context* context = loaded->context();
        if (context == nullptr) {
            return 1;
        }
        coe_profiler_reset(profiler);  // added: `common` tries the context out before it hands it over
        common_sampler* sampler = common_sampler_init(loaded->model(), params.sampling);
        std::vector<llama_token> tokens = common_tokenize(context, params.prompt, true);
        for (int n_made = 0; status == 0; ++n_made) {
            status =
                llama_decode(context, llama_batch_get_one(tokens.data(), static_cast<int>(tokens.size())));
            if (status != 0 || n_made == params.n_predict) {
                break;
            }
            const llama_token token = common_sampler_sample(sampler, context, -1);
            common_sampler_accept(sampler, token, true);
            std::printf("%s", common_token_to_piece(context, token, false).c_str());
            tokens = {token};
        }
        std::printf("\n");
        common_sampler_free(sampler);
    }

    // Added: when the context has gone, or whenever the counts are wanted.
    coe_profile* profile = coe_profiler_snapshot(profiler);
    if (profile == nullptr ||
        coe_profile_save(profile, "common_host.profile.gguf", "a program on common") != COE_OK) {
        std::fprintf(stderr, "%s\n", coe_last_error());
        status = 1;
    }
    coe_profile_free(profile);
    coe_profiler_free(profiler);
    // To here.
    return status;
}
