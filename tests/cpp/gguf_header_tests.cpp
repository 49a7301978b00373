#include <array>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "allocation_watch.h"
#include "check.h"
#include "ggml.h"
#include "gguf/gguf_header.h"

namespace {

using coe::GgufError;
using coe::GgufHeader;
using coe::GgufType;
using coe::read_gguf_header;
using coe::tests::largest_allocation;

constexpr uint64_t huge = std::numeric_limits<uint64_t>::max();
constexpr size_t small_allocation = 16384;  // several times what the headers below need

// Writes a GGUF header byte by byte. All counts and lengths can be forged.
class Writer {
  public:
    explicit Writer(uint64_t n_tensors, uint64_t n_entries, uint32_t version = 3) {
        bytes_.assign({'G', 'G', 'U', 'F'});
        number(version);
        number(n_tensors);
        number(n_entries);
    }

    template <typename T>
    Writer& number(T value) {
        uint8_t raw[sizeof(T)];
        std::memcpy(raw, &value, sizeof(T));
        bytes_.insert(bytes_.end(), raw, raw + sizeof(T));
        return *this;
    }
    Writer& string(const std::string& text) { return string(text, text.size()); }
    Writer& string(const std::string& text, uint64_t claimed_length) {
        number(claimed_length);
        bytes_.insert(bytes_.end(), text.begin(), text.end());
        return *this;
    }
    template <typename T>
    Writer& entry(const std::string& key, GgufType type, T value) {
        return string(key).number(type).number(value);
    }
    Writer& array(const std::string& key, GgufType element, uint64_t count) {
        return string(key).number(GgufType::array).number(element).number(count);
    }
    Writer& tensor(const std::string& name, const std::vector<uint64_t>& shape, uint32_t type,
                   uint64_t offset) {
        string(name).number(static_cast<uint32_t>(shape.size()));
        for (const uint64_t size : shape) {
            number(size);
        }
        return number(type).number(offset);
    }
    const std::vector<uint8_t>& bytes() const { return bytes_; }
    size_t size() const { return bytes_.size(); }

