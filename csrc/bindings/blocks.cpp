#include <optional>

#include "bindings/bindings.h"
#include "gguf/tensor_blocks.h"

namespace py = pybind11;

namespace coe::bindings {

namespace {

size_t bytes_of(const py::buffer_info& info) { return static_cast<size_t>(info.size * info.itemsize); }

}  // namespace

void register_blocks(py::module_& module) {
    module.def(
        "slice_norms",
        [](const py::buffer& buffer, uint32_t type, size_t n_slices) {
            const py::buffer_info info = buffer.request();
            const auto* data = static_cast<const uint8_t*>(info.ptr);
            const size_t n_bytes = bytes_of(info);
            std::vector<double> norms;
            {
                const py::gil_scoped_release release;
                norms = slice_norms(data, n_bytes, type, n_slices);
            }
            return py::array_t<double>(static_cast<py::ssize_t>(norms.size()), norms.data());
        },
        py::arg("buffer"), py::arg("type"), py::arg("n_slices"));
    module.def(
        "first_not_finite",
        [](const py::buffer& buffer, uint32_t type, size_t n_slices) -> std::optional<size_t> {
            const py::buffer_info info = buffer.request();
            const py::gil_scoped_release release;
            const size_t found =
                first_not_finite(static_cast<const uint8_t*>(info.ptr), bytes_of(info), type, n_slices);
            return found == n_slices ? std::nullopt : std::optional<size_t>(found);
        },
        py::arg("buffer"), py::arg("type"), py::arg("n_slices"));
    module.def(
        "slice_differences",
        [](const py::buffer& first, uint32_t first_type, const py::buffer& second, uint32_t second_type,
           size_t n_slices) {
            const py::buffer_info ours = first.request();
            const py::buffer_info theirs = second.request();
            std::vector<double> norms;
            {
                const py::gil_scoped_release release;
                norms = slice_differences(static_cast<const uint8_t*>(ours.ptr), bytes_of(ours), first_type,
                                          static_cast<const uint8_t*>(theirs.ptr), bytes_of(theirs),
                                          second_type, n_slices);
            }
            return py::array_t<double>(static_cast<py::ssize_t>(norms.size()), norms.data());
        },
        py::arg("first"), py::arg("first_type"), py::arg("second"), py::arg("second_type"),
        py::arg("n_slices"));
    module.def("has_norm", &has_norm, py::arg("type"));
}

}  // namespace coe::bindings
