#include "bindings/bindings.h"
#include "gguf/tensor_blocks.h"

namespace py = pybind11;

namespace coe::bindings {

void register_blocks(py::module_& module) {
    module.def(
        "slice_norms",
        [](const py::buffer& buffer, uint32_t type, size_t n_slices) {
            const py::buffer_info info = buffer.request();
            const auto* data = static_cast<const uint8_t*>(info.ptr);
            const auto n_bytes = static_cast<size_t>(info.size * info.itemsize);
            std::vector<double> norms;
            {
                const py::gil_scoped_release release;
                norms = slice_norms(data, n_bytes, type, n_slices);
            }
            return py::array_t<double>(static_cast<py::ssize_t>(norms.size()), norms.data());
        },
        py::arg("buffer"), py::arg("type"), py::arg("n_slices"));
    module.def("has_norm", &has_norm, py::arg("type"));
}

}  // namespace coe::bindings