  private:
    std::vector<uint8_t> bytes_;
};

GgufHeader read(const std::vector<uint8_t>& bytes, uint64_t file_size) {
    // A buffer of exactly that size, so that a sanitizer sees a byte too many being read.
    const std::vector<uint8_t> exact(bytes.begin(), bytes.end());
    coe::tests::forget_allocations();
    return read_gguf_header(exact.data(), exact.size(), file_size);
}

// A header with all that GGUF has, and where it ends.
struct Sample {
    std::vector<uint8_t> bytes;
    uint64_t data_offset;
    uint64_t file_size;
};

constexpr uint64_t sample_alignment = 64;

Sample sample(uint32_t version = 3) {
    Writer writer(4, 16, version);
    writer.entry("a.u8", GgufType::u8, uint8_t{200});
    writer.entry("a.i8", GgufType::i8, int8_t{-100});
    writer.entry("a.u16", GgufType::u16, uint16_t{60000});
    writer.entry("a.i16", GgufType::i16, int16_t{-30000});
    writer.entry("a.u32", GgufType::u32, uint32_t{4000000000});
    writer.entry("a.i32", GgufType::i32, int32_t{-2000000000});
    writer.entry("a.f32", GgufType::f32, 0.5f);
    writer.entry("a.bool", GgufType::boolean, uint8_t{1});
    writer.string("a.string").number(GgufType::string).string("text");
    writer.array("a.array", GgufType::u16, 3).number(uint16_t{1}).number(uint16_t{2}).number(uint16_t{3});
    writer.entry("a.u64", GgufType::u64, uint64_t{1} << 60);
    writer.entry("a.i64", GgufType::i64, -(int64_t{1} << 60));
    writer.entry("a.f64", GgufType::f64, 0.25);
    writer.array("a.strings", GgufType::string, 3).string("one").string("").string("three");
    writer.array("a.empty", GgufType::string, 0);
    writer.entry("general.alignment", GgufType::u32, static_cast<uint32_t>(sample_alignment));
    writer.tensor("f32", {5}, GGML_TYPE_F32, 0);
    writer.tensor("f16", {3, 2, 2, 2}, GGML_TYPE_F16, 64);
    writer.tensor("q4_0", {64, 3}, GGML_TYPE_Q4_0, 128);
    writer.tensor("q4_k", {256, 2, 1}, GGML_TYPE_Q4_K, 256);
    const uint64_t data_offset = (writer.size() + sample_alignment - 1) / sample_alignment * sample_alignment;
    return {writer.bytes(), data_offset, data_offset + 256 + 2 * 144};
}

template <typename T>
T value_at(const std::vector<uint8_t>& bytes, size_t at) {
    T value;
    CHECK(at + sizeof(T) <= bytes.size());
    std::memcpy(&value, bytes.data() + at, sizeof(T));
    return value;
}

// What must hold of every header that is read without an error.
void check_consistent(const GgufHeader& header, size_t n_mapped, uint64_t file_size) {
    size_t at = 24;
    for (const coe::GgufEntry& entry : header.entries) {
        CHECK_EQUAL(entry.begin, at);
        CHECK_EQUAL(entry.value,
                    at + 8 + entry.key.size() + (entry.type == GgufType::array ? size_t{16} : size_t{4}));
        CHECK(entry.end >= entry.value);
        at = entry.end;
    }
    for (const coe::GgufTensor& tensor : header.tensors) {
        CHECK_EQUAL(tensor.begin, at);
        CHECK_EQUAL(tensor.end, at + 8 + tensor.name.size() + 4 + 8 * tensor.shape.size() + 12);
        at = tensor.end;
        CHECK(tensor.offset >= header.data_offset);
        CHECK_EQUAL(tensor.offset % header.alignment, uint64_t{0});
        CHECK(tensor.n_bytes == 0 || tensor.offset + tensor.n_bytes <= file_size);
    }
    CHECK(at <= n_mapped);
    CHECK_EQUAL(header.data_offset, (at + header.alignment - 1) / header.alignment * header.alignment);
}

// A header with nothing but what `writer` has put in it must be refused for the reason `part`.
void refuse(const Writer& writer, const std::string& part, uint64_t file_size = uint64_t{1} << 40) {
    CHECK_THROWS(GgufError, part, read(writer.bytes(), file_size));
    CHECK(largest_allocation() < small_allocation);
}

void refuse_tensor(const std::vector<uint64_t>& shape, uint32_t type, uint64_t offset,
                   const std::string& part, uint64_t file_size = huge) {
    refuse(Writer(1, 0).tensor("experts", shape, type, offset), part, file_size);
}

}  // namespace

TEST(gguf_header_is_read) {
    for (const uint32_t version : {2u, 3u}) {
        const Sample file = sample(version);
        const GgufHeader header = read(file.bytes, file.file_size);
        CHECK_EQUAL(header.version, version);
        CHECK_EQUAL(header.alignment, sample_alignment);
        CHECK_EQUAL(header.data_offset, file.data_offset);
        CHECK_EQUAL(header.entries.size(), size_t{16});
        CHECK_EQUAL(header.tensors.size(), size_t{4});
        check_consistent(header, file.bytes.size(), file.file_size);
        CHECK_EQUAL(header.tensors.back().end, file.bytes.size());
    }
}

