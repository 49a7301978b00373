#include "gguf/gguf_header.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <string>
#include <unordered_set>

#include "ggml.h"

namespace coe {

namespace {

constexpr size_t longest_name = 65535;
constexpr uint64_t most_dimensions = GGML_MAX_DIMS;

// Far more than any model has. A file that claims more is damaged, and reading it could use up memory.
constexpr size_t most_header_bytes = size_t{256} << 20;
constexpr uint64_t most_items = 65536;
constexpr uint32_t most_alignment = 65536;

class Cursor {
  public:
    Cursor(const uint8_t* data, size_t size)
        : data_(data), size_(std::min(size, most_header_bytes)), cut_(size > most_header_bytes) {}

    size_t position() const { return position_; }

    void skip(uint64_t n_bytes) {
        if (n_bytes > size_ - position_) {
            throw GgufError(cut_ ? "the header claims more than 256 MB; the file is damaged"
                                 : "the file ends inside its header; it is damaged or incomplete");
        }
        position_ += static_cast<size_t>(n_bytes);
    }

    template <typename T>
    T take() {
        T value;
        const size_t at = position_;
        skip(sizeof(T));
        std::memcpy(&value, data_ + at, sizeof(T));  // GGUF and all supported machines are little-endian
        return value;
    }

    void skip_string() { skip(take<uint64_t>()); }

    std::string take_name() {
        const auto length = take<uint64_t>();
        if (length > longest_name) {
            throw GgufError("a name in the header has " + std::to_string(length) + " bytes");
        }
        const size_t at = position_;
        skip(length);
        for (size_t i = at; i < position_; ++i) {
            // Names are ASCII in every model, so they can be printed and encoded safely.
            if (data_[i] < 0x20 || data_[i] > 0x7e) {
                throw GgufError("a name in the header contains byte " + std::to_string(data_[i]));
            }
        }
        return {reinterpret_cast<const char*>(data_) + at, static_cast<size_t>(length)};
    }

