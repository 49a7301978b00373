#include "base/sha256.h"

#include <algorithm>
#include <cstring>

namespace coe {

namespace {

constexpr size_t block_size = 64;

// The fractional parts of the cube roots of the first 64 primes.
constexpr std::array<uint32_t, 64> round_constants = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

uint32_t rotated(uint32_t value, int by) { return (value >> by) | (value << (32 - by)); }

}  // namespace

void Sha256::compress(const uint8_t* block) {
    std::array<uint32_t, 64> words;
    for (size_t i = 0; i < 16; ++i) {
        words[i] = static_cast<uint32_t>(block[4 * i]) << 24 | static_cast<uint32_t>(block[4 * i + 1]) << 16 |
                   static_cast<uint32_t>(block[4 * i + 2]) << 8 | static_cast<uint32_t>(block[4 * i + 3]);
    }
    for (size_t i = 16; i < 64; ++i) {
        const uint32_t low = words[i - 15];
        const uint32_t high = words[i - 2];
        words[i] = words[i - 16] + words[i - 7] + (rotated(low, 7) ^ rotated(low, 18) ^ (low >> 3)) +
                   (rotated(high, 17) ^ rotated(high, 19) ^ (high >> 10));
    }
    std::array<uint32_t, 8> s = state_;
    for (size_t i = 0; i < 64; ++i) {
        const uint32_t choice = (s[4] & s[5]) ^ (~s[4] & s[6]);
        const uint32_t majority = (s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]);
        const uint32_t first = s[7] + (rotated(s[4], 6) ^ rotated(s[4], 11) ^ rotated(s[4], 25)) + choice +
                               round_constants[i] + words[i];
        const uint32_t second = (rotated(s[0], 2) ^ rotated(s[0], 13) ^ rotated(s[0], 22)) + majority;
        s = {first + second, s[0], s[1], s[2], s[3] + first, s[4], s[5], s[6]};
    }
    for (size_t i = 0; i < 8; ++i) {
        state_[i] += s[i];
    }
}

void Sha256::update(const void* data, size_t n_bytes) {
    const auto* bytes = static_cast<const uint8_t*>(data);
    while (n_bytes > 0) {
        const size_t at = n_bytes_ % block_size;
        if (at == 0 && n_bytes >= block_size) {
            compress(bytes);
            n_bytes_ += block_size;
            bytes += block_size;
            n_bytes -= block_size;
            continue;
        }
        const size_t n_taken = std::min(n_bytes, block_size - at);
        std::memcpy(&pending_[at], bytes, n_taken);
        n_bytes_ += n_taken;
        bytes += n_taken;
        n_bytes -= n_taken;
        if (n_bytes_ % block_size == 0) {
            compress(pending_.data());
        }
    }
}

std::string Sha256::hex() {
    const uint64_t n_bits = n_bytes_ * 8;
    std::array<uint8_t, block_size + 8> padding = {0x80};
    const size_t at = n_bytes_ % block_size;
    const size_t n_padding = (at < 56 ? 56 : 120) - at;
    for (size_t i = 0; i < 8; ++i) {
        padding[n_padding + i] = static_cast<uint8_t>(n_bits >> (56 - 8 * i));
    }
    update(padding.data(), n_padding + 8);
    static const char digits[] = "0123456789abcdef";
    std::string text;
    for (const uint32_t word : state_) {
        for (int shift = 28; shift >= 0; shift -= 4) {
            text += digits[(word >> shift) & 15];
        }
    }
    return text;
}

}  // namespace coe
