#include <algorithm>
#include <cctype>
#include <string>
#include <vector>

#include "bindings/bindings.h"
#include "ggml.h"
#include "gguf/gguf_file.h"

namespace py = pybind11;

namespace coe::bindings {

namespace {

std::string lower_case(std::string text) {
    std::transform(text.begin(), text.end(), text.begin(),
                   [](unsigned char letter) { return static_cast<char>(std::tolower(letter)); });
    return text;
}

// Returns ggml's type of a name in lower case. Throws std::invalid_argument for an unknown one.
ggml_type find_type(const std::string& type_name) {
    for (int type = 0; type < GGML_TYPE_COUNT; ++type) {
        const auto known = static_cast<ggml_type>(type);
        const char* name = ggml_type_name(known);
        if (name != nullptr && lower_case(name) == type_name && ggml_blck_size(known) != 0) {
            return known;
        }
    }
    throw std::invalid_argument("ggml has no type " + type_name);
}

// Returns the size of a tensor in bytes; the first dimension is a row. Throws std::invalid_argument for an
// unknown type.
uint64_t tensor_bytes(const std::string& type_name, const std::vector<int64_t>& shape) {
    uint64_t bytes = ggml_row_size(find_type(type_name), shape.empty() ? 1 : shape[0]);
    for (size_t dimension = 1; dimension < shape.size(); ++dimension) {
        bytes *= static_cast<uint64_t>(shape[dimension]);
    }
    return bytes;
}

}  // namespace

void register_gguf(py::module_& module) {
    py::enum_<GgufType>(module, "GgufType")
        .value("U8", GgufType::u8)
        .value("I8", GgufType::i8)
        .value("U16", GgufType::u16)
        .value("I16", GgufType::i16)
        .value("U32", GgufType::u32)
        .value("I32", GgufType::i32)
        .value("F32", GgufType::f32)
        .value("BOOL", GgufType::boolean)
        .value("STRING", GgufType::string)
        .value("ARRAY", GgufType::array)
        .value("U64", GgufType::u64)
        .value("I64", GgufType::i64)
        .value("F64", GgufType::f64);

    py::class_<GgufEntry>(module, "GgufEntry")
        .def_readonly("key", &GgufEntry::key)
        .def_readonly("type", &GgufEntry::type)
        .def_readonly("element_type", &GgufEntry::element_type)
        .def_readonly("count", &GgufEntry::count)
        .def_readonly("begin", &GgufEntry::begin)
        .def_readonly("value", &GgufEntry::value)
        .def_readonly("end", &GgufEntry::end);

    py::class_<GgufTensor>(module, "GgufTensor")
        .def_readonly("name", &GgufTensor::name)
        .def_readonly("shape", &GgufTensor::shape)
        .def_readonly("type", &GgufTensor::type)
        .def_readonly("offset", &GgufTensor::offset)
        .def_readonly("n_bytes", &GgufTensor::n_bytes);

    py::class_<GgufHeader>(module, "GgufHeader")
        .def_readonly("version", &GgufHeader::version)
        .def_readonly("alignment", &GgufHeader::alignment)
        .def_readonly("data_offset", &GgufHeader::data_offset)
        .def_readonly("entries", &GgufHeader::entries)
        .def_readonly("tensors", &GgufHeader::tensors);

    py::class_<GgufFile, std::shared_ptr<GgufFile>>(module, "GgufFile")
        .def(py::init([](const std::string& path, const py::buffer& buffer, uint64_t file_size) {
                 const py::buffer_info info = buffer.request();
                 return std::make_shared<GgufFile>(path, static_cast<const uint8_t*>(info.ptr),
                                                   static_cast<size_t>(info.size * info.itemsize), file_size);
             }),
             py::arg("path"), py::arg("buffer"), py::arg("file_size"))
        .def_property_readonly("header", &GgufFile::header)
        .def(
            "header_bytes",
            [](const GgufFile& file, size_t begin, size_t end) {
                const std::vector<uint8_t>& bytes = file.header_bytes();
                end = std::min(end, bytes.size());
                begin = std::min(begin, end);
                return py::bytes(reinterpret_cast<const char*>(bytes.data()) + begin, end - begin);
            },
            py::arg("begin"), py::arg("end"));

    module.def("type_name", [](uint32_t type) -> std::string {
        return type < GGML_TYPE_COUNT ? ggml_type_name(static_cast<ggml_type>(type)) : "?";
    });
    module.def(
        "type_number", [](const std::string& name) { return static_cast<uint32_t>(find_type(name)); },
        py::arg("type_name"));
    module.def("tensor_bytes", &tensor_bytes, py::arg("type_name"), py::arg("shape"));
}

}  // namespace coe::bindings