TEST(gguf_entries_are_read) {
    const Sample file = sample();
    const GgufHeader header = read(file.bytes, file.file_size);
    const auto& entries = header.entries;
    const std::vector<GgufType> types = {
        GgufType::u8,  GgufType::i8,      GgufType::u16,    GgufType::i16,   GgufType::u32, GgufType::i32,
        GgufType::f32, GgufType::boolean, GgufType::string, GgufType::array, GgufType::u64, GgufType::i64,
        GgufType::f64, GgufType::array,   GgufType::array,  GgufType::u32};
    for (size_t i = 0; i < types.size(); ++i) {
        CHECK(entries[i].type == types[i]);
        CHECK(types[i] == GgufType::array || entries[i].element_type == types[i]);
        CHECK(types[i] == GgufType::array || entries[i].count == 1);
    }
    CHECK_EQUAL(entries[0].key, "a.u8");
    CHECK_EQUAL(entries[0].begin, size_t{24});
    CHECK_EQUAL(value_at<uint8_t>(file.bytes, entries[0].value), 200);
    CHECK_EQUAL(value_at<int8_t>(file.bytes, entries[1].value), -100);
    CHECK_EQUAL(value_at<uint16_t>(file.bytes, entries[2].value), 60000);
    CHECK_EQUAL(value_at<int16_t>(file.bytes, entries[3].value), -30000);
    CHECK_EQUAL(value_at<uint32_t>(file.bytes, entries[4].value), 4000000000u);
    CHECK_EQUAL(value_at<int32_t>(file.bytes, entries[5].value), -2000000000);
    CHECK_EQUAL(value_at<float>(file.bytes, entries[6].value), 0.5f);
    CHECK_EQUAL(value_at<uint8_t>(file.bytes, entries[7].value), 1);
    CHECK_EQUAL(value_at<uint64_t>(file.bytes, entries[8].value), uint64_t{4});
    CHECK_EQUAL(entries[8].end - entries[8].value, size_t{8 + 4});
    CHECK(entries[9].element_type == GgufType::u16);
    CHECK_EQUAL(entries[9].count, uint64_t{3});
    CHECK_EQUAL(value_at<uint16_t>(file.bytes, entries[9].value + 4), 3);
    CHECK_EQUAL(entries[9].end - entries[9].value, size_t{6});
    CHECK_EQUAL(value_at<uint64_t>(file.bytes, entries[10].value), uint64_t{1} << 60);
    CHECK_EQUAL(value_at<int64_t>(file.bytes, entries[11].value), -(int64_t{1} << 60));
    CHECK_EQUAL(value_at<double>(file.bytes, entries[12].value), 0.25);
    CHECK(entries[13].element_type == GgufType::string);
    CHECK_EQUAL(entries[13].count, uint64_t{3});
    CHECK_EQUAL(entries[13].end - entries[13].value, size_t{3 * 8 + 3 + 0 + 5});
    CHECK_EQUAL(entries[14].count, uint64_t{0});
    CHECK_EQUAL(entries[14].end, entries[14].value);
    CHECK_EQUAL(entries[15].key, "general.alignment");
}

TEST(gguf_tensors_are_read) {
    const Sample file = sample();
    const GgufHeader header = read(file.bytes, file.file_size);
    const auto& tensors = header.tensors;
    CHECK_EQUAL(tensors[0].name, "f32");
    CHECK(tensors[0].shape == std::vector<uint64_t>{5});
    CHECK_EQUAL(tensors[0].type, uint32_t{GGML_TYPE_F32});
    CHECK_EQUAL(tensors[0].offset, file.data_offset);
    CHECK_EQUAL(tensors[0].n_bytes, uint64_t{20});
    CHECK(tensors[1].shape == (std::vector<uint64_t>{3, 2, 2, 2}));
    CHECK_EQUAL(tensors[1].offset, file.data_offset + 64);
    CHECK_EQUAL(tensors[1].n_bytes, uint64_t{48});
    CHECK(tensors[2].shape == (std::vector<uint64_t>{64, 3}));
    CHECK_EQUAL(tensors[2].n_bytes, uint64_t{6 * 18});
    CHECK_EQUAL(tensors[3].name, "q4_k");
    CHECK_EQUAL(tensors[3].type, uint32_t{GGML_TYPE_Q4_K});
    CHECK_EQUAL(tensors[3].offset, file.data_offset + 256);
    CHECK_EQUAL(tensors[3].n_bytes, uint64_t{2 * 144});
}

