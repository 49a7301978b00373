// Any file as a model: its routers' layout is refused in one line, or it is one that a profiler can be made
// for.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>

#include "fuzz.h"
#include "live_profiler.h"
#include "router_layout.h"

namespace {

// One for each process, gone with it.
struct Scratch {
    std::string path = (std::filesystem::temp_directory_path() /
                        ("coe-fuzz-" + std::to_string(reinterpret_cast<uintptr_t>(this)) + ".gguf"))
                           .string();
    ~Scratch() { std::remove(path.c_str()); }
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    static const Scratch scratch;
    std::ofstream(scratch.path, std::ios::binary)
        .write(reinterpret_cast<const char*>(data), static_cast<std::streamsize>(size));
    coe::RouterLayout layout;
    try {
        layout = coe::read_router_layout(scratch.path);
    } catch (const std::invalid_argument&) {
        return 0;
    }
    REQUIRE(layout.fingerprint.size() == 64 && layout.model_name.size() <= 4 * 200);
    const coe::LiveProfiler profiler(layout.blocks, layout.n_experts, layout.top_k);
    REQUIRE(profiler.blocks() == layout.blocks && profiler.n_experts() == layout.n_experts);
    return 0;
}
