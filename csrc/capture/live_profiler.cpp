#include "capture/live_profiler.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

namespace coe {

LiveProfiler::LiveProfiler(const std::vector<int>& blocks, size_t n_experts, const std::vector<size_t>& top_k,
                           size_t n_parts)
    : tap_(blocks, n_experts, top_k), parts_(n_parts, nothing()), applications_(blocks.size()) {
    hooks_.tap = &tap_;
}

LiveCounts LiveProfiler::nothing() const {
    const size_t n_layers = tap_.blocks().size();
    return {RoutingStats(n_layers, n_experts(), top_k(), tap_.stats().has_outputs()),
            std::vector<uint64_t>(n_layers)};
}

void LiveProfiler::watch_outputs(int32_t n_threads) {
    const std::lock_guard<std::mutex> lock(mutex_);
    tap_.watch_outputs(n_threads);
    parts_.assign(parts_.size(), nothing());
}

bool LiveProfiler::callback(ggml_tensor* node, bool ask, void* user_data) {
    auto& self = *static_cast<LiveProfiler*>(user_data);
    bool ours = !ask;  // the answer for most nodes, which are not those of a router and need no lock
    const RouterNodeName name = find_router_node(node);
    if ((ask || self.ours_) && name.node != RouterNode::none) {
        const std::lock_guard<std::mutex> lock(self.mutex_);
        if (ask && begins_router(node, name)) {
            self.begin_router(name);
        }
        ours = self.hooks_.handle(node, name, ask);
    }
    if (ask) {
        self.ours_ = ours;
    }
    if (self.chained_ == nullptr) {
        return ours;
    }
    // Outside the lock: the host's callback may wait for a thread that reads the counts.
    if (ask) {
        self.theirs_ = self.chained_(node, true, self.chained_data_);
        return self.ours_ || self.theirs_;
    }
    return (!self.theirs_ || self.chained_(node, false, self.chained_data_)) && ours;
}

void LiveProfiler::begin_router(RouterNodeName name) {
    // Each block depends on the one before it, so routers run in the order of their blocks. Some begin with
    // two nodes.
    const bool is_next_graph =
        name.block < last_begun_.block || (name.block == last_begun_.block && name.node <= last_begun_.node);
    last_begun_ = name;
    if (is_next_graph && decoding_ && ++n_graphs_ == 2) {
        move_counts(decode_part_);
    }
    if (is_next_graph && next_mask_) {
        hooks_.mask = std::move(*next_mask_);
        next_mask_.reset();
        applications_.assign(blocks().size(), 0);
    }
}

void LiveProfiler::chain(ggml_backend_sched_eval_callback host, void* user_data) {
    chained_ = host;
    chained_data_ = user_data;
}

void LiveProfiler::settle(size_t part) {
    if (failure_) {
        std::rethrow_exception(failure_);
    }
    if (!decoding_) {
        try {
            hooks_.rethrow();
            tap_.collect_final();
        } catch (...) {
            failure_ = std::current_exception();
            throw;
        }
    }
    // In the first graph of a decode, the tap has only counts from before the decode. From the second graph
    // on, it counts the first.
    if (!decoding_ || n_graphs_ < 2) {
        move_counts(part);
    }
}

void LiveProfiler::move_counts(size_t index) {
    const std::vector<uint64_t> seen = tap_.tokens_seen();
    if (std::all_of(seen.begin(), seen.end(), [](uint64_t tokens) { return tokens == 0; })) {
        return;
    }
    LiveCounts& part = parts_[index];
    part.stats.add(tap_.stats());
    for (size_t layer = 0; layer < seen.size(); ++layer) {
        part.tokens[layer] += seen[layer];
    }
    tap_.clear_counts();
}

void LiveProfiler::select(size_t part) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (part >= parts_.size()) {
        throw std::invalid_argument("the counts have no such part");
    }
    if (part != part_) {
        // The part changes even after an error: what runs from now on does not belong to the old one.
        const size_t before = std::exchange(part_, part);
        settle(before);
    }
}

void LiveProfiler::begin_decode() {
    const std::lock_guard<std::mutex> lock(mutex_);
    collect();
    decoding_ = true;
    decode_part_ = part_;
    n_graphs_ = 0;
}

void LiveProfiler::end_decode() {
    const std::lock_guard<std::mutex> lock(mutex_);
    decoding_ = false;
    if (std::exchange(forgets_decode_, false)) {
        tap_.discard();
    }
    collect();
    if (part_ != decode_part_) {
        move_counts(decode_part_);
    }
}

void LiveProfiler::hold(bool on) {
    const std::lock_guard<std::mutex> lock(mutex_);
    collect();
    tap_.hold(on);
}

void LiveProfiler::accept(size_t n) {
    const std::lock_guard<std::mutex> lock(mutex_);
    collect();
    try {
        tap_.count_held(n);
    } catch (...) {
        failure_ = failure_ ? failure_ : std::current_exception();
    }
}

void LiveProfiler::collect() noexcept {
    try {
        tap_.collect();
    } catch (...) {
        failure_ = failure_ ? failure_ : std::current_exception();
    }
}

LiveCounts LiveProfiler::counts(size_t part) {
    const std::lock_guard<std::mutex> lock(mutex_);
    settle(part_);
    return parts_.at(part);
}

std::vector<LiveCounts> LiveProfiler::counts() {
    const std::lock_guard<std::mutex> lock(mutex_);
    settle(part_);
    return parts_;
}

void LiveProfiler::reset() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (failure_ || hooks_.error) {
        tap_.clear();  // what it had learnt may be wrong
    } else {
        tap_.discard();
    }
    failure_ = nullptr;
    hooks_.error = nullptr;
    forgets_decode_ = decoding_;
    parts_.assign(parts_.size(), nothing());
}

void LiveProfiler::recover() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (failure_ || hooks_.error) {
        tap_.clear();
        failure_ = nullptr;
        hooks_.error = nullptr;
        forgets_decode_ = decoding_;
    }
}

void LiveProfiler::mask(const std::vector<std::vector<int>>& kept) {
    LiveMask next;
    next.set(blocks(), kept, n_experts());
    const std::lock_guard<std::mutex> lock(mutex_);
    next_mask_ = std::move(next);
}

void LiveProfiler::unmask() {
    const std::lock_guard<std::mutex> lock(mutex_);
    next_mask_ = LiveMask();
}

std::vector<uint64_t> LiveProfiler::mask_applications() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (next_mask_) {
        return std::vector<uint64_t>(blocks().size());
    }
    if (hooks_.mask.active()) {
        const std::vector<uint64_t> more = hooks_.mask.take_applications(blocks());
        for (size_t layer = 0; layer < more.size(); ++layer) {
            applications_[layer] += more[layer];
        }
    }
    return applications_;
}

}  // namespace coe
