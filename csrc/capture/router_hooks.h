// What llama.cpp calls while a graph runs: one callback that serves the tap and the live mask.
#pragma once

#include <exception>
#include <string>
#include <vector>

#include "capture/live_mask.h"
#include "capture/router_tap.h"

namespace coe {

// An exception must not cross llama.cpp's frames: it is kept, and rethrown by `rethrow` after the decode.
struct RouterHooks {
    RouterTap* tap = nullptr;  // null: nothing is counted
    LiveMask mask;
    std::exception_ptr error;
    bool logits_seen = false;             // in the graphs since it was set to false
    bool ended_early = false;             // likewise: a graph was ended, though its later splits run
    bool records = false;                 // whether `graph` grows
    std::vector<std::string> graph = {};  // the operations that ran: name, space, kind

    // A ggml_backend_sched_eval_callback; `user_data` is the RouterHooks.
    static bool callback(ggml_tensor* node, bool ask, void* user_data) noexcept;

    // The same for a node that has been found to be one of a router.
    bool handle(ggml_tensor* node, RouterNodeName name, bool ask) noexcept;

    // Throws what the callback could not, and forgets it.
    void rethrow();

  private:
    void keep_error() noexcept;
};

}  // namespace coe
