// Each concept registers its Python side from a file of its own; these files only translate.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <vector>

#include "routing_stats.h"

namespace coe::bindings {

// One number for each layer, expert and rank.
template <typename Value>
pybind11::array_t<Value> to_cube(const std::vector<Value>& values, const RoutingStats& stats) {
    return pybind11::array_t<Value>({stats.n_layers(), stats.n_experts(), stats.top_k()}, values.data());
}

// One number for each layer and expert.
inline pybind11::array_t<double> to_table(const std::vector<double>& values, const RoutingStats& stats) {
    return pybind11::array_t<double>({stats.n_layers(), stats.n_experts()}, values.data());
}

void register_gguf(pybind11::module_& module);
void register_blocks(pybind11::module_& module);
void register_live(pybind11::module_& module);
void register_session(pybind11::module_& module);

}  // namespace coe::bindings
