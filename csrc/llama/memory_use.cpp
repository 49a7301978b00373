#include "llama/memory_use.h"

#include <map>

#include "ggml-backend.h"
#include "llama.h"

// llama.cpp exports this function for its own tools, without a public header. Names and layout are those of
// the pinned version; other versions are refused when the module is imported.
struct llama_memory_breakdown_data {
    size_t model = 0;
    size_t context = 0;
    size_t compute = 0;
};
using llama_memory_breakdown = std::map<ggml_backend_buffer_type_t, llama_memory_breakdown_data>;
LLAMA_API llama_memory_breakdown llama_get_memory_breakdown(const struct llama_context* ctx);

namespace coe {

namespace {

bool is_of_gpu(ggml_backend_buffer_type_t kind) {
    const ggml_backend_dev_t device = ggml_backend_buft_get_device(kind);
    if (device == nullptr || ggml_backend_buft_is_host(kind)) {
        return false;
    }
    const auto type = ggml_backend_dev_type(device);
    return type == GGML_BACKEND_DEVICE_TYPE_GPU || type == GGML_BACKEND_DEVICE_TYPE_IGPU;
}

}  // namespace

std::vector<MemoryUse> memory_use(const llama_context* context) {
    std::vector<MemoryUse> uses;
    for (const auto& [kind, bytes] : llama_get_memory_breakdown(context)) {
        uses.push_back(
            {ggml_backend_buft_name(kind), is_of_gpu(kind), bytes.model, bytes.context, bytes.compute});
    }
    return uses;
}

}  // namespace coe
