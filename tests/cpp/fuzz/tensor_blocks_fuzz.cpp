// Any bytes as blocks of any type: as many norms as slices, or std::invalid_argument.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "fuzz.h"
#include "ggml.h"
#include "gguf/tensor_blocks.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    if (size < 3) {
        return 0;
    }
    const uint32_t type = data[0];
    const size_t n_slices = data[1] + 256 * (data[2] % 2);
    data += 3;
    size -= 3;
    if (!coe::has_norm(type)) {
        REQUIRE_THROWS(std::invalid_argument, coe::slice_norms(data, size, type, n_slices));
        return 0;
    }
    // Most sizes are no whole slices: try these, and the largest part that is.
    const size_t block_bytes = ggml_type_size(static_cast<ggml_type>(type));
    const size_t whole = n_slices == 0 ? 0 : size / (n_slices * block_bytes) * n_slices * block_bytes;
    for (const size_t n_bytes : {size, whole}) {
        const bool fits = n_slices > 0 && n_bytes >= n_slices && n_bytes % n_slices == 0 &&
                          n_bytes / n_slices % block_bytes == 0;
        if (!fits) {
            REQUIRE_THROWS(std::invalid_argument, coe::slice_norms(data, n_bytes, type, n_slices));
            continue;
        }
        const std::vector<double> norms = coe::slice_norms(data, n_bytes, type, n_slices);
        REQUIRE(norms.size() == n_slices);
        size_t first = 0;
        while (first < n_slices && std::isfinite(norms[first])) {
            ++first;
        }
        REQUIRE(coe::first_not_finite(data, n_bytes, type, n_slices) == first);
        for (size_t slice = 0; slice < n_slices; ++slice) {
            const size_t slice_bytes = n_bytes / n_slices;
            // The norm of a slice is its own, whatever lies beside it.
            const std::vector<uint8_t> alone(data + slice * slice_bytes, data + (slice + 1) * slice_bytes);
            const double norm = coe::slice_norms(alone.data(), alone.size(), type, 1)[0];
            REQUIRE(norm == norms[slice] || (std::isnan(norm) && std::isnan(norms[slice])));
            REQUIRE(std::isnan(norm) || norm >= 0.0);
        }
    }
    return 0;
}
