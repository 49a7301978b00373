#include "model/expert_tensors.h"

#include <algorithm>
#include <set>

namespace coe {

namespace {

bool begins_with(const std::string& text, const std::string& start) {
    return text.compare(0, start.size(), start) == 0;
}

bool ends_with(const std::string& text, const std::string& end) {
    return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

// `name`: without the block.
TensorKind kind_of(const std::string& name) {
    static const std::set<std::string> router_parts = {"ffn_gate_inp.bias", "exp_probs_b", "exp_probs_b.bias",
                                                       "exp_probs_b_vl", "exp_probs_b_vl.bias"};
    static const std::set<std::string> banks = {"ffn_gate_exps", "ffn_up_exps", "ffn_down_exps",
                                                "ffn_gate_up_exps"};
    if (name == "ffn_gate_inp.weight") {
        return TensorKind::router;
    }
    if (router_parts.count(name) > 0) {
        return TensorKind::router_part;
    }
    if (name == "ffn_gate_tid2eid.weight") {
        return TensorKind::expert_table;
    }
    if (begins_with(name, "nextn.")) {
        return TensorKind::mtp;
    }
    const size_t dot = name.find('.');
    const std::string bank = name.substr(0, dot);
    // ffn_norm_exps is a norm before the experts, without slices.
    if (dot == std::string::npos || !begins_with(bank, "ffn_") || begins_with(bank, "ffn_norm_") ||
        !ends_with(bank, "exps")) {
        return TensorKind::other;
    }
    const std::string part = name.substr(dot + 1);
    if (banks.count(bank) > 0 && (part == "weight" || part == "bias")) {
        return TensorKind::weights;
    }
    if (banks.count(bank) > 0 && (part == "scale" || part == "input_scale")) {
        return TensorKind::scales;
    }
    return ends_with(bank, "_chexps") ? TensorKind::group_experts : TensorKind::other_experts;
}

}  // namespace

std::optional<BlockTensor> parse_tensor_name(const std::string& name) {
    constexpr size_t most_digits = 5;
    const size_t begin = 4;
    const size_t dot = name.find('.', begin);
    if (!begins_with(name, "blk.") || dot == std::string::npos || dot == begin || dot > begin + most_digits) {
        return std::nullopt;
    }
    const std::string digits = name.substr(begin, dot - begin);
    if (digits.find_first_not_of("0123456789") != std::string::npos) {
        return std::nullopt;
    }
    return BlockTensor{std::stoul(digits), kind_of(name.substr(dot + 1))};
}

bool has_expert_slices(TensorKind kind) {
    return kind == TensorKind::router || kind == TensorKind::router_part || kind == TensorKind::weights ||
           kind == TensorKind::scales;
}

}  // namespace coe
