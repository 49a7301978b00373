#include <algorithm>
#include <cmath>
#include <cstring>
#include <deque>
#include <random>
#include <string>
#include <vector>

#include "capture/input_tap.h"
#include "check.h"
#include "ggml.h"

namespace {

using coe::InputSums;
using coe::InputTap;

// Tensors in host memory, as a graph holds them.
class Graph {
  public:
    ggml_tensor* weights(const std::string& name, int64_t n_columns, int64_t n2 = 1, int64_t n3 = 1) {
        ggml_tensor* tensor = add(GGML_TYPE_F32, {n_columns, 1, n2, n3}, 0);
        std::strncpy(tensor->name, name.c_str(), GGML_MAX_NAME - 1);
        return tensor;
    }

    // Random values, `gap` values apart after each row.
    ggml_tensor* input(std::vector<int64_t> ne, int64_t gap = 0) {
        ggml_tensor* tensor = add(GGML_TYPE_F32, std::move(ne), gap);
        std::normal_distribution<float> normal;
        for (float& value : data_.back()) {
            value = normal(random_);
        }
        return tensor;
    }

    ggml_tensor* ids(const std::vector<int32_t>& values, int64_t k, int64_t n_tokens, int64_t gap) {
        ggml_tensor* tensor = add(GGML_TYPE_I32, {k, n_tokens, 1, 1}, gap);
        for (size_t i = 0; i < values.size(); ++i) {
            const auto row = static_cast<int64_t>(i) / k;
            const auto rank = static_cast<int64_t>(i) % k;
            std::memcpy(data_.back().data() + row * (k + gap) + rank, &values[i], sizeof(int32_t));
        }
        return tensor;
    }

    ggml_tensor* product(ggml_tensor* weights, ggml_tensor* input, ggml_tensor* ids = nullptr) {
        ggml_tensor* node = add(GGML_TYPE_F32, {1, 1, 1, 1}, 0);
        node->op = ids == nullptr ? GGML_OP_MUL_MAT : GGML_OP_MUL_MAT_ID;
        node->src[0] = weights;
        node->src[1] = input;
        node->src[2] = ids;
        return node;
    }

  private:
    ggml_tensor* add(ggml_type type, std::vector<int64_t> ne, int64_t gap) {
        tensors_.emplace_back();
        ggml_tensor& tensor = tensors_.back();
        tensor.type = type;
        std::copy(ne.begin(), ne.end(), tensor.ne);
        tensor.nb[0] = sizeof(float);
        tensor.nb[1] = static_cast<size_t>(ne[0] + gap) * sizeof(float);
        tensor.nb[2] = tensor.nb[1] * static_cast<size_t>(ne[1]);
        tensor.nb[3] = tensor.nb[2] * static_cast<size_t>(ne[2]);
        data_.emplace_back(static_cast<size_t>((ne[0] + gap) * ne[1] * ne[2] * ne[3]));
        tensor.data = data_.back().data();
        return &tensor;
    }

    std::mt19937 random_{1};
    std::deque<ggml_tensor> tensors_;
    std::deque<std::vector<float>> data_;
};

float value_at(const ggml_tensor* tensor, int64_t i0, int64_t i1, int64_t i2, int64_t i3) {
    const char* at = static_cast<const char*>(tensor->data) + static_cast<size_t>(i1) * tensor->nb[1] +
                     static_cast<size_t>(i2) * tensor->nb[2] + static_cast<size_t>(i3) * tensor->nb[3];
    return reinterpret_cast<const float*>(at)[i0];
}

// Adds the squares of one row.
void add_row(std::vector<double>& sums, size_t matrix, const ggml_tensor* input, int64_t i1, int64_t i2,
             int64_t i3) {
    for (int64_t i = 0; i < input->ne[0]; ++i) {
        const auto value = static_cast<double>(value_at(input, i, i1, i2, i3));
        sums[matrix * static_cast<size_t>(input->ne[0]) + static_cast<size_t>(i)] += value * value;
    }
}

void check_close(const std::vector<double>& found, const std::vector<double>& expected) {
    CHECK_EQUAL(found.size(), expected.size());
    for (size_t i = 0; i < found.size(); ++i) {
        CHECK(std::fabs(found[i] - expected[i]) <= 1e-5 * expected[i]);
    }
}

// Runs nodes as llama.cpp does. Returns how many were read.
size_t run(InputTap& tap, const std::vector<ggml_tensor*>& nodes) {
    size_t n_read = 0;
    for (const ggml_tensor* node : nodes) {
        if (tap.wants(node)) {
            CHECK(tap.read(node));
            ++n_read;
        }
    }
    return n_read;
}

size_t run_batch(InputTap& tap, const std::vector<ggml_tensor*>& nodes) {
    tap.begin_batch();
    const size_t n_read = run(tap, nodes);
    tap.end_batch();
    return n_read;
}

}  // namespace

