#include "router_graph.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <numeric>
#include <random>

#include "check.h"

namespace coe::tests {

namespace {

constexpr size_t most_nodes = 512;
constexpr float scale = 2.5f;
constexpr float smallest_sum = 6.103515625e-5f;  // where llama.cpp clamps the divisor of a normalisation

void name_node(ggml_tensor* node, const char* name, int block) {
    ggml_format_name(node, "%s-%d", name, block);
}

// Matrices of real experts [n_ff, n_embd, n_experts], scales [1, n_experts], biases [n_embd, n_experts], and
// their input [n_ff, 1, n_tokens].
struct Experts {
    ggml_tensor* down;
    ggml_tensor* second_down;  // of a second bank, which has half as many
    ggml_tensor* scale;
    ggml_tensor* bias;
    ggml_tensor* input;
};

constexpr int n_ff = 4;
constexpr int n_embd = 2;

void fill(ggml_tensor* tensor, const std::function<float(int64_t, int64_t, int64_t)>& value) {
    std::vector<float> values;
    for (int64_t i2 = 0; i2 < tensor->ne[2]; ++i2) {
        for (int64_t i1 = 0; i1 < tensor->ne[1]; ++i1) {
            for (int64_t i0 = 0; i0 < tensor->ne[0]; ++i0) {
                values.push_back(value(i0, i1, i2));
            }
        }
    }
    ggml_backend_tensor_set(tensor, values.data(), 0, ggml_nbytes(tensor));
}

struct RouterTensors {
    ggml_tensor* input;
    ggml_tensor* bias;    // or null
    ggml_tensor* table;   // or null
    ggml_tensor* tokens;  // or null
    Experts experts;      // or nulls
};

Experts new_experts(ggml_context* context, const RouterKind& kind, int64_t n_tokens, int block) {
    Experts experts = {};
    experts.down = ggml_new_tensor_3d(context, GGML_TYPE_F32, n_ff, n_embd, kind.n_experts);
    ggml_format_name(experts.down, "blk.%d.ffn_down_exps.weight", block);
    experts.input = ggml_new_tensor_3d(context, GGML_TYPE_F32, n_ff, 1, n_tokens);
    ggml_set_input(experts.down);
    ggml_set_input(experts.input);
    if (kind.second_bank) {
        experts.second_down = ggml_new_tensor_3d(context, GGML_TYPE_F32, n_ff, n_embd, kind.n_experts / 2);
        ggml_format_name(experts.second_down, "blk.%d.ffn_down_chexps.weight", block);
        ggml_set_input(experts.second_down);
    }
    if (kind.experts_scaled) {
        experts.scale = ggml_new_tensor_3d(context, GGML_TYPE_F32, 1, kind.n_experts, n_tokens);
        ggml_set_input(experts.scale);
    }
    if (kind.experts_biased) {
        experts.bias = ggml_new_tensor_2d(context, GGML_TYPE_F32, n_embd, kind.n_experts);
        ggml_set_input(experts.bias);
    }
    return experts;
}

void fill_experts(const Experts& experts) {
    const auto down = [](int64_t i, int64_t row, int64_t expert) {
        return i == 0 && row == 0 ? static_cast<float>(expert + 1) : 0.0f;
    };
    fill(experts.down, down);
    if (experts.second_down != nullptr) {
        fill(experts.second_down, down);
    }
    if (experts.scale != nullptr) {
        fill(experts.scale, [](int64_t, int64_t, int64_t) { return 0.5f; });
    }
    fill(experts.input,
         [](int64_t i, int64_t, int64_t token) { return i == 0 ? static_cast<float>(token + 1) : 0.0f; });
    if (experts.bias != nullptr) {
        fill(experts.bias, [](int64_t row, int64_t expert, int64_t) {
            return row == 1 ? static_cast<float>(expert + 1) : 0.0f;
        });
    }
}

// One bank of experts, with the names that llama.cpp gives its nodes.
ggml_tensor* bank_output(ggml_context* context, const RouterKind& kind, const Experts& experts,
                         ggml_tensor* down, ggml_tensor* weights, ggml_tensor* ids, int block) {
    ggml_tensor* cur = experts.input;
    if (kind.weights_in_input) {
        cur = ggml_mul(context, ggml_repeat_4d(context, cur, n_ff, kind.top_k, cur->ne[2], 1), weights);
        name_node(cur, "ffn_moe_weighted", block);
    }
    cur = ggml_mul_mat_id(context, down, cur, ids);
    if (kind.experts_scaled) {
        cur = ggml_mul(context, cur, ggml_get_rows(context, experts.scale, ids));
        name_node(cur, "ffn_moe_down_scaled", block);
    } else {
        name_node(cur, "ffn_moe_down", block);
    }
    if (experts.bias != nullptr) {
        cur = ggml_add_id(context, cur, experts.bias, ids);
        name_node(cur, "ffn_moe_down_biased", block);
    }
    if (!kind.weights_in_input) {
        cur = ggml_mul(context, cur, weights);
        name_node(cur, "ffn_moe_weighted", block);
    }
    return cur;
}

std::vector<double> softmax(const std::vector<double>& values) {
    const double largest = *std::max_element(values.begin(), values.end());
    std::vector<double> result;
    double sum = 0.0;
    for (const double value : values) {
        result.push_back(std::exp(value - largest));
        sum += result.back();
    }
    for (double& value : result) {
        value /= sum;
    }
    return result;
}

struct Choice {
    size_t expert;
    double weight;
};

// One token's choices, the heaviest first.
std::vector<Choice> choose(const RouterKind& kind, const float* logits, const int32_t* table_row) {
    const auto n_experts = static_cast<size_t>(kind.n_experts);
    std::vector<double> gated(logits, logits + n_experts);
    if (kind.sigmoid) {
        for (double& value : gated) {
            value = 1.0 / (1.0 + std::exp(-value));
        }
    } else if (!kind.softmax_over_top_k) {
        gated = softmax(gated);
    }
    std::vector<double> score = gated;
    for (size_t expert = 0; expert < kind.bias.size(); ++expert) {
        score[expert] += static_cast<double>(kind.bias[expert]);
    }
    for (size_t expert = 0; expert < n_experts; ++expert) {
        if (std::isinf(logits[expert])) {
            score[expert] = -std::numeric_limits<double>::infinity();  // masked: no bias may lift it
        }
    }
    std::vector<size_t> experts;
    std::vector<double> weights;
    for (int rank = 0; rank < kind.top_k; ++rank) {
        const auto best =
            kind.by_table ? static_cast<size_t>(table_row[rank])
                          : static_cast<size_t>(std::max_element(score.begin(), score.end()) - score.begin());
        experts.push_back(best);
        weights.push_back(gated[best]);
        score[best] = -std::numeric_limits<double>::infinity();
    }
    if (kind.softmax_over_top_k) {
        weights = softmax(weights);
    }
    if (kind.normalised) {
        double sum = 0.0;
        for (const double weight : weights) {
            sum += weight;
        }
        for (double& weight : weights) {
            weight /= std::max(sum, static_cast<double>(smallest_sum));
        }
    }
    std::vector<Choice> choices;
    for (size_t rank = 0; rank < experts.size(); ++rank) {
        choices.push_back({experts[rank], weights[rank]});
    }
    std::stable_sort(choices.begin(), choices.end(),
                     [](const Choice& one, const Choice& other) { return one.weight > other.weight; });
    return choices;
}

}  // namespace

std::vector<int32_t> expected_table(const RouterKind& kind, size_t n_tokens) {
    std::vector<int32_t> table;
    for (size_t token = 0; token < n_tokens; ++token) {
        for (int rank = 0; rank < kind.top_k; ++rank) {
            table.push_back((3 * static_cast<int>(token) + rank) % kind.n_experts);
        }
    }
    return table;
}

LayerInput random_input(int block, size_t n_tokens, const RouterKind& kind, unsigned seed) {
    std::mt19937 random(seed);
    LayerInput input = {block, n_tokens, {}};
    // Far enough apart that float and double agree on the order.
    std::vector<float> row;
    for (int expert = 0; expert < kind.n_experts; ++expert) {
        row.push_back(0.25f * static_cast<float>(expert - kind.n_experts / 2));
    }
    for (size_t token = 0; token < n_tokens; ++token) {
        std::shuffle(row.begin(), row.end(), random);
        input.logits.insert(input.logits.end(), row.begin(), row.end());
    }
    return input;
}

Counts expected_counts(const RouterKind& kind, const std::vector<LayerInput>& inputs,
                       const std::vector<size_t>& layers, size_t n_layers) {
    const auto n_experts = static_cast<size_t>(kind.n_experts);
    const auto top_k = static_cast<size_t>(kind.top_k);
    const size_t n_cells = n_layers * n_experts * top_k;
    Counts counts = {std::vector<int64_t>(n_cells), std::vector<double>(n_cells),
                     std::vector<double>(n_layers * n_experts), std::vector<double>(n_layers * n_experts)};
    for (size_t i = 0; i < inputs.size(); ++i) {
        const std::vector<int32_t> table = expected_table(kind, inputs[i].n_tokens);
        for (size_t token = 0; token < inputs[i].n_tokens; ++token) {
            const std::vector<Choice> choices =
                choose(kind, &inputs[i].logits[token * n_experts], &table[token * top_k]);
            for (size_t rank = 0; rank < top_k; ++rank) {
                const size_t cell = (layers[i] * n_experts + choices[rank].expert) * top_k + rank;
                counts.histograms[cell] += 1;
                counts.weight_sum[cell] += choices[rank].weight;
                const double weight = choices[rank].weight;
                const auto size = static_cast<double>(choices[rank].expert + 1);
                const double product = size * static_cast<double>(token + 1) *
                                       (kind.experts_scaled ? 0.5 : 1.0) *
                                       (kind.weights_in_input ? weight * (kind.scaled ? scale : 1.0) : 1.0);
                const double norm = std::hypot(product, kind.experts_biased ? size : 0.0);
                const size_t row = layers[i] * n_experts + choices[rank].expert;
                counts.norm_sum[row] += norm;
                counts.weighted_norm_sum[row] += kind.weights_in_input ? norm : weight * norm;
            }
        }
    }
    return counts;
}

Counts expected_counts(const RouterKind& kind, const std::vector<LayerInput>& inputs) {
    std::vector<size_t> layers;
    for (size_t i = 0; i < inputs.size(); ++i) {
        layers.push_back(i);
    }
    return expected_counts(kind, inputs, layers, inputs.size());
}

void check_sums(const std::vector<double>& sums, const std::vector<double>& expected) {
    CHECK_EQUAL(sums.size(), expected.size());
    for (size_t i = 0; i < sums.size(); ++i) {
        if (!(std::fabs(sums[i] - expected[i]) <= 1e-5 * expected[i])) {
            fail(__FILE__, __LINE__,
                 "sum " + std::to_string(i) + " is " + std::to_string(sums[i]) + ", not " +
                     std::to_string(expected[i]));
        }
    }
}

void check_counts(const std::vector<int64_t>& histograms, const std::vector<double>& weight_sum,
                  const Counts& expected) {
    CHECK_EQUAL(histograms.size(), expected.histograms.size());
    CHECK_EQUAL(weight_sum.size(), expected.weight_sum.size());
    for (size_t cell = 0; cell < histograms.size(); ++cell) {
        CHECK_EQUAL(histograms[cell], expected.histograms[cell]);
        // ggml works in float; a weight is at most 1.
        const double most = 2e-6 * static_cast<double>(1 + expected.histograms[cell]);
        if (!(std::fabs(weight_sum[cell] - expected.weight_sum[cell]) <= most)) {
            fail(__FILE__, __LINE__,
                 "weight_sum[" + std::to_string(cell) + "] is " + std::to_string(weight_sum[cell]) +
                     ", not " + std::to_string(expected.weight_sum[cell]));
        }
    }
}

RouterRunner::RouterRunner() {
    if (ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU) == nullptr) {
        ggml_backend_load_all();  // where llama.cpp was built with its backends as plug-ins
    }
    ggml_backend_dev_t device = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    CHECK(device != nullptr);
    backend_ = ggml_backend_dev_init(device, nullptr);
    CHECK(backend_ != nullptr);
    void* address =
        ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(device), "ggml_backend_set_n_threads");
    if (address != nullptr) {
        reinterpret_cast<ggml_backend_set_n_threads_t>(address)(backend_, 1);
    }
    scheduler_ = ggml_backend_sched_new(&backend_, nullptr, 1, most_nodes, false, false);
}

