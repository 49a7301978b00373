#include "capture/router_hooks.h"

#include <utility>

namespace coe {

bool RouterHooks::callback(ggml_tensor* node, bool ask, void* user_data) noexcept {
    auto& hooks = *static_cast<RouterHooks*>(user_data);
    if (ask) {
        hooks.logits_seen = hooks.logits_seen || is_model_logits(node->name);
        if (hooks.records) {
            try {
                hooks.graph.push_back(std::string(node->name) + " " + ggml_op_desc(node));
            } catch (...) {
                hooks.keep_error();
            }
        }
    }
    const RouterNodeName name = find_router_node(node);
    const bool answer = name.node == RouterNode::none ? !ask : hooks.handle(node, name, ask);
    return hooks.inputs == nullptr ? answer : hooks.handle_inputs(node, ask, answer);
}

bool RouterHooks::handle(ggml_tensor* node, RouterNodeName name, bool ask) noexcept {
    bool answer = !ask;
    try {
        // After an error the mask stays in force and the graph runs to its end: ending one of its splits
        // would leave the next one with inputs that were never computed.
        const bool for_mask = mask.wants(node, name);
        const bool for_tap = tap != nullptr && !error;
        if (ask) {
            answer = for_mask;  // even if the tap throws
            tap_wants_ = false;
            tap_wants_ = for_tap && tap->wants(node, name);
            answer = tap_wants_ || for_mask;
        } else if (for_mask) {
            mask.apply(node, name);
        } else if (for_tap && tap_wants_) {
            tap_is_done_ = !tap->read(node, name);
            answer = goes_on();
            const RouterTap::Choices choices = tap->last_choices(name.block);
            mask.check(name.block, choices.begin, choices.end);
        }
    } catch (...) {
        keep_error();
    }
    return answer;
}

bool RouterHooks::handle_inputs(const ggml_tensor* node, bool ask, bool answer) noexcept {
    if (error) {
        return answer;
    }
    try {
        if (ask) {
            return inputs->wants(node) || answer;
        }
        return inputs->read(node) ? answer && goes_on() : answer;
    } catch (...) {
        keep_error();
        return answer;
    }
}

bool RouterHooks::goes_on() {
    if (!tap_is_done_ || (inputs != nullptr && !inputs->is_done())) {
        return true;
    }
    ended_early = true;
    return false;
}

void RouterHooks::keep_error() noexcept {
    if (!error) {
        error = std::current_exception();
    }
}

void RouterHooks::rethrow() {
    if (error) {
        std::rethrow_exception(std::exchange(error, nullptr));
    }
}

}  // namespace coe
