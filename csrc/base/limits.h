// Upper limits for any model. A file that claims more is refused before memory is allocated for it.
#pragma once

namespace coe {

constexpr int most_blocks = 1 << 12;  // llama.cpp supports 512
constexpr int most_experts = 1 << 16;

}  // namespace coe
