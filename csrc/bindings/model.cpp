#include <memory>
#include <utility>

#include "base/limits.h"
#include "bindings/bindings.h"
#include "model/fingerprint.h"
#include "model/router_shape.h"

namespace py = pybind11;

namespace coe::bindings {

namespace {

std::pair<size_t, size_t> to_pair(TensorPosition position) { return {position.file, position.index}; }

std::vector<std::pair<size_t, size_t>> to_pairs(const std::vector<TensorPosition>& positions) {
    std::vector<std::pair<size_t, size_t>> pairs;
    for (const TensorPosition position : positions) {
        pairs.push_back(to_pair(position));
    }
    return pairs;
}

// One of hashlib's objects.
Hasher to_hasher(const py::object& digest) {
    return {[digest](const void* data, size_t n_bytes) {
                digest.attr("update")(py::memoryview::from_memory(data, static_cast<py::ssize_t>(n_bytes)));
            },
            [digest] { return digest.attr("hexdigest")().cast<std::string>(); }};
}

using SharedFiles = std::vector<std::shared_ptr<GgufFile>>;

ModelFiles to_files(const SharedFiles& files) { return {files.begin(), files.end()}; }

}  // namespace

void register_model(py::module_& module) {
    module.attr("MOST_BLOCKS") = most_blocks;
    module.attr("MOST_EXPERTS") = most_experts;

    py::class_<RouterShape>(module, "RouterShape")
        .def(py::init([](size_t n_experts, size_t top_k, size_t n_groups, size_t n_groups_used) {
                 return RouterShape{n_experts, top_k, n_groups, n_groups_used};
             }),
             py::arg("n_experts"), py::arg("top_k"), py::arg("n_groups"), py::arg("n_groups_used"))
        .def_readonly("n_experts", &RouterShape::n_experts)
        .def_readonly("top_k", &RouterShape::top_k)
        .def_readonly("n_groups", &RouterShape::n_groups)
        .def_readonly("n_groups_used", &RouterShape::n_groups_used)
        .def("check_keep", &RouterShape::check_keep, py::arg("keep"));

    py::class_<MoeLayer>(module, "MoeLayer")
        .def_readonly("block", &MoeLayer::block)
        .def_readonly("top_k", &MoeLayer::top_k)
        .def_readonly("by_table", &MoeLayer::by_table)
        .def_readonly("is_mtp", &MoeLayer::is_mtp)
        .def_property_readonly("router", [](const MoeLayer& layer) { return to_pair(layer.router); })
        .def_property_readonly("tensors", [](const MoeLayer& layer) { return to_pairs(layer.tensors); })
        .def_property_readonly("weights", [](const MoeLayer& layer) { return to_pairs(layer.weights); });

    py::class_<RouterLayout>(module, "RouterLayout")
        .def_property_readonly("architecture", [](const RouterLayout& l) { return to_str(l.architecture); })
        .def_property_readonly("model_name", [](const RouterLayout& l) { return to_str(l.model_name); })
        .def_readonly("fingerprint", &RouterLayout::fingerprint)
        .def_readonly("shape", &RouterLayout::shape)
        .def_readonly("n_blocks", &RouterLayout::n_blocks)
        .def_readonly("first_mtp_block", &RouterLayout::first_mtp_block)
        .def_readonly("layers", &RouterLayout::layers)
        .def_property_readonly("obstacle", [](const RouterLayout& l) { return to_str(l.obstacle); })
        .def_property_readonly("cannot_count", [](const RouterLayout& l) { return to_str(l.cannot_count); })
        .def("check_countable", &RouterLayout::check_countable)
        .def("has_fingerprint", &RouterLayout::has_fingerprint, py::arg("fingerprint"))
        .def("check_keep", &RouterLayout::check_keep, py::arg("keep"));

    module.def("shard_paths", [](const GgufFile& first) {
        std::vector<py::bytes> paths;
        for (const std::string& path : shard_paths(first)) {
            paths.emplace_back(path);
        }
        return paths;
    });
    module.def("check_shards", [](const SharedFiles& files) { check_shards(to_files(files)); });
    module.def("find_router_layout",
               [](const SharedFiles& files) { return find_router_layout(to_files(files)); });
    module.def(
        "find_fingerprints",
        [](const SharedFiles& files, RouterLayout& layout, const py::function& sha256) {
            find_fingerprints(to_files(files), layout, [&] { return to_hasher(sha256()); });
        },
        py::arg("files"), py::arg("layout"), py::arg("sha256"));
}

}  // namespace coe::bindings
