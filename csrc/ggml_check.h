// Whether the ggml that is loaded is the one that this was compiled against.
#pragma once

#include <string>

namespace coe {

// "" if so, else what differs: the layout of ggml_tensor and the numbers of operations are not stable, and
// two builds of one version can differ in them.
std::string find_other_ggml();

}  // namespace coe
