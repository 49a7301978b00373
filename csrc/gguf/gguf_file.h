// A GGUF file whose header has been read.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "gguf/gguf_header.h"

namespace coe {

class GgufFile {
  public:
    // Reads the header of a file. Throws std::invalid_argument that names the file.
    explicit GgufFile(const std::string& path);
    // Takes the first bytes of a file of `file_size` bytes, at least its header, from the caller. Throws
    // GgufError.
    GgufFile(std::string path, const uint8_t* data, size_t n_bytes, uint64_t file_size);

    const std::string& path() const { return path_; }
    const GgufHeader& header() const { return header_; }
    // Everything before the data.
    const std::vector<uint8_t>& header_bytes() const { return bytes_; }

    const GgufEntry* find(const std::string& key) const;
    // A text; nothing where the key is missing or is not a text.
    std::optional<std::string> text(const std::string& key) const;
    // A whole number that is given once, or in a list with one for each block. Nothing where the key is
    // missing, or the list has no number for the block. Throws std::invalid_argument for other values and
    // for numbers below 0.
    std::optional<uint64_t> count(const std::string& key, size_t block = 0) const;

    // Bytes of the file. Throws std::invalid_argument.
    std::vector<uint8_t> read(uint64_t offset, uint64_t n_bytes) const;
    std::vector<uint8_t> read(const GgufTensor& tensor) const { return read(tensor.offset, tensor.n_bytes); }

  private:
    std::string path_;
    GgufHeader header_;
    std::vector<uint8_t> bytes_;
};

// Throws std::invalid_argument: "PATH: WHAT".
[[noreturn]] void refuse_file(const std::string& path, const std::string& what);

}  // namespace coe
