// The tap that sums the squared inputs of each weight matrix, which an importance matrix is made of.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "ggml.h"

namespace coe {

// What was summed for one tensor of weights.
struct InputSums {
    size_t n_columns = 0;
    std::vector<double> squares;   // [matrix, column]
    std::vector<uint64_t> counts;  // rows that were summed: one for each expert, or one for all matrices
};

// Watches the products of a running model with the weights of its blocks, and of their experts. Tensors with
// the same input, such as queries, keys and values, are read once.
class InputTap {
  public:
    explicit InputTap(int32_t n_threads) : n_threads_(n_threads) {}

    // The two halves of llama.cpp's evaluation callback. `read` returns false for nodes that `wants` did not
    // want. Both throw std::runtime_error if a product is not as expected.
    bool wants(const ggml_tensor* node);
    bool read(const ggml_tensor* node);

    // Returns whether the graph has no more products to read. False until the first batch has ended.
    bool is_done() const { return knows_all_ && n_seen_ == tensors_.size(); }

    // Call before and after each decode. `end_batch` throws std::runtime_error if a product that ran before
    // did not run; the sums are invalid then.
    void begin_batch();
    void end_batch();

    // Forgets the sums, but not which tensors there are.
    void clear_sums();

    // Returns the sums by the tensor's name.
    std::map<std::string, InputSums> sums() const;

  private:
    struct Watched {
        InputSums sums;
        bool was_seen = false;  // in this graph
        bool has_run = false;   // in this batch
    };

    // The input of a product, and the stack of matrices that it is multiplied with.
    struct Input {
        const ggml_tensor* values = nullptr;
        const ggml_tensor* experts = nullptr;  // the ids of chosen experts; null for an ordinary product
        int64_t stack[2] = {0, 0};             // the outer dimensions of the weights

        size_t n_matrices() const { return static_cast<size_t>(stack[0] * stack[1]); }
        bool operator==(const Input& other) const {
            return values == other.values && experts == other.experts && stack[0] == other.stack[0] &&
                   stack[1] == other.stack[1];
        }
    };

    static Input input_of(const ggml_tensor* product);
    Watched& see(const std::string& name);
    void sum(const Input& input);
    void find_rows(const Input& input);
    void find_rows_of_experts(const Input& input, const char* bytes);
    void add_to(InputSums& sums) const;

    int32_t n_threads_;
    std::map<std::string, Watched> tensors_;
    size_t n_seen_ = 0;  // in this graph
    bool knows_all_ = false;
    const ggml_tensor* wanted_ = nullptr;

    Input last_;  // the last input that was read
    InputSums of_last_;
    std::vector<std::vector<const float*>> rows_;  // of the input that is being summed, by matrix
    std::vector<char> values_copy_;
    std::vector<char> ids_copy_;
};

}  // namespace coe
