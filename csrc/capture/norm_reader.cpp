#include "capture/norm_reader.h"

#include <algorithm>
#include <cmath>

#include "base/parallel.h"
#include "capture/host_bytes.h"
#include "ggml.h"

namespace coe {

namespace {

constexpr size_t most_nodes = 4;

// Bytes of squares that are computed at once: the device is full of weights, and squares need as much memory
// as their rows.
constexpr size_t most_squares = size_t{64} << 20;

// More threads than this would wait for memory.
constexpr int32_t most_threads = 8;

struct FreeContext {
    void operator()(ggml_context* context) const { ggml_free(context); }
};

}  // namespace

std::unique_ptr<DeviceReducer> DeviceReducer::make(ggml_backend_dev_t device) {
    ggml_backend_t backend = device == nullptr ? nullptr : ggml_backend_dev_init(device, nullptr);
    return backend == nullptr ? nullptr : std::unique_ptr<DeviceReducer>(new DeviceReducer(backend));
}

DeviceReducer::DeviceReducer(ggml_backend_t backend)
    : backend_(backend),
      allocator_(ggml_gallocr_new(ggml_backend_get_default_buffer_type(backend))),
      graph_memory_(ggml_tensor_overhead() * most_nodes + ggml_graph_overhead_custom(most_nodes, false)) {}

DeviceReducer::~DeviceReducer() {
    ggml_gallocr_free(allocator_);
    ggml_backend_free(backend_);
}

bool DeviceReducer::sums_of_squares(const ggml_tensor* rows, float* sums) {
    const int64_t k = rows->ne[1];
    const int64_t n_tokens = rows->ne[2];
    const size_t bytes_of_token = static_cast<size_t>(rows->ne[0] * k) * sizeof(float);
    const auto most_tokens =
        static_cast<int64_t>(std::max<size_t>(1, most_squares / std::max<size_t>(1, bytes_of_token)));
    for (int64_t token = 0; token < n_tokens; token += most_tokens) {
        if (!reduce(rows, token, std::min(most_tokens, n_tokens - token), sums + token * k)) {
            return false;
        }
    }
    return true;
}

bool DeviceReducer::reduce(const ggml_tensor* rows, int64_t first_token, int64_t n_tokens, float* sums) {
    const std::unique_ptr<ggml_context, FreeContext> context(
        ggml_init({graph_memory_.size(), graph_memory_.data(), true}));
    ggml_cgraph* graph = ggml_new_graph_custom(context.get(), most_nodes, false);
    ggml_tensor* input = ggml_new_tensor_3d(context.get(), GGML_TYPE_F32, rows->ne[0], rows->ne[1], n_tokens);
    std::copy(rows->nb, rows->nb + GGML_MAX_DIMS, input->nb);
    input->buffer = buffer_of(rows);
    input->data = static_cast<char*>(rows->data) + static_cast<size_t>(first_token) * rows->nb[2];
    ggml_tensor* squares = ggml_sqr(context.get(), input);
    ggml_tensor* result = ggml_sum_rows(context.get(), squares);
    ggml_build_forward_expand(graph, result);
    if (!ggml_backend_supports_op(backend_, squares) || !ggml_backend_supports_op(backend_, result) ||
        !ggml_gallocr_alloc_graph(allocator_, graph) ||
        ggml_backend_graph_compute_async(backend_, graph) != GGML_STATUS_SUCCESS) {
        return false;
    }
    ggml_backend_tensor_get_async(backend_, result, sums, 0, ggml_nbytes(result));
    ggml_backend_synchronize(backend_);
    return true;
}

float row_norm(const float* row, size_t n) {
    // Several sums at once, so that the compiler can vectorise them and rounding errors stay small.
    constexpr size_t n_lanes = 16;
    float lanes[n_lanes] = {};
    size_t i = 0;
    for (; i + n_lanes <= n; i += n_lanes) {
        for (size_t lane = 0; lane < n_lanes; ++lane) {
            lanes[lane] += row[i + lane] * row[i + lane];
        }
    }
    double sum = 0.0;
    for (const float lane : lanes) {
        sum += static_cast<double>(lane);
    }
    for (; i < n; ++i) {
        sum += static_cast<double>(row[i]) * static_cast<double>(row[i]);
    }
    if (!std::isfinite(sum)) {  // perhaps a square was too large for a float
        sum = 0.0;
        for (i = 0; i < n; ++i) {
            sum += static_cast<double>(row[i]) * static_cast<double>(row[i]);
        }
    }
    return static_cast<float>(std::sqrt(sum));
}

void NormReader::read(const ggml_tensor* outputs, float* norms) {
    const auto width = static_cast<size_t>(outputs->ne[0]);
    const auto k = static_cast<size_t>(outputs->ne[1]);
    const auto n_rows = static_cast<size_t>(ggml_nrows(outputs));
    if (n_rows == 0 || (!lies_in_host_memory(outputs) && read_on_device(outputs, norms))) {
        return;
    }
    const char* bytes = host_bytes(outputs, host_copy_);
    // Parts are large enough to be worth starting a thread.
    constexpr size_t values_of_part = size_t{1} << 16;
    const size_t rows_of_part = std::max<size_t>(1, values_of_part / std::max<size_t>(width, 1));
    const size_t n_parts = (n_rows + rows_of_part - 1) / rows_of_part;
    parallel_for(n_parts, std::min(n_threads_, most_threads), [&](size_t part) {
        const size_t end = std::min(n_rows, (part + 1) * rows_of_part);
        for (size_t row = part * rows_of_part; row < end; ++row) {
            const char* start = bytes + row % k * outputs->nb[1] + row / k * outputs->nb[2];
            norms[row] = row_norm(reinterpret_cast<const float*>(start), width);
        }
    });
}

bool NormReader::read_on_device(const ggml_tensor* outputs, float* norms) {
    ggml_backend_dev_t device =
        ggml_backend_buft_get_device(ggml_backend_buffer_get_type(buffer_of(outputs)));
    auto found = reducers_.find(device);
    if (found == reducers_.end()) {
        found = reducers_.emplace(device, DeviceReducer::make(device)).first;
    }
    if (found->second == nullptr || !found->second->sums_of_squares(outputs, norms)) {
        found->second = nullptr;
        return false;
    }
    float* end = norms + ggml_nrows(outputs);
    std::transform(norms, end, norms, [](float sum) { return std::sqrt(sum); });
    // Squares may be too large for a float though norms are not: the host computes these in double precision.
    return std::all_of(norms, end, [](float norm) { return std::isfinite(norm); });
}

}  // namespace coe
