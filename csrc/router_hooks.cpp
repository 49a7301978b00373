#include "router_hooks.h"

#include <utility>

namespace coe {

bool RouterHooks::callback(ggml_tensor* node, bool ask, void* user_data) noexcept {
    auto& hooks = *static_cast<RouterHooks*>(user_data);
    bool answer = !ask;
    try {
        if (ask) {
            hooks.logits_seen = hooks.logits_seen || is_model_logits(node->name);
            if (hooks.records) {
                hooks.graph.push_back(std::string(node->name) + " " + ggml_op_desc(node));
            }
        }
        const RouterNodeName name = find_router_node(node);
        if (name.node == RouterNode::none) {
            return !ask;
        }
        // Whatever has gone wrong, the mask stays in force, and the graph runs out: ending one of its splits
        // would leave the next with inputs never computed.
        const bool for_mask = hooks.mask.wants(node, name);
        const bool for_tap = hooks.tap != nullptr && !hooks.error;
        if (ask) {
            answer = for_mask;  // also where the tap throws
            answer = (for_tap && hooks.tap->wants(node, name)) || for_mask;
        } else if (for_mask) {
            hooks.mask.apply(node, name);
        } else if (for_tap) {
            answer = hooks.tap->read(node, name);
            hooks.ended_early = hooks.ended_early || !answer;
            const RouterTap::Choices choices = hooks.tap->last_choices(name.block);
            hooks.mask.check(name.block, choices.begin, choices.end);
        }
    } catch (...) {
        if (!hooks.error) {
            hooks.error = std::current_exception();
        }
    }
    return answer;
}

void RouterHooks::rethrow() {
    if (error) {
        std::rethrow_exception(std::exchange(error, nullptr));
    }
}

}  // namespace coe
