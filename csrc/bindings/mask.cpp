#include <map>
#include <tuple>

#include "bindings/bindings.h"
#include "formats/mask_file.h"

namespace py = pybind11;

namespace coe::bindings {

namespace {

using SwapFields = std::tuple<int64_t, int64_t, int64_t, int64_t, double, double>;

std::vector<SwapFields> swaps(const MaskFile& file) {
    std::vector<SwapFields> fields;
    for (const Swap& swap : file.swaps) {
        fields.emplace_back(swap.layer, swap.incoming, swap.outgoing, swap.stage, swap.incoming_score,
                            swap.outgoing_score);
    }
    return fields;
}

}  // namespace

void register_mask(py::module_& module) {
    module.attr("MASK_FORMAT") = mask_format;
    module.attr("MASK_VERSION") = mask_version;
    module.attr("MOST_MASK_BYTES") = most_mask_bytes;

    py::class_<Mask>(module, "Mask")
        .def(py::init([](std::string architecture, std::string fingerprint, size_t n_experts, size_t keep,
                         std::map<int, std::vector<int>> kept) {
                 return Mask{std::move(architecture), std::move(fingerprint), n_experts, keep,
                             std::move(kept)};
             }),
             py::arg("architecture"), py::arg("fingerprint"), py::arg("n_experts"), py::arg("keep"),
             py::arg("kept"))
        .def_readonly("architecture", &Mask::architecture)
        .def_readonly("fingerprint", &Mask::fingerprint)
        .def_readonly("n_experts", &Mask::n_experts)
        .def_readonly("keep", &Mask::keep)
        .def_readonly("kept", &Mask::kept)
        .def("check", &Mask::check)
        .def("check_model", &Mask::check_model, py::arg("layout"))
        .def("check_cut", &Mask::check_cut, py::arg("layout"));

    py::class_<MaskFile>(module, "MaskFile")
        .def_readonly("mask", &MaskFile::mask)
        .def_property_readonly("swaps", &swaps)
        .def_readonly("unplaced", &MaskFile::unplaced)
        .def_readonly("provenance", &MaskFile::provenance);

    module.def("parse_mask", [](const py::bytes& text) { return parse_mask(text); });
}

}  // namespace coe::bindings