TEST(inputs_of_ordinary_matrices_are_summed_by_column_whatever_the_threads) {
    for (const int32_t n_threads : {1, 4}) {
        for (const int64_t gap : {0, 3}) {
            Graph graph;
            ggml_tensor* input = graph.input({1000, 300, 1, 1}, gap);
            InputTap tap(n_threads);
            run_batch(tap, {graph.product(graph.weights("blk.0.attn_q.weight", 1000), input)});
            std::vector<double> expected(1000);
            for (int64_t row = 0; row < 300; ++row) {
                add_row(expected, 0, input, row, 0, 0);
            }
            const InputSums found = tap.sums().at("blk.0.attn_q.weight");
            CHECK_EQUAL(found.n_columns, size_t{1000});
            CHECK(found.counts == std::vector<uint64_t>{300});
            check_close(found.squares, expected);
        }
    }
}

TEST(inputs_of_stacked_matrices_go_to_the_matrix_that_ggml_multiplies_them_with) {
    Graph graph;
    ggml_tensor* input = graph.input({8, 5, 6, 2});  // three inputs in a row share a matrix
    InputTap tap(1);
    run_batch(tap, {graph.product(graph.weights("blk.1.attn_k_b.weight", 8, 2, 2), input)});
    std::vector<double> expected(8 * 4);
    for (int64_t i3 = 0; i3 < 2; ++i3) {
        for (int64_t i2 = 0; i2 < 6; ++i2) {
            for (int64_t i1 = 0; i1 < 5; ++i1) {
                add_row(expected, static_cast<size_t>(i3 * 2 + i2 / 3), input, i1, i2, i3);
            }
        }
    }
    const InputSums found = tap.sums().at("blk.1.attn_k_b.weight");
    CHECK(found.counts == std::vector<uint64_t>{15});  // for each matrix
    check_close(found.squares, expected);
}

TEST(inputs_of_experts_are_summed_by_the_ids) {
    const std::vector<int32_t> chosen = {3, 0, 1, 3, 3, 1};
    for (const int64_t ranks : {1, 2}) {  // the same input for all ranks, or one for each
        Graph graph;
        ggml_tensor* input = graph.input({20, ranks, 3, 1});
        ggml_tensor* ids = graph.ids(chosen, 2, 3, 2);
        InputTap tap(2);
        run_batch(tap, {graph.product(graph.weights("blk.2.ffn_up_exps.weight", 20, 4), input, ids)});
        std::vector<double> expected(20 * 4);
        for (size_t i = 0; i < chosen.size(); ++i) {
            const auto rank = static_cast<int64_t>(i % 2) % ranks;
            add_row(expected, static_cast<size_t>(chosen[i]), input, rank, static_cast<int64_t>(i / 2), 0);
        }
        const InputSums found = tap.sums().at("blk.2.ffn_up_exps.weight");
        CHECK((found.counts == std::vector<uint64_t>{1, 2, 0, 3}));
        check_close(found.squares, expected);
    }
}

