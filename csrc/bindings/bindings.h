// Each concept registers its Python side from a file of its own; these files only translate.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

namespace coe::bindings {

void register_gguf(pybind11::module_& module);
void register_blocks(pybind11::module_& module);
void register_session(pybind11::module_& module);

}  // namespace coe::bindings
