// SHA-256 (FIPS 180-4), for fingerprints.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

namespace coe {

class Sha256 {
  public:
    void update(const void* data, size_t n_bytes);
    void update(const std::string& text) { update(text.data(), text.size()); }
    // Returns the digest in hexadecimal. `update` must not be called after it.
    std::string hex();

  private:
    void compress(const uint8_t* block);

    std::array<uint32_t, 8> state_ = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                      0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    std::array<uint8_t, 64> pending_ = {};
    uint64_t n_bytes_ = 0;
};

}  // namespace coe
