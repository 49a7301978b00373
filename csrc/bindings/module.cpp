#include <string>

#include "base/ggml_check.h"
#include "bindings/bindings.h"
#include "ggml.h"

namespace {

void refuse_other_ggml() {
    const std::string other = coe::find_other_ggml();
    if (!other.empty()) {
        throw pybind11::import_error("coe-native was compiled against ggml " COE_GGML_VERSION
                                     ", but the installed llama-cpp-python has loaded ggml " +
                                     other +
                                     "; with " COE_LLAMA_CPP_PYTHON_REQUIREMENT
                                     " installed, build it again in its source directory: "
                                     "pip install --force-reinstall --no-deps --no-cache-dir .");
    }
}

}  // namespace

PYBIND11_MODULE(_core, module) {
    module.doc() = "The compiled half of coe_native: capture, live masks and GGUF blocks.";
    refuse_other_ggml();
    module.attr("ggml_version") = ggml_version();
    module.attr("ggml_commit") = ggml_commit();
    coe::bindings::register_errors(module);
    coe::bindings::register_gguf(module);
    coe::bindings::register_blocks(module);
    coe::bindings::register_model(module);
    coe::bindings::register_mask(module);
    coe::bindings::register_profile(module);
    coe::bindings::register_live(module);
    coe::bindings::register_session(module);
}
