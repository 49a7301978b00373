// The callback that llama.cpp calls while a graph runs, for the taps and the live mask.
#pragma once

#include <exception>
#include <string>
#include <vector>

#include "capture/input_tap.h"
#include "capture/live_mask.h"
#include "capture/router_tap.h"

namespace coe {

// The callback's state. An exception must not cross llama.cpp's frames, so it is kept until `rethrow` after
// the decode.
struct RouterHooks {
    RouterTap* tap = nullptr;    // null: nothing is counted
    InputTap* inputs = nullptr;  // null: no inputs are summed; else there is a router tap too
    LiveMask mask;
    std::exception_ptr error;
    bool logits_seen = false;             // since it was last set to false
    bool ended_early = false;             // likewise; later splits of an ended graph still run
    bool records = false;                 // whether `graph` grows
    std::vector<std::string> graph = {};  // the operations that ran: name, space, kind

    // A ggml_backend_sched_eval_callback; `user_data` is the RouterHooks.
    static bool callback(ggml_tensor* node, bool ask, void* user_data) noexcept;

    // Handles a node of a router, as `callback` does.
    bool handle(ggml_tensor* node, RouterNodeName name, bool ask) noexcept;

    // Throws and forgets the exception that the callback has kept, if any.
    void rethrow();

  private:
    // Handles a node for the inputs' tap. `answer`: that of `handle`.
    bool handle_inputs(const ggml_tensor* node, bool ask, bool answer) noexcept;
    // Returns whether the graph goes on after a node that has been read.
    bool goes_on();
    void keep_error() noexcept;

    bool tap_wants_ = false;    // the router's node that was asked about last
    bool tap_is_done_ = false;  // as of the last node that the tap read
};

}  // namespace coe
