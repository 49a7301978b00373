// Whether the ggml that is loaded is the one that this was compiled against.
#pragma once

#include <cstddef>
#include <string>

#include "ggml.h"

namespace coe {

// "" if so, else what differs: the layout of ggml_tensor and the numbers of operations are not stable, and
// two builds of one version can differ in them.
std::string find_other_ggml();

// The same for what a ggml says of itself.
std::string compare_ggml(const char* version, const char* (*operation_name)(ggml_op), size_t tensor_overhead);

}  // namespace coe