  private:
    const uint8_t* data_;
    size_t size_;
    bool cut_;
    size_t position_ = 0;
};

GgufType take_type(Cursor& cursor) {
    const auto type = cursor.take<uint32_t>();
    if (type > static_cast<uint32_t>(GgufType::f64)) {
        throw GgufError("the metadata has a value of unknown type " + std::to_string(type));
    }
    return static_cast<GgufType>(type);
}

GgufEntry take_entry(Cursor& cursor) {
    GgufEntry entry;
    entry.begin = cursor.position();
    entry.key = cursor.take_name();
    entry.type = entry.element_type = take_type(cursor);
    entry.count = 1;
    if (entry.type == GgufType::array) {
        entry.element_type = take_type(cursor);
        entry.count = cursor.take<uint64_t>();
        if (entry.element_type == GgufType::array) {
            throw GgufError("the metadata has an array of arrays at " + entry.key);
        }
    }
    entry.value = cursor.position();
    const size_t element_size = gguf_type_size(entry.element_type);
    if (element_size == 0) {
        for (uint64_t i = 0; i < entry.count; ++i) {
            cursor.skip_string();
        }
    } else {
        if (entry.count > most_header_bytes) {
            throw GgufError("the metadata has an array of " + std::to_string(entry.count) + " values at " +
                            entry.key);
        }
        cursor.skip(entry.count * element_size);
    }
    entry.end = cursor.position();
    return entry;
}

// Returns the bytes of a tensor. Every product is checked for overflow, and rows must be whole blocks.
uint64_t tensor_bytes(const GgufTensor& tensor) {
    if (tensor.type >= GGML_TYPE_COUNT) {
        throw GgufError("tensor " + tensor.name + " has unknown type " + std::to_string(tensor.type));
    }
    const auto type = static_cast<ggml_type>(tensor.type);
    const auto block = static_cast<uint64_t>(ggml_blck_size(type));
    const uint64_t block_bytes = ggml_type_size(type);
    if (block == 0 || block_bytes == 0) {
        throw GgufError("tensor " + tensor.name + " has type " + std::to_string(tensor.type) +
                        ", which ggml no longer supports");
    }
    if (tensor.shape[0] % block != 0) {
        throw GgufError("tensor " + tensor.name + " has rows of " + std::to_string(tensor.shape[0]) +
                        " values, which is not a multiple of its type's block size " + std::to_string(block));
    }
    uint64_t n_blocks = tensor.shape[0] / block;
    const uint64_t most_blocks = static_cast<uint64_t>(std::numeric_limits<int64_t>::max()) / block_bytes;
    for (size_t i = 1; i < tensor.shape.size(); ++i) {
        if (n_blocks != 0 && tensor.shape[i] > most_blocks / n_blocks) {
            throw GgufError("tensor " + tensor.name + " is larger than any file");
        }
        n_blocks *= tensor.shape[i];
    }
    if (n_blocks > most_blocks) {
        throw GgufError("tensor " + tensor.name + " is larger than any file");
    }
    return n_blocks * block_bytes;
}

GgufTensor take_tensor(Cursor& cursor) {
    GgufTensor tensor;
    tensor.begin = cursor.position();
    tensor.name = cursor.take_name();
    const auto n_dimensions = cursor.take<uint32_t>();
    if (n_dimensions == 0 || n_dimensions > most_dimensions) {
        throw GgufError("tensor " + tensor.name + " has " + std::to_string(n_dimensions) + " dimensions");
    }
    for (uint32_t i = 0; i < n_dimensions; ++i) {
        tensor.shape.push_back(cursor.take<uint64_t>());
        if (tensor.shape.back() > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
            throw GgufError("tensor " + tensor.name + " is larger than any file");
        }
    }
    tensor.type = cursor.take<uint32_t>();
    tensor.offset = cursor.take<uint64_t>();
    tensor.end = cursor.position();
    tensor.n_bytes = tensor_bytes(tensor);
    return tensor;
}

void read_alignment(GgufHeader& header, const uint8_t* data) {
    for (const GgufEntry& entry : header.entries) {
        if (entry.key == "general.alignment") {
            if (entry.type != GgufType::u32) {
                throw GgufError("general.alignment is not a 32-bit number");
            }
            uint32_t alignment;
            std::memcpy(&alignment, data + entry.value, sizeof(alignment));
            if (alignment == 0 || alignment > most_alignment || (alignment & (alignment - 1)) != 0) {
                throw GgufError("general.alignment is " + std::to_string(alignment) +
                                ", not a power of two up to " + std::to_string(most_alignment));
            }
            header.alignment = alignment;
        }
    }
}

template <typename Items, typename Name>
void refuse_duplicates(const Items& items, const char* what, Name name) {
    std::unordered_set<std::string> seen;
    for (const auto& item : items) {
        if (!seen.insert(name(item)).second) {
            throw GgufError(std::string("the file has two ") + what + " named " + name(item));
        }
    }
}

uint64_t take_count(Cursor& cursor, const char* what) {
    const auto count = cursor.take<uint64_t>();
    if (count > most_items) {
        throw GgufError("the header claims " + std::to_string(count) + what + "; the file is damaged");
    }
    return count;
}

// Tensors must not share bytes: changing one would change the other.
void refuse_overlaps(const std::vector<GgufTensor>& tensors) {
    std::vector<const GgufTensor*> ordered;
    for (const GgufTensor& tensor : tensors) {
        if (tensor.n_bytes > 0) {
            ordered.push_back(&tensor);
        }
    }
    std::sort(ordered.begin(), ordered.end(),
              [](const GgufTensor* a, const GgufTensor* b) { return a->offset < b->offset; });
    for (size_t i = 1; i < ordered.size(); ++i) {
        if (ordered[i]->offset - ordered[i - 1]->offset < ordered[i - 1]->n_bytes) {
            throw GgufError("tensors " + ordered[i - 1]->name + " and " + ordered[i]->name +
                            " overlap; the file is damaged");
        }
    }
}

// Returns what else a file is, by its first bytes, and what to do.
std::string other_format(const uint8_t* data, size_t size) {
    if (size == 0) {
        return ": it is empty; download it again";
    }
    const std::string start(reinterpret_cast<const char*>(data), std::min<size_t>(size, 512));
    const auto begins_with = [&start](const char* text) { return start.rfind(text, 0) == 0; };
    if (begins_with("version https://git-lfs.github.com/spec/")) {
        return ": it is a Git LFS pointer; run `git lfs pull`";
    }
    const size_t text = start.find_first_not_of(" \t\r\n");
    if (text != std::string::npos && start[text] == '<') {
        return ": it is a web page; download the file itself";
    }
    if (size > 9 && data[8] == '{' &&
        std::all_of(data + 5, data + 8, [](uint8_t byte) { return byte == 0; })) {
        return ": it is a safetensors file; convert it with llama.cpp's convert_hf_to_gguf.py";
    }
    if (begins_with("PK")) {
        return ": it is an archive, such as PyTorch's .pt; unpack or convert it first";
    }
    for (const char* magic : {"lmgg", "fmgg", "tjgg", "algg"}) {
        if (begins_with(magic)) {
            return ": it is a model of llama.cpp before GGUF; convert it, or download a newer one";
        }
    }
    if (start.find_first_not_of('\0') == std::string::npos) {
        return ": it begins with zeros, as an incomplete download does; download it again";
    }
    return "; give a model or a profile in that format";
}

}  // namespace

size_t gguf_type_size(GgufType type) {
    switch (type) {
        case GgufType::u8:
        case GgufType::i8:
        case GgufType::boolean:
            return 1;
        case GgufType::u16:
        case GgufType::i16:
            return 2;
        case GgufType::u32:
        case GgufType::i32:
        case GgufType::f32:
            return 4;
        case GgufType::u64:
        case GgufType::i64:
        case GgufType::f64:
            return 8;
        case GgufType::string:
        case GgufType::array:
            break;
    }
    return 0;
}

GgufHeader read_gguf_header(const uint8_t* data, size_t n_mapped, uint64_t file_size) {
    if (n_mapped < 4 || std::memcmp(data, "GGUF", 4) != 0) {
        throw GgufError("not a GGUF file" + other_format(data, n_mapped));
    }
    Cursor cursor(data, n_mapped);
    cursor.skip(4);
    GgufHeader header;
    header.version = cursor.take<uint32_t>();
    if (header.version == 0x02000000 || header.version == 0x03000000) {
        throw GgufError("is a big-endian GGUF file; convert it with gguf-convert-endian of the package gguf");
    }
    if (header.version != 2 && header.version != 3) {
        throw GgufError("GGUF version " + std::to_string(header.version) +
                        " is not supported; versions 2 and 3 are");
    }
    const uint64_t n_tensors = take_count(cursor, " tensors");
    const uint64_t n_entries = take_count(cursor, " metadata entries");
    for (uint64_t i = 0; i < n_entries; ++i) {
        header.entries.push_back(take_entry(cursor));
    }
    for (uint64_t i = 0; i < n_tensors; ++i) {
        header.tensors.push_back(take_tensor(cursor));
    }
    refuse_duplicates(header.entries, "metadata entries", [](const GgufEntry& e) { return e.key; });
    refuse_duplicates(header.tensors, "tensors", [](const GgufTensor& t) { return t.name; });
    read_alignment(header, data);

    const uint64_t unaligned = cursor.position();
    header.data_offset = (unaligned + header.alignment - 1) / header.alignment * header.alignment;
    for (GgufTensor& tensor : header.tensors) {
        if (file_size < header.data_offset) {
            throw GgufError("the file is truncated: it ends before the data of tensor " + tensor.name);
        }
        const uint64_t room = file_size - header.data_offset;
        if (tensor.offset % header.alignment != 0) {
            throw GgufError("tensor " + tensor.name + " does not start at a multiple of the alignment");
        }
        if (tensor.offset > room || tensor.n_bytes > room - tensor.offset) {
            throw GgufError("the file is truncated, in tensor " + tensor.name + "; download the rest of it");
        }
        tensor.offset += header.data_offset;
    }
    refuse_overlaps(header.tensors);
    return header;
}

}  // namespace coe
