// The C library as a host calls it, with any arguments and any nodes: it counts, or it says what is wrong;
// and its counts are always those of whole tokens.
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "coe_native.h"
#include "fuzz.h"
#include "ggml.h"

namespace {

// Takes numbers and texts from the front of the input; zeros when it is used up.
class Input {
  public:
    Input(const uint8_t* data, size_t size) : data_(data), size_(size) {}

    bool empty() const { return size_ == 0; }

    template <typename T>
    T take() {
        T value{};
        const size_t n_bytes = size_ < sizeof(T) ? size_ : sizeof(T);
        if (n_bytes > 0) {
            std::memcpy(&value, data_, n_bytes);
        }
        data_ += n_bytes;
        size_ -= n_bytes;
        return value;
    }

    int32_t below(int32_t bound) { return take<uint8_t>() % bound; }

    // Half of them values that a router may have, half of them any bits.
    float number() { return below(2) == 0 ? static_cast<float>(take<int8_t>()) / 16.0f : take<float>(); }

  private:
    const uint8_t* data_;
    size_t size_;
};

std::string node_name(Input& input) {
    static const char* const kinds[] = {
        "logits",  "probs",          "weights", "weights_softmax",    "topk", "weights_norm",
        "argsort", "weights_scaled", "",        "weights_sum_clamped"};
    if (input.below(8) > 0) {
        const std::string block = std::to_string(input.below(6));
        return std::string("ffn_moe_") + kinds[input.below(10)] + "-" + block +
               (input.below(4) == 0 ? " (reshaped)" : "");
    }
    std::string name = input.below(2) == 0 ? "ffn_moe_weights-" : "";
    for (int left = input.below(40); left > 0; --left) {
        name += static_cast<char>(input.take<uint8_t>());
    }
    return name;
}

struct FreeContext {
    void operator()(ggml_context* context) const { ggml_free(context); }
};

// One node, as in a graph: values of its own, or rows gathered by ids of any kind.
ggml_tensor* make_node(ggml_context* context, Input& input, int32_t n_experts, int32_t top_k) {
    const int32_t n_tokens = input.below(5);
    const int32_t width = input.below(4) == 0 ? input.below(20) : (input.below(2) == 0 ? n_experts : top_k);
    const ggml_type type = input.below(8) == 0 ? GGML_TYPE_I32 : GGML_TYPE_F32;
    ggml_tensor* node = ggml_new_tensor_3d(context, type, input.below(2) == 0 ? width : 1,
                                           input.below(2) == 0 ? width : n_tokens, n_tokens);
    if (input.below(3) > 0) {
        node = ggml_new_tensor_2d(context, type, width, n_tokens);
    }
    for (int64_t i = 0; i < ggml_nelements(node); ++i) {
        static_cast<float*>(node->data)[i] = input.number();
    }
    if (input.below(8) > 0) {
        // Ids are views into rows of n_experts, as of a full sort.
        ggml_tensor* sorted = ggml_new_tensor_2d(context, GGML_TYPE_I32, n_experts, n_tokens);
        for (int64_t i = 0; i < ggml_nelements(sorted); ++i) {
            static_cast<int32_t*>(sorted->data)[i] =
                input.below(8) > 0 ? input.below(n_experts) : input.take<int32_t>();
        }
        const int32_t k = input.below(8) > 0 ? std::min(top_k, n_experts) : input.below(n_experts + 1);
        ggml_tensor* ids = ggml_view_2d(context, sorted, k, n_tokens, sorted->nb[1], 0);
        ids->op = input.below(8) > 0 ? GGML_OP_VIEW : GGML_OP_CPY;
        node->op = GGML_OP_GET_ROWS;
        node->src[1] = ids;
    } else if (input.below(2) == 0) {
        node->op = GGML_OP_MUL_MAT;
    }
    return node;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    Input input(data, size);
    const int32_t n_experts = 1 + input.below(16);
    const int32_t top_k = input.below(8);
    std::vector<int32_t> blocks(static_cast<size_t>(input.below(4)));
    for (size_t i = 0; i < blocks.size(); ++i) {
        blocks[i] = input.below(16) > 0 ? static_cast<int32_t>(i) + input.below(2) : input.take<int32_t>();
    }
    const std::vector<int32_t> choices(blocks.size(), top_k);
    const size_t n_groups = input.below(4) > 0 ? 1 : static_cast<size_t>(input.below(5));
    const size_t n_groups_used = n_groups == 1 ? 1 : static_cast<size_t>(input.below(5));
    coe_profiler* profiler = coe_profiler_new(blocks.data(), choices.data(), blocks.size(),
                                              static_cast<size_t>(n_experts), n_groups, n_groups_used);
    REQUIRE((profiler == nullptr) == (std::strlen(coe_last_error()) > 0));
    if (profiler == nullptr) {
        return 0;
    }
    const size_t n_layers = blocks.size();
    const auto ranks = static_cast<size_t>(top_k);
    const size_t cells = static_cast<size_t>(n_experts) * ranks;
    while (!input.empty()) {
        const int32_t step = input.below(16);
        if (step == 0) {
            coe_profiler_reset(profiler);
        } else if (step == 1) {
            const auto n_kept = static_cast<size_t>(input.below(n_experts + 2));
            std::vector<int32_t> kept(n_kept * n_layers);
            for (size_t i = 0; i < kept.size(); ++i) {
                kept[i] = input.below(8) > 0 ? static_cast<int32_t>(i % n_kept) : input.take<int32_t>();
            }
            const int32_t status = coe_profiler_mask(profiler, kept.data(), n_kept);
            REQUIRE((status == COE_OK) == (std::strlen(coe_last_error()) == 0));
        } else if (step == 2) {
            coe_profile* profile = coe_profiler_snapshot(profiler);
            for (size_t layer = 0; profile != nullptr && layer < n_layers; ++layer) {
                const int64_t* first = coe_profile_histograms(profile) + layer * cells;
                const int64_t chosen = std::accumulate(first, first + cells, int64_t{0});
                REQUIRE(chosen == static_cast<int64_t>(coe_profile_tokens(profile)[layer] * ranks));
            }
            REQUIRE(profile == nullptr || coe_profile_merge(profile, profile) == COE_OK);
            coe_profile_free(profile);
        } else {
            const std::unique_ptr<ggml_context, FreeContext> context(ggml_init({64 * 1024, nullptr, false}));
            ggml_tensor* node = make_node(context.get(), input, n_experts, top_k);
            ggml_set_name(node, node_name(input).c_str());
            if (coe_profiler_callback(node, true, profiler)) {
                coe_profiler_callback(node, false, profiler);
            }
        }
    }
    coe_profiler_free(profiler);
    return 0;
}
