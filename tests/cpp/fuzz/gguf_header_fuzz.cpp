// Any bytes as a GGUF file's: they are refused by GgufError, or give a header in which everything lies where
// there is something.
#include <cstddef>
#include <cstdint>

#include "fuzz.h"
#include "ggml.h"
#include "gguf/gguf_header.h"

namespace {

void check(const coe::GgufHeader& header, size_t n_mapped, uint64_t file_size) {
    size_t at = 24;
    for (const coe::GgufEntry& entry : header.entries) {
        REQUIRE(entry.begin == at && entry.value > entry.begin && entry.end >= entry.value);
        REQUIRE(entry.element_type != coe::GgufType::array);
        const size_t size = coe::gguf_type_size(entry.element_type);
        REQUIRE(size == 0 ? entry.count <= (entry.end - entry.value) / 8
                          : entry.count * size == entry.end - entry.value);
        at = entry.end;
    }
    for (const coe::GgufTensor& tensor : header.tensors) {
        REQUIRE(tensor.begin == at && tensor.end > at);
        at = tensor.end;
        REQUIRE(!tensor.shape.empty() && tensor.shape.size() <= GGML_MAX_DIMS);
        REQUIRE(tensor.offset >= header.data_offset && tensor.offset % header.alignment == 0);
        REQUIRE(tensor.n_bytes <= file_size && tensor.offset <= file_size - tensor.n_bytes);
        for (const coe::GgufTensor& other : header.tensors) {
            REQUIRE(&other == &tensor || tensor.n_bytes == 0 || other.n_bytes == 0 ||
                    tensor.offset + tensor.n_bytes <= other.offset ||
                    other.offset + other.n_bytes <= tensor.offset);
        }
    }
    REQUIRE(at <= n_mapped && header.data_offset >= at && header.data_offset < at + header.alignment);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    // Once as a whole file, once as the begin of one whose data would be there.
    for (const uint64_t file_size : {uint64_t{size}, uint64_t{size} + (uint64_t{1} << 40)}) {
        try {
            check(coe::read_gguf_header(data, size, file_size), size, file_size);
        } catch (const coe::GgufError&) {
        }
    }
    return 0;
}