TEST(gguf_header_of_nothing_is_read) {
    const Writer writer(0, 0);
    const GgufHeader header = read(writer.bytes(), 24);
    CHECK(header.entries.empty());
    CHECK(header.tensors.empty());
    CHECK_EQUAL(header.alignment, uint64_t{32});
    CHECK_EQUAL(header.data_offset, uint64_t{32});
}

TEST(gguf_truncations_throw_until_the_header_is_whole) {
    const Sample file = sample();
    for (size_t length = 0; length < file.bytes.size(); ++length) {
        const std::vector<uint8_t> prefix(file.bytes.begin(),
                                          file.bytes.begin() + static_cast<std::ptrdiff_t>(length));
        CHECK_THROWS(GgufError, length < 4 ? "not a GGUF file" : "ends inside its header",
                     read(prefix, file.file_size));
        CHECK_THROWS(GgufError, "", read(prefix, length));
        CHECK(largest_allocation() < small_allocation);
    }
    CHECK_THROWS(GgufError, "not a GGUF file", read_gguf_header(nullptr, 0, 0));
    // The file goes on behind its header: nothing but the file's size tells whether it is whole.
    std::vector<uint8_t> whole = file.bytes;
    whole.resize(file.file_size);
    for (size_t length = file.bytes.size(); length < file.file_size; ++length) {
        const std::vector<uint8_t> prefix(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(length));
        CHECK_THROWS(GgufError, "truncated", read(prefix, length));
        check_consistent(read(prefix, file.file_size), length, file.file_size);
    }
    check_consistent(read(whole, file.file_size), whole.size(), file.file_size);
}

TEST(gguf_other_files_are_refused) {
    std::vector<uint8_t> bytes = sample().bytes;
    for (size_t i = 0; i < 4; ++i) {
        std::vector<uint8_t> other = bytes;
        other[i] ^= 0x20;
        CHECK_THROWS(GgufError, "not a GGUF file", read(other, 1 << 20));
    }
    for (const uint32_t version : {0u, 1u, 4u, 0xffffffffu}) {
        refuse(Writer(0, 0, version), "GGUF version " + std::to_string(version));
    }
    refuse(Writer(0, 0, 0x03000000u), "big-endian");
}

TEST(gguf_huge_counts_are_refused) {
    for (const uint64_t count : {uint64_t{2}, uint64_t{65536}, uint64_t{65537}, uint64_t{1} << 31,
                                 uint64_t{1} << 32, uint64_t{1} << 58, uint64_t{1} << 63, huge}) {
        const std::string error =
            count > 65536 ? "claims " + std::to_string(count) : "ends inside its header";
        refuse(Writer(count, 0), error);
        refuse(Writer(0, count), error);
        refuse(Writer(count, count), error);
        refuse(Writer(count, 0).tensor("t", {1}, GGML_TYPE_F32, 0), error);
        refuse(Writer(0, count).entry("key", GgufType::u8, uint8_t{1}), error);
    }
}

TEST(gguf_headers_beyond_256_megabytes_are_refused) {
    constexpr uint64_t most = uint64_t{256} << 20;
    Writer writer(0, 1);
    writer.array("key", GgufType::u8, most - 100);
    std::vector<uint8_t> bytes = writer.bytes();
    bytes.resize(most + 1);
    CHECK_EQUAL(read_gguf_header(bytes.data(), bytes.size(), bytes.size()).entries[0].count, most - 100);
    const uint64_t one_too_many = most - writer.size() + 1;
    std::memcpy(bytes.data() + writer.size() - 8, &one_too_many, 8);
    CHECK_THROWS(GgufError, "claims more than 256 MB",
                 read_gguf_header(bytes.data(), bytes.size(), bytes.size()));
}

