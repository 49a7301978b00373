#include "llama/session.h"

#include "base/parallel.h"
#include "bindings/bindings.h"
#include "llama/backends.h"
#include "llama/crash.h"
#include "llama/distributions.h"
#include "llama/sampler.h"

namespace py = pybind11;

namespace coe::bindings {

namespace {

using Tokens = py::array_t<int32_t, py::array::c_style | py::array::forcecast>;
const RoutingStats& stats_of(const Session& session) {
    if (session.tap() == nullptr) {
        throw std::logic_error("no router is being watched");
    }
    return session.tap()->stats();
}

// Returns the squared inputs of each tensor by its name: sums [counts, columns] and counts. None if inputs
// are not watched.
py::object input_sums(const Session& session) {
    if (session.inputs() == nullptr) {
        return py::none();
    }
    py::dict by_name;
    for (const auto& [name, sums] : session.inputs()->sums()) {
        const auto n_counts = static_cast<py::ssize_t>(sums.counts.size());
        const auto n_sums = static_cast<py::ssize_t>(sums.squares.size());
        py::array_t<double> squares({n_counts, n_counts == 0 ? 0 : n_sums / n_counts});
        std::copy(sums.squares.begin(), sums.squares.end(), squares.mutable_data());
        by_name[py::str(name)] = py::make_tuple(
            squares, py::array_t<uint64_t>(static_cast<py::ssize_t>(n_counts), sums.counts.data()));
    }
    return by_name;
}

using Row = const float* (Session::*)(int32_t);

// Returns rows of the last decode, each of `width` numbers.
py::array_t<float> rows_of(Session& session, Row row_of, int32_t width, int32_t first, int32_t count) {
    py::array_t<float> rows({count, width});
    for (int32_t i = 0; i < count; ++i) {
        const float* row = (session.*row_of)(first + i);
        std::copy(row, row + width, rows.mutable_data(i, 0));
    }
    return rows;
}

// Returns pointers to the logits of `count` rows of the last decode.
std::vector<const float*> logits_of(Session& session, int32_t first, size_t count) {
    std::vector<const float*> rows;
    for (size_t i = 0; i < count; ++i) {
        rows.push_back(session.logits(first + static_cast<int32_t>(i)));
    }
    return rows;
}

py::array_t<double> log_probabilities(Session& session, int32_t first, const Tokens& targets) {
    const std::vector<int32_t> wanted = to_vector<int32_t>(targets);
    std::vector<double> values(wanted.size());
    {
        const py::gil_scoped_release release;
        const std::vector<const float*> rows = logits_of(session, first, wanted.size());
        parallel_for(rows.size(), session.n_threads(),
                     [&](size_t i) { values[i] = log_probability(rows[i], session.n_vocab(), wanted[i]); });
    }
    return py::array_t<double>(static_cast<py::ssize_t>(values.size()), values.data());
}

// Returns the numbers to subtract from the logits of `count` rows to get log-probabilities.
py::array_t<double> normalisers(Session& session, int32_t first, size_t count) {
    py::array_t<double> values(static_cast<py::ssize_t>(count));
    double* out = values.mutable_data();
    {
        const py::gil_scoped_release release;
        const std::vector<const float*> rows = logits_of(session, first, count);
        parallel_for(count, session.n_threads(),
                     [&](size_t i) { out[i] = log_sum_exp(rows[i], session.n_vocab()); });
    }
    return values;
}

// Returns the KL divergence of each row from the reference's, and whether both have the same likeliest token.
py::tuple divergences(Session& session, int32_t first,
                      const py::array_t<float, py::array::c_style>& reference,
                      const py::array_t<double, py::array::c_style>& reference_normalisers) {
    if (reference.ndim() != 2 || reference.shape(1) != session.n_vocab() ||
        reference_normalisers.size() != reference.shape(0)) {
        throw std::invalid_argument("the reference has another vocabulary");
    }
    const auto count = static_cast<size_t>(reference.shape(0));
    const auto width = static_cast<size_t>(session.n_vocab());
    py::array_t<double> kl(static_cast<py::ssize_t>(count));
    py::array_t<bool> same_top(static_cast<py::ssize_t>(count));
    const float* theirs = reference.data();
    const double* their_normalisers = reference_normalisers.data();
    double* kl_out = kl.mutable_data();
    bool* same_out = same_top.mutable_data();
    {
        const py::gil_scoped_release release;
        const std::vector<const float*> rows = logits_of(session, first, count);
        parallel_for(count, session.n_threads(), [&](size_t i) {
            const Divergence found =
                divergence(theirs + i * width, their_normalisers[i], rows[i], session.n_vocab());
            kl_out[i] = found.kl;
            same_out[i] = found.same_top;
        });
    }
    return py::make_tuple(kl, same_top);
}

std::vector<py::dict> memory(const Session& session) {
    std::vector<py::dict> uses;
    for (const MemoryUse& use : session.memory()) {
        py::dict fields;
        fields["buffer"] = use.buffer;
        fields["on_gpu"] = use.on_gpu;
        fields["weights"] = use.weights;
        fields["context"] = use.context;
        fields["compute"] = use.compute;
        uses.push_back(fields);
    }
    return uses;
}

// Lets other threads run Python code while this one, which has crashed, waits for them.
void release_gil_if_held() {
    if (PyGILState_Check() != 0) {
        PyEval_SaveThread();
    }
}

void register_process(py::module_& module) {
    module.def("report_crashes", &report_crashes, py::arg("prefix"));
    module.def("prepare_thread_for_crashes", &prepare_thread_for_crashes);
    module.def("set_crash_advice", &set_crash_advice, py::arg("advice"));
    module.def(
        "set_crash_listener", [](int descriptor) { set_crash_listener(descriptor, &release_gil_if_held); },
        py::arg("descriptor"));
    py::class_<DeviceFacts>(module, "DeviceFacts")
        .def_readonly("name", &DeviceFacts::name)
        .def_readonly("description", &DeviceFacts::description)
        .def_readonly("backend", &DeviceFacts::backend)
        .def_readonly("total_memory", &DeviceFacts::total_memory)
        .def_readonly("free_memory", &DeviceFacts::free_memory);
    module.def("describe_devices", &describe_devices);
    module.def("system_info", &llama_print_system_info);
    module.def("has_rpc", &has_rpc);
    module.def("has_amx", &has_amx);
    module.def("free_gpu_memory", &free_gpu_memory);
    module.def("count_rpc_devices", &count_rpc_devices, py::arg("endpoint"), ReleaseGil());
}

void register_placement(py::module_& module) {
    // Pointers are passed as addresses, for ctypes, with which llama_cpp loads models.
    py::class_<WeightPlacement>(module, "WeightPlacement")
        .def(py::init([](const std::vector<std::string>& devices, int32_t n_cpu_moe) {
                 PlacementOptions options;
                 options.devices = devices;
                 options.n_cpu_moe = n_cpu_moe;
                 return std::make_unique<WeightPlacement>(options);
             }),
             py::kw_only(), py::arg("devices"), py::arg("n_cpu_moe"))
        .def_property_readonly("devices",
                               [](WeightPlacement& p) { return reinterpret_cast<uintptr_t>(p.devices()); })
        .def_property_readonly(
            "overrides", [](const WeightPlacement& p) { return reinterpret_cast<uintptr_t>(p.overrides()); })
        .def_property_readonly("repack", &WeightPlacement::repack);
}

void register_options(py::module_& module) {
    py::class_<SessionOptions>(module, "SessionOptions")
        .def(py::init<>())
        .def_readwrite("n_ctx", &SessionOptions::n_ctx)
        .def_readwrite("n_batch", &SessionOptions::n_batch)
        .def_readwrite("n_batch_on_gpu", &SessionOptions::n_batch_on_gpu)
        .def_readwrite("n_sequences", &SessionOptions::n_sequences)
        .def_readwrite("n_threads", &SessionOptions::n_threads)
        .def_readwrite("n_gpu_layers", &SessionOptions::n_gpu_layers)
        .def_readwrite("n_cpu_moe", &SessionOptions::n_cpu_moe)
        .def_readwrite("devices", &SessionOptions::devices)
        .def_readwrite("rpc", &SessionOptions::rpc)
        .def_readwrite("f32_kv", &SessionOptions::f32_kv)
        .def_readwrite("repack", &SessionOptions::repack)
        .def_readwrite("mtp", &SessionOptions::mtp)
        .def_readwrite("simulate", &SessionOptions::simulate)
        .def_readwrite("n_nameless_tokens", &SessionOptions::n_nameless_tokens)
        .def_readwrite("vocab_size_key", &SessionOptions::vocab_size_key);
}

void register_sampler(py::module_& module) {
    py::class_<Sampler>(module, "Sampler")
        .def(py::init([](int32_t n_vocab, float temperature, int32_t top_k, float top_p, float min_p,
                         float repeat_penalty, int32_t repeat_last_n, uint32_t seed) {
                 return std::make_unique<Sampler>(
                     n_vocab,
                     SamplingOptions{temperature, top_k, top_p, min_p, repeat_penalty, repeat_last_n, seed});
             }),
             py::arg("n_vocab"), py::kw_only(), py::arg("temperature"), py::arg("top_k"), py::arg("top_p"),
             py::arg("min_p"), py::arg("repeat_penalty"), py::arg("repeat_last_n"), py::arg("seed"))
        .def("accept",
             [](Sampler& sampler, const Tokens& tokens) { sampler.accept(to_vector<int32_t>(tokens)); })
        .def_static("draw_all", &draw_all, py::arg("session"), py::arg("samplers"), py::arg("rows"),
                    ReleaseGil());
}

}  // namespace

void register_session(py::module_& module) {
    register_process(module);
    register_placement(module);
    register_options(module);
    py::class_<Session>(module, "Session")
        .def(py::init<const std::string&, const SessionOptions&>(), py::arg("path"), py::arg("options"),
             ReleaseGil())
        .def_property_readonly("n_batch", &Session::n_batch)
        .def_property_readonly("n_vocab", &Session::n_vocab)
        .def_property_readonly("has_tokenizer", [](const Session& s) { return s.tokenizer().exists(); })
        .def_property_readonly("bos_token", [](const Session& s) { return s.tokenizer().bos_token(); })
        .def_property_readonly("eos_token", [](const Session& s) { return s.tokenizer().eos_token(); })
        .def_property_readonly("chat_template",
                               [](const Session& s) { return py::bytes(s.tokenizer().chat_template()); })
        .def(
            "tokenize",
            [](const Session& session, const std::string& text, bool parse_special) {
                std::vector<int32_t> tokens;
                {
                    const py::gil_scoped_release release;
                    tokens = session.tokenizer().tokenize(text, parse_special);
                }
                return Tokens(static_cast<py::ssize_t>(tokens.size()), tokens.data());
            },
            py::arg("text"), py::arg("parse_special"))
        .def("watch", &Session::watch, py::arg("blocks"), py::arg("n_experts"), py::arg("top_k"),
             py::arg("outputs") = false, py::arg("inputs") = false)
        .def("unwatch", &Session::unwatch)
        .def_property_readonly(
            "histograms", [](const Session& s) { return to_cube(stats_of(s).histograms(), stats_of(s)); })
        .def_property_readonly(
            "weight_sum",
            [](const Session& s) { return to_cube(stats_of(s).weight_sum().sums(), stats_of(s)); })
        .def_property_readonly(
            "weight_sum_rest",
            [](const Session& s) { return to_cube(stats_of(s).weight_sum().rests(), stats_of(s)); })
        .def_property_readonly("output_norms", [](const Session& s) { return output_norms(stats_of(s)); })
        .def_property_readonly("input_sums", &input_sums)
        .def("mask", &Session::mask, py::arg("blocks"), py::arg("kept"), py::arg("n_experts"))
        .def("unmask", &Session::unmask)
        .def("reset", &Session::reset, ReleaseGil())
        .def("forget", &Session::forget, py::arg("sequence"), ReleaseGil())
        .def(
            "decode",
            [](Session& session, const Tokens& tokens, const Tokens& positions, const Tokens& sequences,
               size_t first_output) {
                const std::vector<int32_t> t = to_vector<int32_t>(tokens);
                const std::vector<int32_t> p = to_vector<int32_t>(positions);
                const std::vector<int32_t> s = to_vector<int32_t>(sequences);
                const py::gil_scoped_release release;
                session.decode(t, p, s, first_output);
            },
            py::arg("tokens"), py::arg("positions"), py::arg("sequences"), py::arg("first_output") = 0)
        .def_property_readonly("has_memory", &Session::has_memory)
        .def_property_readonly("has_logits", &Session::has_logits)
        .def(
            "logits",
            [](Session& session, int32_t first, int32_t count) {
                return rows_of(session, &Session::logits, session.n_vocab(), first, count);
            },
            py::arg("first"), py::arg("count"))
        .def("want_embeddings", &Session::want_embeddings, py::arg("on"))
        .def(
            "embeddings",
            [](Session& session, int32_t first, int32_t count) {
                return rows_of(session, &Session::embeddings, session.n_embd(), first, count);
            },
            py::arg("first"), py::arg("count"))
        .def("record_graph", &Session::record_graph, py::arg("on"))
        .def("log_probabilities", &log_probabilities, py::arg("first"), py::arg("targets"))
        .def("normalisers", &normalisers, py::arg("first"), py::arg("count"))
        .def("divergences", &divergences, py::arg("first"), py::arg("reference"), py::arg("normalisers"))
        .def("memory", &memory)
        .def("token_text",
             [](const Session& s, int32_t token) { return py::bytes(s.tokenizer().token_text(token)); })
        .def(
            "ends", [](const Session& s, int32_t token) { return s.tokenizer().ends(token); },
            py::arg("token"));
    register_sampler(module);
}

}  // namespace coe::bindings
