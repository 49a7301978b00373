// Any file as a model: its routers' layout is refused in one line, or it is one that a profiler can be made
// for.
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "capture/live_profiler.h"
#include "fuzz.h"
#include "model/fingerprint.h"
#include "scratch_file.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    static const ScratchFile scratch;
    scratch.write(data, size);
    coe::RouterLayout layout;
    try {
        layout = coe::read_router_layout(scratch.path);
    } catch (const std::invalid_argument&) {
        return 0;
    }
    REQUIRE(layout.fingerprint.size() == 64 && layout.model_name.size() <= 4 * 200);
    const coe::LiveProfiler profiler(layout.blocks, layout.shape.n_experts, layout.top_k);
    REQUIRE(profiler.blocks() == layout.blocks && profiler.n_experts() == layout.shape.n_experts);
    return 0;
}