TEST(an_input_of_several_matrices_is_read_once) {
    Graph graph;
    ggml_tensor* input = graph.input({4, 2, 1, 1});
    ggml_tensor* q = graph.product(graph.weights("blk.0.attn_q.weight", 4), input);
    ggml_tensor* k = graph.product(graph.weights("blk.0.attn_k.weight", 4), input);
    ggml_tensor* out = graph.product(graph.weights("blk.0.attn_output.weight", 4), graph.input({4, 2, 1, 1}));
    InputTap tap(1);
    CHECK_EQUAL(run_batch(tap, {q, k, out}), size_t{2});
    CHECK(tap.sums().at("blk.0.attn_k.weight").squares == tap.sums().at("blk.0.attn_q.weight").squares);
    CHECK(tap.sums().at("blk.0.attn_k.weight").squares != tap.sums().at("blk.0.attn_output.weight").squares);
    // The second graph of a batch may have the tensors of the first, with other values.
    tap.begin_batch();
    CHECK_EQUAL(run(tap, {q, k, out, q, k, out}), size_t{4});
    tap.end_batch();
    CHECK(tap.sums().at("blk.0.attn_k.weight").counts == std::vector<uint64_t>{6});
}

TEST(a_graph_is_done_once_all_products_of_the_batch_before_have_run) {
    Graph graph;
    ggml_tensor* first = graph.product(graph.weights("blk.0.attn_q.weight", 4), graph.input({4, 2, 1, 1}));
    ggml_tensor* last = graph.product(graph.weights("blk.0.ffn_down.weight", 4), graph.input({4, 2, 1, 1}));
    InputTap tap(1);
    tap.begin_batch();
    run(tap, {first, last});
    CHECK(!tap.is_done());  // more may follow in the first graph
    tap.end_batch();
    tap.clear_sums();
    tap.begin_batch();
    run(tap, {first});
    CHECK(!tap.is_done());
    run(tap, {last});
    CHECK(tap.is_done());
    run(tap, {first});  // of the next graph
    CHECK(!tap.is_done());
    tap.end_batch();
    CHECK(tap.sums().at("blk.0.attn_q.weight").counts == std::vector<uint64_t>{4});
    CHECK(tap.sums().at("blk.0.ffn_down.weight").counts == std::vector<uint64_t>{2});
    tap.begin_batch();
    run(tap, {first});
    CHECK_THROWS(std::runtime_error, "blk.0.ffn_down.weight did not run", tap.end_batch());
}

TEST(products_that_are_not_with_a_blocks_weights_are_left_alone) {
    Graph graph;
    InputTap tap(1);
    for (const char* name :
         {"output.weight", "token_embd.weight", "cache_k_l0", "blk.0.attn_q.weight (view)"}) {
        CHECK(!tap.wants(graph.product(graph.weights(name, 4), graph.input({4, 2, 1, 1}))));
    }
    ggml_tensor* sum = graph.product(graph.weights("blk.0.attn_norm.weight", 4), graph.input({4, 2, 1, 1}));
    sum->op = GGML_OP_MUL;
    CHECK(!tap.wants(sum));
    CHECK(!tap.read(sum));
    // The scheduler's copy of a weight counts for the weight.
    CHECK(
        tap.wants(graph.product(graph.weights("CUDA0#blk.0.attn_q.weight#0", 4), graph.input({4, 2, 1, 1}))));
}

TEST(products_that_cannot_be_summed_are_errors) {
    Graph graph;
    InputTap tap(1);
    ggml_tensor* weights = graph.weights("blk.0.ffn_up_exps.weight", 4, 3);
    ggml_tensor* halves = graph.input({4, 2, 1, 1});
    halves->type = GGML_TYPE_F16;
    CHECK_THROWS(std::runtime_error, "not of 32-bit floats", tap.wants(graph.product(weights, halves)));
    ggml_tensor* node = graph.product(weights, graph.input({4, 1, 2, 1}), graph.ids({0, 3}, 1, 2, 0));
    CHECK(tap.wants(node));
    CHECK_THROWS(std::runtime_error, "chose expert 3 of 3", tap.read(node));
    node = graph.product(weights, graph.input({4, 1, 2, 1}), graph.ids({0, 1, 2}, 1, 3, 0));
    CHECK(tap.wants(node));
    CHECK_THROWS(std::runtime_error, "not one list for each token", tap.read(node));
}
