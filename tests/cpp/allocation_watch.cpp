#include "allocation_watch.h"

#include <atomic>
#include <cstdlib>
#include <new>

namespace {

std::atomic<size_t> largest{0};

constexpr size_t no_limit = static_cast<size_t>(-1);
thread_local size_t n_left = no_limit;

void* allocate(size_t n_bytes) noexcept {
    if (n_left == 0) {
        return nullptr;
    }
    n_left -= n_left == no_limit ? 0 : 1;
    size_t known = largest.load();
    while (n_bytes > known && !largest.compare_exchange_weak(known, n_bytes)) {
    }
    return std::malloc(n_bytes > 0 ? n_bytes : 1);
}

void* allocate_or_throw(size_t n_bytes) {
    void* memory = allocate(n_bytes);
    if (memory == nullptr) {
        throw std::bad_alloc();
    }
    return memory;
}

}  // namespace

// All forms, since sanitizers replace all of them too and must not see memory of theirs freed here.
void* operator new(size_t n_bytes) { return allocate_or_throw(n_bytes); }
void* operator new[](size_t n_bytes) { return allocate_or_throw(n_bytes); }
void* operator new(size_t n_bytes, const std::nothrow_t&) noexcept { return allocate(n_bytes); }
void* operator new[](size_t n_bytes, const std::nothrow_t&) noexcept { return allocate(n_bytes); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, size_t) noexcept { std::free(memory); }
void operator delete(void* memory, const std::nothrow_t&) noexcept { std::free(memory); }
void operator delete[](void* memory, const std::nothrow_t&) noexcept { std::free(memory); }

namespace coe::tests {

void forget_allocations() { largest = 0; }
size_t largest_allocation() { return largest.load(); }

NoMemoryAfter::NoMemoryAfter(size_t n_allocations) { n_left = n_allocations; }
NoMemoryAfter::~NoMemoryAfter() { n_left = no_limit; }

}  // namespace coe::tests
