// A profile's file: GGUF, as docs/formats.md specifies it.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "formats/profile.h"
#include "gguf/gguf_file.h"

namespace coe {

using ExtraMetadata = std::vector<std::pair<std::string, std::variant<uint64_t, std::string>>>;

// The bytes of its file, with further metadata.
std::vector<uint8_t> encode_profile(const Profile& profile, const ExtraMetadata& extra = {});
// Throws std::invalid_argument, in one line that names the file, for one that holds no profile, is of a newer
// version or is damaged.
Profile decode_profile(const GgufFile& file);

}  // namespace coe
