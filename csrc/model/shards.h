// The files of a model, which may be split into shards.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "gguf/gguf_file.h"

namespace coe {

// In the order of the shards.
using ModelFiles = std::vector<std::shared_ptr<const GgufFile>>;

// The paths of all shards of the model whose first file this is; only its own where it is not split. Throws
// std::invalid_argument where it is not named as the first of several.
std::vector<std::string> shard_paths(const GgufFile& first);
// Throws std::invalid_argument unless the files are the shards of one model, each once.
void check_shards(const ModelFiles& files);
ModelFiles open_model(const std::string& path);

}  // namespace coe
