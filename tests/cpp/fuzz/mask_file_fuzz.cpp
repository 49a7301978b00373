// Any text as a mask: it is refused, or what is read is a mask that could have been written.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "formats/mask_file.h"
#include "fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    coe::Mask mask;
    try {
        mask = coe::parse_mask(std::string(reinterpret_cast<const char*>(data), size)).mask;
    } catch (const std::invalid_argument& refused) {
        REQUIRE(std::string(refused.what()).find('\n') == std::string::npos);
        return 0;
    }
    for (const auto& [block, kept] : mask.kept) {
        REQUIRE(block >= 0 && kept.size() == mask.keep && mask.keep <= mask.n_experts);
        REQUIRE(std::is_sorted(kept.begin(), kept.end()) &&
                std::adjacent_find(kept.begin(), kept.end()) == kept.end());
        REQUIRE(kept.front() >= 0 && static_cast<size_t>(kept.back()) < mask.n_experts);
    }
    return 0;
}
