// Loops in several threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

namespace coe {

// Calls `work` for 0 to n - 1, in at most `n_threads` threads. `work` must not throw.
void parallel_for(size_t n, int32_t n_threads, const std::function<void(size_t)>& work);

}  // namespace coe
