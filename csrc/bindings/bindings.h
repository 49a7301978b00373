// The Python side of the compiled module, with one file for each concept. These files only translate.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "capture/routing_stats.h"

namespace coe::bindings {

// Releases the GIL for a whole call that touches no Python object.
using ReleaseGil = pybind11::call_guard<pybind11::gil_scoped_release>;

// Returns an array with one number for each layer, expert and rank.
template <typename Value>
pybind11::array_t<Value> to_cube(const std::vector<Value>& values, const RoutingStats& stats) {
    return pybind11::array_t<Value>({stats.n_layers(), stats.n_experts(), stats.top_k()}, values.data());
}

// Returns an array with one number for each layer and expert.
inline pybind11::array_t<double> to_table(const std::vector<double>& values, const RoutingStats& stats) {
    return pybind11::array_t<double>({stats.n_layers(), stats.n_experts()}, values.data());
}

// Returns sums of activation norms, before and after the router's weights, each with its rests from rounding;
// None without them.
inline pybind11::object output_norms(const RoutingStats& stats) {
    if (!stats.has_outputs()) {
        return pybind11::none();
    }
    return pybind11::make_tuple(to_table(stats.norm_sum().sums(), stats),
                                to_table(stats.norm_sum().rests(), stats),
                                to_table(stats.weighted_norm_sum().sums(), stats),
                                to_table(stats.weighted_norm_sum().rests(), stats));
}

// Returns all numbers of an array, in C order.
template <typename Value>
std::vector<Value> to_vector(
    const pybind11::array_t<Value, pybind11::array::c_style | pybind11::array::forcecast>& values) {
    return {values.data(), values.data() + values.size()};
}

// Returns text from a file, which may not be UTF-8.
pybind11::str to_str(const std::string& text);

void register_blocks(pybind11::module_& module);
void register_errors(pybind11::module_& module);
void register_gguf(pybind11::module_& module);
void register_live(pybind11::module_& module);
void register_mask(pybind11::module_& module);
void register_model(pybind11::module_& module);
void register_profile(pybind11::module_& module);
void register_session(pybind11::module_& module);

}  // namespace coe::bindings