TEST(gguf_huge_lengths_are_refused) {
    for (const uint64_t length : {uint64_t{5}, uint64_t{65535}, uint64_t{65536}, uint64_t{1} << 32,
                                  uint64_t{1} << 63, huge - 31, huge}) {
        const std::string name_error = length > 65535 ? std::to_string(length) : "ends inside its header";
        refuse(Writer(0, 1).string("key4", length), name_error);
        refuse(Writer(1, 0).string("name", length), name_error);
        refuse(Writer(0, 1).string("key").number(GgufType::string).string("text", length),
               "ends inside its header");
        refuse(Writer(0, 1).array("key", GgufType::string, 2).string("text").string("text", length),
               "ends inside its header");
    }
    // A name of the greatest length is fine where the bytes are there.
    const GgufHeader header =
        read(Writer(0, 1).entry(std::string(65535, 'k'), GgufType::u8, uint8_t{0}).bytes(), 1 << 20);
    CHECK_EQUAL(header.entries[0].key.size(), size_t{65535});
    CHECK_THROWS(
        GgufError, "65536 bytes",
        read(Writer(0, 1).entry(std::string(65536, 'k'), GgufType::u8, uint8_t{0}).bytes(), 1 << 20));
}

TEST(gguf_huge_arrays_are_refused) {
    for (const GgufType element :
         {GgufType::u8, GgufType::i16, GgufType::f32, GgufType::u64, GgufType::boolean, GgufType::string}) {
        // The last four make a product with the element's size that is 0 or 8 modulo 2^64.
        for (const uint64_t count : {uint64_t{9}, uint64_t{1} << 32, uint64_t{1} << 61, uint64_t{1} << 62,
                                     uint64_t{1} << 63, (uint64_t{1} << 61) + 1, huge}) {
            const bool unlikely = count > (uint64_t{1} << 28) && element != GgufType::string;
            refuse(Writer(0, 1).array("key", element, count).number(uint64_t{0}),
                   unlikely ? "an array of " + std::to_string(count) : "ends inside its header");
        }
    }
    refuse(Writer(0, 1).array("key", GgufType::array, 1).number(uint64_t{0}).number(uint64_t{0}),
           "array of arrays at key");
    refuse(Writer(0, 1).array("key", GgufType::array, huge), "array of arrays");
}

TEST(gguf_unknown_value_types_are_refused) {
    for (const uint32_t type : {13u, 0x80000000u, 0xffffffffu}) {
        refuse(Writer(0, 1).string("key").number(type).number(uint64_t{0}),
               "unknown type " + std::to_string(type));
        refuse(Writer(0, 1).string("key").number(GgufType::array).number(type).number(uint64_t{0}),
               "unknown type " + std::to_string(type));
    }
}

TEST(gguf_dimensions_are_checked) {
    refuse_tensor({}, GGML_TYPE_F32, 0, "tensor experts has 0 dimensions");
    refuse_tensor({1, 1, 1, 1, 1}, GGML_TYPE_F32, 0, "has 5 dimensions");
    refuse(
        Writer(1, 0).string("experts").number(uint32_t{0xffffffff}).number(uint64_t{1}).number(uint64_t{0}),
        "has 4294967295 dimensions");
}

TEST(gguf_overflowing_shapes_are_refused) {
    const uint64_t bit32 = uint64_t{1} << 32;
    const uint64_t bit62 = uint64_t{1} << 62;
    const std::vector<std::vector<uint64_t>> shapes = {
        {bit62},              // 4 bytes each: 0 modulo 2^64
        {bit62 + 1},          // 4 modulo 2^64
        {uint64_t{1} << 61},  // exactly 2^63 bytes
        {huge},
        {1, huge},
        {bit32, bit32},  // 0 modulo 2^64 values
        {bit32, bit32, 1},
        {bit32, 1, bit32},
        {2, bit62, 2},
        {1, 1, 1, uint64_t{1} << 63},
        {3, huge / 3 + 1},  // 2 modulo 2^64 values
        {65536, 65536, 65536, 65536},
    };
    for (const std::vector<uint64_t>& shape : shapes) {
        refuse_tensor(shape, GGML_TYPE_F32, 0, "larger than any file");
    }
    refuse_tensor({256, bit62}, GGML_TYPE_Q4_K, 0, "larger than any file");
    refuse_tensor({huge - 255}, GGML_TYPE_Q4_K, 0, "larger than any file");
}

