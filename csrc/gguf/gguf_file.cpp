#include "gguf/gguf_file.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <system_error>
#include <utility>

namespace coe {

namespace {

constexpr uint64_t first_read = uint64_t{1} << 20;
constexpr uint64_t largest_header = uint64_t{1} << 28;  // a vocabulary of millions of tokens

std::vector<uint8_t> read_bytes(const std::string& path, uint64_t offset, uint64_t n_bytes) {
    std::vector<uint8_t> bytes(n_bytes);
    std::ifstream file(std::filesystem::u8path(path), std::ios::binary);
    file.seekg(static_cast<std::streamoff>(offset));
    if (!file.read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(n_bytes))) {
        refuse_file(path, "cannot be read");
    }
    return bytes;
}

bool is_signed(GgufType type) {
    return type == GgufType::i8 || type == GgufType::i16 || type == GgufType::i32 || type == GgufType::i64;
}

bool is_whole_number(GgufType type) {
    return gguf_type_size(type) > 0 && type != GgufType::f32 && type != GgufType::f64 &&
           type != GgufType::boolean;
}

}  // namespace

void refuse_file(const std::string& path, const std::string& what) {
    throw std::invalid_argument(path + ": " + what);
}

GgufFile::GgufFile(const std::string& path) : path_(path) {
    const std::filesystem::path place = std::filesystem::u8path(path);
    std::error_code error;
    if (!std::filesystem::is_regular_file(place, error)) {
        refuse_file(path, "is not a file that can be read; give a GGUF file");
    }
    const uint64_t size = std::filesystem::file_size(place, error);
    if (error) {
        refuse_file(path, "cannot be read");
    }
    // A header does not say how long it is: more is read until it is whole.
    for (uint64_t length = first_read;; length *= 4) {
        bytes_ = read_bytes(path, 0, std::min({length, size, largest_header}));
        try {
            header_ = read_gguf_header(bytes_.data(), bytes_.size(), size);
            break;
        } catch (const GgufError& caught) {
            if (length >= std::min(size, largest_header)) {
                refuse_file(path, caught.what());
            }
        }
    }
    bytes_.resize(std::min<uint64_t>(bytes_.size(), header_.data_offset));
}

GgufFile::GgufFile(std::string path, const uint8_t* data, size_t n_bytes, uint64_t file_size)
    : path_(std::move(path)),
      header_(read_gguf_header(data, n_bytes, file_size)),
      bytes_(data, data + std::min<uint64_t>(n_bytes, header_.data_offset)) {}

const GgufEntry* GgufFile::find(const std::string& key) const {
    const auto same = [&](const GgufEntry& entry) { return entry.key == key; };
    const auto found = std::find_if(header_.entries.begin(), header_.entries.end(), same);
    return found == header_.entries.end() ? nullptr : &*found;
}

std::optional<std::string> GgufFile::text(const std::string& key) const {
    const GgufEntry* entry = find(key);
    if (entry == nullptr || entry->type != GgufType::string) {
        return std::nullopt;
    }
    // The text's length stands before it, and the entry ends with the text.
    const size_t begin = entry->value + sizeof(uint64_t);
    return std::string(reinterpret_cast<const char*>(bytes_.data()) + begin, entry->end - begin);
}

std::optional<uint64_t> GgufFile::count(const std::string& key, size_t block) const {
    const GgufEntry* entry = find(key);
    if (entry == nullptr) {
        return std::nullopt;
    }
    const GgufType type = entry->element_type;
    if (!is_whole_number(type)) {
        refuse_file(path_, key + " is not a count; the file is damaged");
    }
    const bool is_list = entry->type == GgufType::array;
    if (is_list && block >= entry->count) {
        return std::nullopt;
    }
    const size_t size = gguf_type_size(type);
    uint64_t value = 0;
    std::memcpy(&value, &bytes_[entry->value + (is_list ? block : 0) * size], size);
    if (is_signed(type) && (value >> (8 * size - 1)) != 0) {
        refuse_file(path_, key + " is below 0; the file is damaged");
    }
    return value;
}

std::vector<uint8_t> GgufFile::read(uint64_t offset, uint64_t n_bytes) const {
    return read_bytes(path_, offset, n_bytes);
}

}  // namespace coe
