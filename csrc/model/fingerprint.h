// The digest that tells a model from others: docs/formats.md specifies its bytes.
#pragma once

#include <cstddef>
#include <functional>
#include <string>

#include "model/router_layout.h"

namespace coe {

// A running SHA-256.
struct Hasher {
    std::function<void(const void* data, size_t n_bytes)> update;
    std::function<std::string()> hex;
};
Hasher make_hasher();

// Reads the routers' weights. `make`: a host may have a faster SHA-256.
void find_fingerprints(const ModelFiles& files, RouterLayout& layout,
                       const std::function<Hasher()>& make = make_hasher);

// Reads the layout and the fingerprints of the model at a path: its first shard where it is split. Throws
// std::invalid_argument, in one line that names the file.
RouterLayout read_router_layout(const std::string& path);

}  // namespace coe
