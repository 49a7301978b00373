#include <optional>

#include "bindings/bindings.h"
#include "formats/atomic_file.h"
#include "formats/profile_file.h"

namespace py = pybind11;

namespace coe::bindings {

namespace {

using Integers = py::array_t<int64_t, py::array::c_style | py::array::forcecast>;
using Numbers = py::array_t<double, py::array::c_style | py::array::forcecast>;

ExactSums to_sums(const Numbers& sums, const Numbers& rests) {
    return ExactSums(to_vector<double>(sums), to_vector<double>(rests));
}

template <typename Value>
py::array_t<Value> cube(const Profile& profile, const std::vector<Value>& values) {
    return py::array_t<Value>({profile.blocks.size(), profile.n_experts, profile.n_ranks}, values.data());
}

py::array_t<double> table(const Profile& profile, const std::vector<double>& values) {
    return py::array_t<double>({profile.blocks.size(), profile.n_experts}, values.data());
}

// Returns sums of norms and of weighted norms, and their rests from rounding; None without activation norms.
py::object outputs(const Profile& profile) {
    if (!profile.outputs) {
        return py::none();
    }
    return py::make_tuple(table(profile, profile.outputs->norm_sum.sums()),
                          table(profile, profile.outputs->weighted_norm_sum.sums()),
                          table(profile, profile.outputs->norm_sum.rests()),
                          table(profile, profile.outputs->weighted_norm_sum.rests()));
}

void set_outputs(Profile& profile, const Numbers& norm_sum, const Numbers& weighted_norm_sum,
                 const Numbers& norm_rest, const Numbers& weighted_rest) {
    profile.outputs = OutputSums{to_sums(norm_sum, norm_rest), to_sums(weighted_norm_sum, weighted_rest)};
}

}  // namespace

void register_profile(py::module_& module) {
    py::class_<Profile>(module, "Profile")
        .def(py::init<>())
        .def_property(
            "architecture", [](const Profile& p) { return to_str(p.architecture); },
            [](Profile& p, const py::bytes& text) { p.architecture = text; })
        .def_property(
            "model_name", [](const Profile& p) { return to_str(p.model_name); },
            [](Profile& p, const py::bytes& text) { p.model_name = text; })
        .def_property(
            "fingerprint", [](const Profile& p) { return to_str(p.fingerprint); },
            [](Profile& p, const py::bytes& text) { p.fingerprint = text; })
        .def_readwrite("blocks", &Profile::blocks)
        .def_readwrite("n_experts", &Profile::n_experts)
        .def_readwrite("n_ranks", &Profile::n_ranks)
        .def_readwrite("n_chosen", &Profile::n_chosen)
        .def_readwrite("n_groups", &Profile::n_groups)
        .def_readwrite("n_groups_used", &Profile::n_groups_used)
        .def_readwrite("n_tokens", &Profile::n_tokens)
        .def_readwrite("layer_tokens", &Profile::layer_tokens)
        .def_readwrite("has_weights", &Profile::has_weights)
        .def_property_readonly("histograms", [](const Profile& p) { return cube(p, p.histograms); })
        .def_property_readonly("weight_sum", [](const Profile& p) { return cube(p, p.weight_sum.sums()); })
        .def_property_readonly("weight_sum_rest",
                               [](const Profile& p) { return cube(p, p.weight_sum.rests()); })
        .def_property_readonly("outputs", &outputs)
        .def_property(
            "corpora", [](const Profile& p) { return encode_corpora(p.corpora); },
            [](Profile& p, const py::bytes& json) { p.corpora = decode_corpora(json); })
        .def("set_counts",
             [](Profile& p, const Integers& histograms, const Numbers& weight_sum, const Numbers& rest) {
                 p.histograms = to_vector<int64_t>(histograms);
                 p.weight_sum = to_sums(weight_sum, rest);
             })
        .def("set_outputs", &set_outputs)
        .def("check", &Profile::check, ReleaseGil())
        .def("add", &Profile::add, py::arg("other"), ReleaseGil())
        .def(
            "encode",
            [](const Profile& p, const ExtraMetadata& extra) {
                const std::vector<uint8_t> bytes = encode_profile(p, extra);
                return py::bytes(reinterpret_cast<const char*>(bytes.data()), bytes.size());
            },
            py::arg("extra"));
    module.def("decode_profile", &decode_profile, py::arg("file"), ReleaseGil());
}

}  // namespace coe::bindings
