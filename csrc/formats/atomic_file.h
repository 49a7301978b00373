// Outputs that appear whole or not at all.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace coe {

// Writes a file beside its name, syncs it, and renames it. Symlinks are resolved first. Throws
// std::runtime_error.
void write_file(const std::string& path, const std::vector<uint8_t>& bytes);

}  // namespace coe
