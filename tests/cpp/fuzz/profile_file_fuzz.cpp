// Any file as a profile: it is refused in one line, or what is read can be written, and read again.
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "formats/profile_file.h"
#include "fuzz.h"
#include "scratch_file.h"

namespace {

coe::Profile decode(const ScratchFile& scratch) { return coe::decode_profile(coe::GgufFile(scratch.path)); }

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    static const ScratchFile scratch;
    scratch.write(data, size);
    coe::Profile profile;
    try {
        profile = decode(scratch);
    } catch (const std::invalid_argument& refused) {
        REQUIRE(std::string(refused.what()).find(scratch.path) == 0);
        return 0;
    }
    profile.check();
    const std::vector<uint8_t> bytes = coe::encode_profile(profile);
    scratch.write(bytes.data(), bytes.size());
    const coe::Profile again = decode(scratch);
    REQUIRE(again.histograms == profile.histograms && again.layer_tokens == profile.layer_tokens);
    REQUIRE(again.fingerprint == profile.fingerprint && again.blocks == profile.blocks);
    return 0;
}
