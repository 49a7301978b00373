// Tells how much memory was asked for at once, and refuses memory.
#pragma once

#include <cstddef>

namespace coe::tests {

void forget_allocations();

// The largest request to operator new since `forget_allocations`.
size_t largest_allocation();

// While it exists, operator new fails in this thread after `n_allocations` allocations.
class NoMemoryAfter {
  public:
    explicit NoMemoryAfter(size_t n_allocations);
    ~NoMemoryAfter();
    NoMemoryAfter(const NoMemoryAfter&) = delete;
    NoMemoryAfter& operator=(const NoMemoryAfter&) = delete;
};

}  // namespace coe::tests