TEST(gguf_types_and_rows_are_checked) {
    for (const uint32_t type : {uint32_t{GGML_TYPE_COUNT}, 0x80000000u, 0xffffffffu}) {
        refuse_tensor({256}, type, 0, "unknown type " + std::to_string(type));
    }
    for (const uint32_t type : {4u, 5u, 31u, 32u, 33u, 36u, 37u, 38u}) {
        refuse_tensor({256}, type, 0, "no longer");
    }
    refuse_tensor({31}, GGML_TYPE_Q4_0, 0, "rows of 31 values");
    refuse_tensor({16, 2}, GGML_TYPE_Q4_0, 0, "rows of 16 values");
    refuse_tensor({128, 2}, GGML_TYPE_Q4_K, 0, "rows of 128 values");
    for (uint32_t type = 0; type < GGML_TYPE_COUNT; ++type) {
        if (ggml_blck_size(static_cast<ggml_type>(type)) > 0) {
            const GgufHeader header = read(Writer(1, 0).tensor("t", {256, 3}, type, 0).bytes(), 1 << 20);
            CHECK_EQUAL(header.tensors[0].n_bytes, 3 * ggml_row_size(static_cast<ggml_type>(type), 256));
        }
    }
}

TEST(gguf_tensors_outside_the_file_are_refused) {
    const Writer writer = Writer(1, 0).tensor("experts", {8}, GGML_TYPE_F32, 64);
    const uint64_t data_offset = (writer.size() + 31) / 32 * 32;
    CHECK_EQUAL(read(writer.bytes(), data_offset + 96).tensors[0].offset, data_offset + 64);
    for (const uint64_t file_size : {data_offset + 95, data_offset + 64, data_offset + 1, data_offset}) {
        refuse(writer, "truncated, in tensor experts", file_size);
    }
    // Not even of an empty tensor may the place lie behind the file's end.
    for (const uint64_t file_size : {data_offset - 1, uint64_t{0}}) {
        refuse(writer, "ends before the data of tensor experts", file_size);
        refuse(Writer(1, 0).tensor("experts", {0}, GGML_TYPE_F32, 0), "ends before the data", file_size);
    }
    for (const uint64_t offset : {huge - 31, uint64_t{1} << 63, huge - 63}) {  // sums that pass 2^64
        refuse_tensor({8}, GGML_TYPE_F32, offset, "the file is truncated", uint64_t{1} << 40);
        refuse_tensor({16}, GGML_TYPE_F32, offset, "the file is truncated", uint64_t{1} << 63);
    }
    for (const uint64_t offset : {uint64_t{1}, uint64_t{16}, uint64_t{33}, huge}) {
        refuse_tensor({8}, GGML_TYPE_F32, offset, "multiple of the alignment");
    }
    refuse_tensor({(uint64_t{1} << 60)}, GGML_TYPE_F32, 0, "the file is truncated", uint64_t{1} << 40);
}

TEST(gguf_overlapping_tensors_are_refused) {
    const auto two = [](uint64_t first, uint64_t second, uint64_t values) {
        return Writer(2, 0)
            .tensor("a", {values}, GGML_TYPE_F32, first)
            .tensor("b", {16}, GGML_TYPE_F32, second);
    };
    refuse(two(0, 0, 16), "overlap", 1 << 20);
    refuse(two(0, 32, 16), "tensors a and b overlap", 1 << 20);
    refuse(two(32, 0, 16), "tensors b and a overlap", 1 << 20);
    refuse(two(0, 64, 17), "overlap", 1 << 20);
    // In any order, with or without a gap, and nothing overlaps what has no bytes.
    for (const auto& [first, second, values] : std::vector<std::array<uint64_t, 3>>{
             {0, 64, 16}, {64, 0, 16}, {0, 4096, 16}, {0, 0, 0}, {32, 0, 0}}) {
        read(two(first, second, values).bytes(), 1 << 20);
    }
}

