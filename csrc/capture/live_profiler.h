// Counts and masks in a context that belongs to somebody else, who decodes as he pleases.
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

// What has been counted: a layer whose rows the host's graphs leave out has seen fewer tokens than others.
struct LiveCounts {
    RoutingStats stats;
    std::vector<uint64_t> tokens;  // by layer
};

// The callback runs in the thread that decodes; all else may be called from others. Counts are those of whole
// graphs where that thread is not in the middle of one.
class LiveProfiler {
  public:
    // As for RouterTap; the host may have its tokens counted in several parts. Throws std::invalid_argument.
    LiveProfiler(const std::vector<int>& blocks, size_t n_experts, const std::vector<size_t>& top_k,
                 size_t n_parts = 1);

    // A ggml_backend_sched_eval_callback; `user_data` is the LiveProfiler.
    static bool callback(ggml_tensor* node, bool ask, void* user_data);
    // The host's own callback, which goes on seeing what it asks for. Not while a graph runs.
    void chain(ggml_backend_sched_eval_callback host, void* user_data);

    // The part to which tokens count from the next decode on. It changes also where this throws what `counts`
    // would.
    void select(size_t part);
    // A host may tell where its decodes begin and end. In between, `counts` are those at the beginning, so
    // that no layer is ahead of another, and a reset or a recovery leaves out the whole decode.
    void begin_decode();
    void end_decode();
    // Throws std::runtime_error for what went wrong while a graph ran, until `reset` or `recover`: the counts
    // are of no use.
    LiveCounts counts(size_t part);
    // Of all parts, at one moment.
    std::vector<LiveCounts> counts();
    // Forgets all counts and what went wrong, but not which nodes were learnt to be final.
    void reset();
    // Forgets what went wrong, and what was counted since the counts were last looked at or, where a host
    // tells of its decodes, since the last decode.
    void recover();

    // Both take effect with the next graph, for half a masked graph is no model's.
    void mask(const std::vector<std::vector<int>>& kept);
    void unmask();
    // Times that the mask was written over the routers of each layer since it was set.
    std::vector<uint64_t> mask_applications();

    const std::vector<int>& blocks() const { return tap_.blocks(); }
    size_t n_experts() const { return tap_.stats().n_experts(); }
    size_t top_k() const { return tap_.stats().top_k(); }

  private:
    // Brings a part up to date: to now or, in a decode, to its beginning.
    void settle(size_t part);
    // Moves what the tap has counted to a part.
    void move_counts(size_t part);
    // Counts all that was read, where no graph is running. Errors are for `counts` to throw.
    void collect() noexcept;
    // At each router's first node.
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
    size_t decode_part_ = 0;  // that was selected when the decode began
    size_t n_graphs_ = 0;     // that have begun in the decode
    bool forgets_decode_ = false;
    std::vector<uint64_t> applications_;
    ggml_backend_sched_eval_callback chained_ = nullptr;
    void* chained_data_ = nullptr;
    bool ours_ = false;    // the node that was asked about last is wanted by the tap or the mask
    bool theirs_ = false;  // and by the host
};

}  // namespace coe
