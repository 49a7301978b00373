// The header of a GGUF file: the positions of its metadata entries and tensors.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace coe {

// An error for a file that is not a readable GGUF file; what() is one line.
class GgufError : public std::runtime_error {
  public:
    using std::runtime_error::runtime_error;
};

// Value types of GGUF metadata, numbered as in the file.
enum class GgufType : uint32_t {
    u8,
    i8,
    u16,
    i16,
    u32,
    i32,
    f32,
    boolean,
    string,
    array,
    u64,
    i64,
    f64,
};

struct GgufEntry {
    std::string key;
    GgufType type;
    GgufType element_type;  // of an array; else equal to `type`
    uint64_t count;         // elements of an array; else 1
    size_t begin;           // first byte of the entry, its key included
    size_t value;           // first byte of the value; of an array: of its first element
    size_t end;             // after its last byte
};

struct GgufTensor {
    std::string name;
    std::vector<uint64_t> shape;  // as in the file: the fastest dimension first
    uint32_t type;                // a ggml_type
    uint64_t offset;              // from the start of the file
    uint64_t n_bytes;
    size_t begin;  // first byte of its entry in the header
    size_t end;
};

struct GgufHeader {
    uint32_t version = 0;
    uint64_t alignment = 32;
    std::vector<GgufEntry> entries;
    std::vector<GgufTensor> tensors;
    uint64_t data_offset = 0;
};

// Reads a header from `data`, the first `n_mapped` bytes of a file of `file_size` bytes. They must contain
// the whole header; tensor offsets are checked against the file's size. Memory is allocated only for entries
// that were read. Throws GgufError.
GgufHeader read_gguf_header(const uint8_t* data, size_t n_mapped, uint64_t file_size);

// Returns the bytes of one element of a fixed-size type; 0 for strings and arrays.
size_t gguf_type_size(GgufType type);

}  // namespace coe