TEST(gguf_duplicates_are_refused) {
    refuse(Writer(0, 3)
               .entry("one", GgufType::u8, uint8_t{1})
               .entry("two", GgufType::u8, uint8_t{1})
               .entry("one", GgufType::u64, uint64_t{1}),
           "two metadata entries named one");
    refuse(Writer(2, 0).tensor("t", {1}, GGML_TYPE_F32, 0).tensor("t", {2}, GGML_TYPE_F32, 32),
           "two tensors named t");
    // An entry and a tensor may share a name.
    read(Writer(1, 1).entry("t", GgufType::u8, uint8_t{1}).tensor("t", {1}, GGML_TYPE_F32, 0).bytes(),
         1 << 20);
}

TEST(gguf_alignment_is_checked) {
    const std::string key = "general.alignment";
    for (const uint32_t alignment : {0u, 3u, 48u, 131072u, 0x80000000u, 0x80000001u, 0xffffffffu}) {
        refuse(Writer(0, 1).entry(key, GgufType::u32, alignment),
               "alignment is " + std::to_string(alignment));
    }
    refuse(Writer(0, 1).entry(key, GgufType::u64, uint64_t{32}), "32-bit number");
    refuse(Writer(0, 1).entry(key, GgufType::i32, int32_t{32}), "32-bit number");
    refuse(Writer(0, 1).string(key).number(GgufType::string).string("32"), "32-bit number");
    refuse(Writer(0, 1).array(key, GgufType::u32, 0), "32-bit number");
    refuse(Writer(0, 1).array(key, GgufType::u32, 1).number(uint32_t{32}), "32-bit number");
    for (const uint32_t alignment : {1u, 2u, 4096u, 65536u}) {
        const Writer writer = Writer(0, 1).entry(key, GgufType::u32, alignment);
        const GgufHeader header = read(writer.bytes(), 1 << 20);
        CHECK_EQUAL(header.alignment, uint64_t{alignment});
        CHECK_EQUAL(header.data_offset, (writer.size() + uint64_t{alignment} - 1) / alignment * alignment);
    }
    refuse(Writer(1, 1).entry(key, GgufType::u32, 65536u).tensor("t", {1}, GGML_TYPE_F32, 0),
           "the file is truncated", 1 << 16);
}

TEST(gguf_mutations_never_crash) {
    const Sample file = sample();
    std::mt19937 random(2024);
    const auto below = [&](size_t bound) {
        return std::uniform_int_distribution<size_t>(0, bound - 1)(random);
    };
    const std::vector<uint8_t> edges = {0x00, 0x01, 0x7f, 0x80, 0xff};
    size_t n_refused = 0;
    for (int i = 0; i < 20000; ++i) {
        std::vector<uint8_t> bytes = file.bytes;
        const size_t n_changes = i % 2 == 0 ? 1 : 1 + below(12);
        // Every other mutation of several bytes hits a run of them: a whole length or count.
        const bool run = i % 4 == 1;
        const size_t start = below(bytes.size());
        for (size_t change = 0; change < n_changes; ++change) {
            const size_t at = run ? (start + change) % bytes.size() : below(bytes.size());
            bytes[at] = below(2) == 0 ? edges[below(edges.size())] : static_cast<uint8_t>(below(256));
        }
        if (i % 8 == 7) {
            bytes.resize(below(bytes.size() + 1));
        }
        try {
            check_consistent(read(bytes, file.file_size), bytes.size(), file.file_size);
        } catch (const GgufError&) {
            ++n_refused;
        }
        CHECK(largest_allocation() < 2 * small_allocation);
    }
    CHECK(n_refused > 5000);
    CHECK(n_refused < 20000);
}
