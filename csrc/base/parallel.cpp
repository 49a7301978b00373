#include "base/parallel.h"

#include <algorithm>
#include <atomic>
#include <system_error>
#include <thread>
#include <vector>

namespace coe {

void parallel_for(size_t n, int32_t n_threads, const std::function<void(size_t)>& work) {
    std::atomic<size_t> next{0};
    const auto worker = [&] {
        for (size_t i = next++; i < n; i = next++) {
            work(i);
        }
    };
    const size_t n_workers = std::min(n, static_cast<size_t>(std::max(n_threads, 1)));
    std::vector<std::thread> threads;
    threads.reserve(n_workers);
    try {
        while (threads.size() + 1 < n_workers) {
            threads.emplace_back(worker);
        }
    } catch (const std::system_error&) {
        // The system has no more threads: continue with those that were started.
    }
    worker();
    for (std::thread& thread : threads) {
        thread.join();
    }
}

}  // namespace coe
