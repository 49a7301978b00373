#include "router_hooks.h"

#include <utility>

namespace coe {

bool RouterHooks::callback(ggml_tensor* node, bool ask, void* user_data) noexcept {
    auto& hooks = *static_cast<RouterHooks*>(user_data);
    if (hooks.error) {
        // Let the graph run out: ending one of its splits would leave the next with inputs never computed.
        return !ask;
    }
    try {
        if (ask) {
            hooks.logits_seen = hooks.logits_seen || is_model_logits(node->name);
            if (hooks.records) {
                hooks.graph.push_back(std::string(node->name) + " " + ggml_op_desc(node));
            }
        }
        const RouterNodeName name = parse_router_node(node->name);
        if (name.node == RouterNode::none) {
            return !ask;
        }
        if (ask) {
            const bool tap_wants = hooks.tap != nullptr && hooks.tap->wants(node, name);
            return hooks.mask.wants(name) || tap_wants;
        }
        if (hooks.mask.wants(name)) {
            hooks.mask.apply(node, name);
            return true;
        }
        const bool goes_on = hooks.tap->read(node, name);
        const RouterTap::Choices choices = hooks.tap->last_choices(name.block);
        hooks.mask.check(name.block, choices.begin, choices.end);
        return goes_on;
    } catch (...) {
        hooks.error = std::current_exception();
        return !ask;
    }
}

void RouterHooks::rethrow() {
    if (error) {
        std::rethrow_exception(std::exchange(error, nullptr));
    }
}

}  // namespace coe
