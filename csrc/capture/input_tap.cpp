#include "capture/input_tap.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string_view>

#include "base/parallel.h"
#include "capture/host_bytes.h"
#include "capture/router_nodes.h"

namespace coe {

namespace {

// Squares are summed in single precision within a tile of rows and columns, and in double precision over
// tiles: nearly as fast as single precision, without its rounding errors over long texts.
constexpr size_t rows_of_tile = 16;
constexpr size_t columns_of_tile = 256;

// Fewer values than this are summed faster than a thread is started.
constexpr size_t values_worth_threads = size_t{1} << 18;

// More threads than this would wait for memory.
constexpr int32_t most_threads = 8;

bool starts_with(std::string_view text, std::string_view prefix) {
    return text.substr(0, prefix.size()) == prefix;
}

bool ends_with(std::string_view text, std::string_view suffix) {
    return text.size() >= suffix.size() && text.substr(text.size() - suffix.size()) == suffix;
}

const float* row_of(const ggml_tensor* values, const char* bytes, int64_t i1, int64_t i2, int64_t i3) {
    return reinterpret_cast<const float*>(bytes + static_cast<size_t>(i1) * values->nb[1] +
                                          static_cast<size_t>(i2) * values->nb[2] +
                                          static_cast<size_t>(i3) * values->nb[3]);
}

// Adds the squares of some columns of rows.
void add_squares(const std::vector<const float*>& rows, size_t first, size_t n_columns, double* sums) {
    float tile[columns_of_tile];
    for (size_t start = 0; start < rows.size(); start += rows_of_tile) {
        std::fill(tile, tile + n_columns, 0.0F);
        const size_t end = std::min(rows.size(), start + rows_of_tile);
        for (size_t row = start; row < end; ++row) {
            const float* values = rows[row] + first;
            for (size_t i = 0; i < n_columns; ++i) {
                tile[i] += values[i] * values[i];
            }
        }
        for (size_t i = 0; i < n_columns; ++i) {
            sums[i] += static_cast<double>(tile[i]);
        }
    }
}

}  // namespace

InputTap::Input InputTap::input_of(const ggml_tensor* product) {
    const ggml_tensor* weights = product->src[0];
    return {product->src[1],
            product->op == GGML_OP_MUL_MAT_ID ? product->src[2] : nullptr,
            {weights->ne[2], weights->ne[3]}};
}

bool InputTap::wants(const ggml_tensor* node) {
    if (node->op != GGML_OP_MUL_MAT && node->op != GGML_OP_MUL_MAT_ID) {
        return false;
    }
    const std::string_view name = original_name(node->src[0]);
    if (!starts_with(name, "blk.") || !ends_with(name, ".weight")) {
        return false;
    }
    if (node->src[1]->type != GGML_TYPE_F32 || node->src[1]->nb[0] != sizeof(float)) {
        throw std::runtime_error("the input of " + std::string(name) + " is not of 32-bit floats");
    }
    const auto found = tensors_.find(std::string(name));
    if (input_of(node) == last_ && (found == tensors_.end() || !found->second.was_seen)) {
        add_to(see(std::string(name)).sums);  // its input has just been read for another tensor
        return false;
    }
    wanted_ = node;
    return true;
}

bool InputTap::read(const ggml_tensor* node) {
    if (node != wanted_) {
        return false;
    }
    wanted_ = nullptr;
    const std::string name(original_name(node->src[0]));
    Watched& watched = see(name);
    const Input input = input_of(node);
    sum(input);
    last_ = input;
    add_to(watched.sums);
    return true;
}

InputTap::Watched& InputTap::see(const std::string& name) {
    const auto [found, is_new] = tensors_.try_emplace(name);
    Watched& watched = found->second;
    if (is_new && knows_all_) {
        tensors_.erase(found);
        throw std::runtime_error("the product with " + name + " did not run before");
    }
    if (watched.was_seen) {  // the next graph of the same batch has begun
        for (auto& [_, other] : tensors_) {
            other.was_seen = false;
        }
        n_seen_ = 0;
    }
    watched.was_seen = watched.has_run = true;
    ++n_seen_;
    return watched;
}

void InputTap::sum(const Input& input) {
    find_rows(input);
    const auto n_columns = static_cast<size_t>(input.values->ne[0]);
    of_last_.n_columns = n_columns;
    of_last_.squares.assign(rows_.size() * n_columns, 0.0);
    size_t n_rows = 0;
    for (const auto& rows : rows_) {
        n_rows += rows.size();
    }
    const size_t tiles = (n_columns + columns_of_tile - 1) / columns_of_tile;
    const int32_t n_threads =
        n_rows * n_columns < values_worth_threads ? 1 : std::min(n_threads_, most_threads);
    parallel_for(rows_.size() * tiles, n_threads, [&](size_t part) {
        const size_t matrix = part / tiles;
        const size_t first = part % tiles * columns_of_tile;
        add_squares(rows_[matrix], first, std::min(columns_of_tile, n_columns - first),
                    of_last_.squares.data() + matrix * n_columns + first);
    });
    if (input.experts == nullptr) {
        of_last_.counts.assign(1, n_rows / rows_.size());
        return;
    }
    of_last_.counts.resize(rows_.size());
    std::transform(rows_.begin(), rows_.end(), of_last_.counts.begin(),
                   [](const auto& rows) { return rows.size(); });
}

// Finds which rows of an input are multiplied with which matrix.
void InputTap::find_rows(const Input& input) {
    rows_.resize(input.n_matrices());
    for (auto& rows : rows_) {
        rows.clear();
    }
    const ggml_tensor* values = input.values;
    if (ggml_nelements(values) == 0) {
        return;
    }
    const char* bytes = host_bytes(values, values_copy_);
    if (input.experts != nullptr) {
        find_rows_of_experts(input, bytes);
        return;
    }
    // As in ggml_mul_mat, several inputs in a row may share a matrix.
    const int64_t shared2 = values->ne[2] / input.stack[0];
    const int64_t shared3 = values->ne[3] / input.stack[1];
    for (int64_t i3 = 0; i3 < values->ne[3]; ++i3) {
        for (int64_t i2 = 0; i2 < values->ne[2]; ++i2) {
            const int64_t matrix = i3 / shared3 * input.stack[0] + i2 / shared2;
            for (int64_t i1 = 0; i1 < values->ne[1]; ++i1) {
                rows_[static_cast<size_t>(matrix)].push_back(row_of(values, bytes, i1, i2, i3));
            }
        }
    }
}

// The input is [column, rank, token], or the same for all ranks, [column, 1, token].
void InputTap::find_rows_of_experts(const Input& input, const char* bytes) {
    const ggml_tensor* values = input.values;
    const ggml_tensor* ids = input.experts;
    if (ids->type != GGML_TYPE_I32 || ids->ne[1] != values->ne[2]) {
        throw std::runtime_error("the ids of chosen experts are not one list for each token");
    }
    const char* id_bytes = host_bytes(ids, ids_copy_);
    for (int64_t token = 0; token < ids->ne[1]; ++token) {
        const char* row = id_bytes + static_cast<size_t>(token) * ids->nb[1];
        for (int64_t rank = 0; rank < ids->ne[0]; ++rank) {
            int32_t expert = 0;
            std::memcpy(&expert, row + static_cast<size_t>(rank) * ids->nb[0], sizeof(expert));
            if (expert < 0 || static_cast<size_t>(expert) >= rows_.size()) {
                throw std::runtime_error("a router chose expert " + std::to_string(expert) + " of " +
                                         std::to_string(rows_.size()));
            }
            rows_[static_cast<size_t>(expert)].push_back(
                row_of(values, bytes, rank % values->ne[1], token, 0));
        }
    }
}

void InputTap::add_to(InputSums& sums) const {
    if (sums.squares.empty()) {
        sums = of_last_;
        return;
    }
    if (sums.squares.size() != of_last_.squares.size() || sums.counts.size() != of_last_.counts.size()) {
        throw std::runtime_error("the input of a tensor has changed its shape");
    }
    const auto add = [](auto& to, const auto& from) {
        std::transform(to.begin(), to.end(), from.begin(), to.begin(), [](auto a, auto b) { return a + b; });
    };
    add(sums.squares, of_last_.squares);
    add(sums.counts, of_last_.counts);
}

void InputTap::begin_batch() {
    for (auto& [_, watched] : tensors_) {
        watched.was_seen = watched.has_run = false;
    }
    n_seen_ = 0;
    last_ = {};
    wanted_ = nullptr;
}

void InputTap::end_batch() {
    for (const auto& [name, watched] : tensors_) {
        if (!watched.has_run) {
            throw std::runtime_error("the product with " + name + " did not run");
        }
    }
    knows_all_ = true;
}

void InputTap::clear_sums() {
    for (auto& [_, watched] : tensors_) {
        watched.sums = {};
    }
}

std::map<std::string, InputSums> InputTap::sums() const {
    std::map<std::string, InputSums> all;
    for (const auto& [name, watched] : tensors_) {
        all.emplace(name, watched.sums);
    }
    return all;
}

}  // namespace coe
