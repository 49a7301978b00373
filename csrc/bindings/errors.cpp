#include <stdexcept>

#include "bindings/bindings.h"
#include "gguf/gguf_header.h"

namespace py = pybind11;

namespace coe::bindings {

py::str to_str(const std::string& text) {
    PyObject* decoded = PyUnicode_DecodeUTF8(text.data(), static_cast<Py_ssize_t>(text.size()), "replace");
    if (decoded == nullptr) {
        throw py::error_already_set();
    }
    return py::reinterpret_steal<py::str>(decoded);
}

void register_errors(py::module_& module) {
    py::register_exception<GgufError>(module, "GgufError", PyExc_ValueError);
    // pybind11's own translation fails if a message quotes a path or a name that is not UTF-8.
    py::register_local_exception_translator([](std::exception_ptr raised) {
        try {
            std::rethrow_exception(raised);
        } catch (const std::invalid_argument& error) {
            const std::string text = error.what();
            PyObject* message =
                PyUnicode_DecodeUTF8(text.data(), static_cast<Py_ssize_t>(text.size()), "surrogateescape");
            PyErr_SetObject(PyExc_ValueError, message);
            Py_XDECREF(message);
        }
    });
}

}  // namespace coe::bindings
