#include <cstring>
#include <string>

#include "bindings.h"
#include "ggml.h"

namespace {

// The layout of ggml_tensor is not stable: reading one of another version would be reading rubbish.
void refuse_other_ggml() {
    if (std::strcmp(ggml_version(), COE_GGML_VERSION) != 0) {
        throw pybind11::import_error(std::string("coe-native was compiled against ggml " COE_GGML_VERSION
                                                 ", but the installed llama-cpp-python has loaded ggml ") +
                                     ggml_version() +
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
    coe::bindings::register_gguf(module);
    coe::bindings::register_blocks(module);
    coe::bindings::register_live(module);
    coe::bindings::register_session(module);
}
