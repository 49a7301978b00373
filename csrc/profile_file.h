// A routing profile as C hosts hold it, and its file: the one that coe_native.RoutingProfile reads and
// writes.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "router_layout.h"
#include "routing_stats.h"

namespace coe {

struct Profile {
    RouterLayout layout;
    RoutingStats stats;
    std::vector<uint64_t> tokens;  // that each layer has seen

    // The most that any layer has seen, which is what the model has run.
    uint64_t n_tokens() const;
    // Adds another of the same model. Throws std::invalid_argument for one of another.
    void add(const Profile& other);
};

// The bytes of its file, which says of the text that it was `source`.
std::vector<uint8_t> encode_profile(const Profile& profile, const std::string& source);

// Writes a file, whole or not at all: beside, to the disk, and then under its name. Throws
// std::runtime_error.
void write_file(const std::string& path, const std::vector<uint8_t>& bytes);

}  // namespace coe
