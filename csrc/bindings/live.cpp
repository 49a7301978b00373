#include "bindings/bindings.h"
#include "capture/live_profiler.h"
#include "llama/crash.h"

namespace py = pybind11;

namespace coe::bindings {

namespace {

// Returns for each part: histograms, weight sums, their rests from rounding, tokens of each layer, and sums
// of activation norms as `output_norms` returns them.
std::vector<py::tuple> counts(LiveProfiler& profiler) {
    const std::vector<LiveCounts> found = [&] {
        const py::gil_scoped_release release;
        return profiler.counts();
    }();
    std::vector<py::tuple> parts;
    for (const LiveCounts& part : found) {
        parts.push_back(py::make_tuple(
            to_cube(part.stats.histograms(), part.stats), to_cube(part.stats.weight_sum().sums(), part.stats),
            to_cube(part.stats.weight_sum().rests(), part.stats), part.tokens, output_norms(part.stats)));
    }
    return parts;
}

}  // namespace

void register_live(py::module_& module) {
    // Functions and pointers are passed as addresses, for ctypes, with which llama_cpp makes contexts.
    py::class_<LiveProfiler>(module, "LiveProfiler")
        .def(py::init<const std::vector<int>&, size_t, const std::vector<size_t>&, size_t>(),
             py::arg("blocks"), py::arg("n_experts"), py::arg("top_k"), py::arg("n_parts"))
        .def("watch_outputs", &LiveProfiler::watch_outputs, py::arg("n_threads"))
        .def_property_readonly(
            "callback",
            [](const LiveProfiler&) { return reinterpret_cast<uintptr_t>(&LiveProfiler::callback); })
        .def_property_readonly("user_data",
                               [](LiveProfiler& self) { return reinterpret_cast<uintptr_t>(&self); })
        .def(
            "chain",
            [](LiveProfiler& self, uintptr_t callback, uintptr_t user_data) {
                self.chain(reinterpret_cast<ggml_backend_sched_eval_callback>(callback),
                           reinterpret_cast<void*>(user_data));
            },
            py::arg("callback"), py::arg("user_data"))
        .def("select", &LiveProfiler::select, py::arg("part"), ReleaseGil())
        .def(
            "begin_decode",
            [](LiveProfiler& self) {
                prepare_thread_for_crashes();
                self.begin_decode();
            },
            ReleaseGil())
        .def("end_decode", &LiveProfiler::end_decode, ReleaseGil())
        .def("hold", &LiveProfiler::hold, py::arg("on"), ReleaseGil())
        .def("accept", &LiveProfiler::accept, py::arg("n"), ReleaseGil())
        .def("counts", &counts)
        .def("reset", &LiveProfiler::reset, ReleaseGil())
        .def("recover", &LiveProfiler::recover, ReleaseGil())
        .def("mask", &LiveProfiler::mask, py::arg("kept"), ReleaseGil())
        .def("unmask", &LiveProfiler::unmask, ReleaseGil())
        .def("mask_applications", &LiveProfiler::mask_applications, ReleaseGil());
}

}  // namespace coe::bindings
