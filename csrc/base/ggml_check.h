// Check that the loaded ggml is the one that this was compiled against.
#pragma once

#include <cstddef>
#include <string>

#include "ggml.h"

namespace coe {

// Returns what differs in the loaded ggml, or "". The layout of ggml_tensor and the numbers of operations are
// not stable: two builds of one version can differ in them.
std::string find_other_ggml();

// Returns the same for the facts that a ggml gives about itself.
std::string compare_ggml(const char* version, const char* (*operation_name)(ggml_op), size_t tensor_overhead);

}  // namespace coe