RouterRunner::~RouterRunner() {
    ggml_backend_sched_free(scheduler_);
    ggml_backend_free(backend_);
}

void RouterRunner::set_callback(ggml_backend_sched_eval_callback callback, void* user_data) {
    callback_ = callback;
    user_data_ = user_data;
    ggml_backend_sched_set_eval_callback(scheduler_, &RouterRunner::receive, this);
}

void RouterRunner::forget() {
    asked_.clear();
    wanted_.clear();
    n_outputs_computed_ = 0;
}

bool RouterRunner::receive(ggml_tensor* node, bool ask, void* self) {
    auto& runner = *static_cast<RouterRunner*>(self);
    const bool answer = runner.callback_(node, ask, runner.user_data_);
    if (ask) {
        runner.asked_.emplace_back(node->name);
        if (answer) {
            runner.wanted_.emplace_back(node->name);
        }
    }
    return answer;
}

void RouterRunner::compute_output(ggml_tensor* output, const ggml_tensor* weights, const ggml_tensor*,
                                  int thread, int, void* self) {
    if (thread == 0) {
        static_cast<RouterRunner*>(self)->n_outputs_computed_ += 1;
        std::memcpy(output->data, weights->data, ggml_nbytes(output));
    }
}

void RouterRunner::run(const RouterKind& kind, const std::vector<LayerInput>& inputs) {
    std::vector<char> memory(ggml_tensor_overhead() * most_nodes +
                             ggml_graph_overhead_custom(most_nodes, false));
    ggml_context* context = ggml_init({memory.size(), memory.data(), true});
    ggml_cgraph* graph = ggml_new_graph_custom(context, most_nodes, false);

    std::vector<RouterTensors> routers;
    for (const LayerInput& layer : inputs) {
        const int block = layer.block;
        const auto n_tokens = static_cast<int64_t>(layer.n_tokens);
        RouterTensors router = {};
        router.input = ggml_new_tensor_2d(context, GGML_TYPE_F32, kind.n_experts, n_tokens);
        ggml_set_input(router.input);
        // In place of the product with the router's matrix: a node with exactly these values.
        ggml_tensor* logits = ggml_scale(context, router.input, 1.0f);
        name_node(logits, "ffn_moe_logits", block);
        ggml_tensor* probs = logits;
        if (kind.sigmoid) {
            probs = ggml_sigmoid(context, logits);
        } else if (!kind.softmax_over_top_k) {
            probs = ggml_soft_max(context, logits);
        }
        name_node(probs, "ffn_moe_probs", block);  // the logits themselves, where nothing gates them
        ggml_tensor* scores = probs;
        if (!kind.bias.empty()) {
            router.bias = ggml_new_tensor_1d(context, GGML_TYPE_F32, kind.n_experts);
            ggml_set_input(router.bias);
            scores = ggml_add(context, probs, router.bias);
            name_node(scores, "ffn_moe_probs_biased", block);
        }
        ggml_tensor* ids = nullptr;
        if (kind.by_table) {
            router.table = ggml_new_tensor_2d(context, GGML_TYPE_I32, kind.top_k, n_tokens);
            router.tokens = ggml_new_tensor_1d(context, GGML_TYPE_I32, n_tokens);
            ggml_set_input(router.table);
            ggml_set_input(router.tokens);
            ids = ggml_get_rows(context, router.table, router.tokens);
        } else {
            ids = ggml_argsort_top_k(context, scores, kind.top_k);
            name_node(ids->src[0], "ffn_moe_argsort", block);
        }
        name_node(ids, "ffn_moe_topk", block);
        ggml_tensor* by_expert = ggml_reshape_3d(context, probs, 1, kind.n_experts, n_tokens);
        ggml_tensor* weights = ggml_get_rows(context, by_expert, ids);
        name_node(weights, "ffn_moe_weights", block);
        if (kind.softmax_over_top_k) {
            weights = ggml_soft_max(context, ggml_reshape_2d(context, weights, kind.top_k, n_tokens));
            weights = ggml_reshape_3d(context, weights, 1, kind.top_k, n_tokens);
            name_node(weights, "ffn_moe_weights_softmax", block);
        }
        if (kind.normalised) {
            weights = ggml_reshape_2d(context, weights, kind.top_k, n_tokens);
            ggml_tensor* sum = ggml_sum_rows(context, weights);
            name_node(sum, "ffn_moe_weights_sum", block);
            sum = ggml_clamp(context, sum, smallest_sum, std::numeric_limits<float>::infinity());
            name_node(sum, "ffn_moe_weights_sum_clamped", block);
            weights = ggml_div(context, weights, sum);
            name_node(weights, "ffn_moe_weights_norm", block);
            weights = ggml_reshape_3d(context, weights, 1, kind.top_k, n_tokens);
        }
        if (kind.scaled) {
            weights = ggml_scale(context, weights, scale);
            name_node(weights, "ffn_moe_weights_scaled", block);
        }
        ggml_build_forward_expand(graph, weights);
        if (kind.experts) {
            router.experts = new_experts(context, kind, n_tokens, block);
            ggml_build_forward_expand(
                graph, bank_output(context, kind, router.experts, router.experts.down, weights, ids, block));
        }
        // The experts use the choices once more, so that their memory stays in use as it does in llama.cpp.
        ggml_tensor* output = ggml_map_custom2(context, weights, ids, &RouterRunner::compute_output, 1, this);
        name_node(output, kind.experts ? "ffn_moe_out" : "ffn_moe_weighted", block);
        ggml_set_output(output);
        ggml_build_forward_expand(graph, output);
        if (kind.second_bank) {
            ggml_tensor* halves = ggml_scale(context, ggml_cast(context, ids, GGML_TYPE_F32), 0.5f);
            ggml_tensor* second_ids = ggml_cast(context, halves, GGML_TYPE_I32);
            ggml_tensor* second = ggml_get_rows(context, by_expert, second_ids);
            name_node(second, "ffn_moe_weights", block);
            if (kind.normalised) {
                second = ggml_reshape_2d(context, second, kind.top_k, n_tokens);
                second = ggml_div(context, second, ggml_sum_rows(context, second));
                name_node(second, "ffn_moe_weights_norm", block);
                second = ggml_reshape_3d(context, second, 1, kind.top_k, n_tokens);
            }
            ggml_set_output(second);
            ggml_build_forward_expand(graph, second);
            if (kind.experts) {
                ggml_build_forward_expand(
                    graph, bank_output(context, kind, router.experts, router.experts.second_down, second,
                                       second_ids, block));
            }
        }
        routers.push_back(router);
    }

    ggml_backend_sched_reset(scheduler_);
    CHECK(ggml_backend_sched_alloc_graph(scheduler_, graph));
    for (size_t i = 0; i < inputs.size(); ++i) {
        if (inputs[i].n_tokens > 0) {
            CHECK_EQUAL(ggml_nbytes(routers[i].input), inputs[i].logits.size() * sizeof(float));
            ggml_backend_tensor_set(routers[i].input, inputs[i].logits.data(), 0,
                                    ggml_nbytes(routers[i].input));
            if (kind.by_table) {
                const std::vector<int32_t> table = expected_table(kind, inputs[i].n_tokens);
                std::vector<int32_t> tokens(inputs[i].n_tokens);
                std::iota(tokens.begin(), tokens.end(), 0);
                ggml_backend_tensor_set(routers[i].table, table.data(), 0, ggml_nbytes(routers[i].table));
                ggml_backend_tensor_set(routers[i].tokens, tokens.data(), 0, ggml_nbytes(routers[i].tokens));
            }
            if (kind.experts) {
                fill_experts(routers[i].experts);
            }
            if (routers[i].bias != nullptr) {
                ggml_backend_tensor_set(routers[i].bias, kind.bias.data(), 0, ggml_nbytes(routers[i].bias));
            }
        }
    }
    const ggml_status status = ggml_backend_sched_graph_compute(scheduler_, graph);
    ggml_free(context);
    CHECK(status == GGML_STATUS_SUCCESS);
}

}  // namespace coe::tests
