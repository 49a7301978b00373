// Tells how much memory was asked for at once.
#pragma once

#include <cstddef>

namespace coe::tests {

void forget_allocations();

// The largest request to operator new since `forget_allocations`.
size_t largest_allocation();

}  // namespace coe::tests
