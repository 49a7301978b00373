#include "bindings/bindings.h"
#include "ggml.h"
#include "gguf/gguf_file.h"

namespace py = pybind11;

namespace coe::bindings {

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
}

}  // namespace coe::bindings
