// Counts and masks in a context of a host program, which decodes on its own.
#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>
#include <mutex>
#include <optional>
#include <vector>

#include "capture/router_hooks.h"
#include "ggml-backend.h"

namespace coe {

// Counts at one moment. Layers may differ in tokens, because some graphs of the host leave out rows of a
// layer.
struct LiveCounts {
    RoutingStats stats;
    std::vector<uint64_t> tokens;  // by layer
};

// The callback runs in the thread that decodes. All other functions may be called from any thread. Counts are
// those of whole graphs, unless that thread is in the middle of one.
class LiveProfiler {
  public:
    // Takes what RouterTap takes, and the number of parts that tokens are counted in. Throws
    // std::invalid_argument.
    LiveProfiler(const std::vector<int>& blocks, size_t n_experts, const std::vector<size_t>& top_k,
                 size_t n_parts = 1);

    // Sums activation norms too, with `n_threads` threads. Call before the first graph.
    void watch_outputs(int32_t n_threads);

    // A ggml_backend_sched_eval_callback; `user_data` is the LiveProfiler.
    static bool callback(ggml_tensor* node, bool ask, void* user_data);
    // Sets the host's own callback, which still sees the nodes that it asks for. Do not call while a graph
    // runs.
    void chain(ggml_backend_sched_eval_callback host, void* user_data);

    // Selects the part that tokens count for from the next decode on. Throws as `counts` does; the part is
    // selected even then.
    void select(size_t part);
    // Tell where a decode begins and ends, if the host knows. In between, `counts` returns the counts from
    // before it, so that no layer is ahead of another, and `reset` and `recover` leave out the whole decode.
    void begin_decode();
    void end_decode();
    // For tokens that a draft model proposes, and that the host may reject after they have run. `hold(true)`
    // holds the tokens of the decodes that follow, until it is called again; `accept(n)` counts the first n
    // of them for the selected part. Those that are not accepted by the next call of `hold` are forgotten.
    void hold(bool on);
    void accept(size_t n);
    // Returns the counts of a part. Throws std::runtime_error if something went wrong while a graph ran,
    // until `reset` or `recover` is called: the counts are invalid then.
    LiveCounts counts(size_t part);
    // Returns the counts of all parts, at one moment.
    std::vector<LiveCounts> counts();
    // Forgets all counts and errors, but not which nodes were found to be final.
    void reset();
    // Forgets errors, and the counts since the last decode; if the host does not announce decodes, the counts
    // since they were last read.
    void recover();

    // Set and remove a mask from the next graph on: a half-masked graph would not be that of any model.
    void mask(const std::vector<std::vector<int>>& kept);
    void unmask();
    // Returns how often the mask was applied to each layer's router since it was set.
    std::vector<uint64_t> mask_applications();

    const std::vector<int>& blocks() const { return tap_.blocks(); }
    size_t n_experts() const { return tap_.stats().n_experts(); }
    size_t top_k() const { return tap_.stats().top_k(); }

  private:
    // Brings a part up to date: to now or, during a decode, to the decode's beginning.
    void settle(size_t part);
    // Moves the tap's counts to a part.
    void move_counts(size_t part);
    // Counts all that was read, if no graph is running. Errors are kept for `counts` to throw.
    void collect() noexcept;
    // Called at the first node of each router.
    void begin_router(RouterNodeName name);
    LiveCounts nothing() const;

    std::mutex mutex_;
    RouterTap tap_;
    RouterHooks hooks_;
    std::vector<LiveCounts> parts_;
    size_t part_ = 0;
    std::exception_ptr failure_;
    std::optional<LiveMask> next_mask_;  // for the next graph
    RouterNodeName last_begun_ = {RouterNode::none, most_blocks};
    bool decoding_ = false;
    size_t decode_part_ = 0;  // the part that was selected when the decode began
    size_t n_graphs_ = 0;     // graphs that have begun in the decode
    bool forgets_decode_ = false;
    std::vector<uint64_t> applications_;
    ggml_backend_sched_eval_callback chained_ = nullptr;
    void* chained_data_ = nullptr;
    bool ours_ = false;    // the tap or the mask wants the node that was asked about last
    bool theirs_ = false;  // the host wants it
};

}  // namespace coe
