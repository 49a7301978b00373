#include "output_norms.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "distributions.h"
#include "ggml-alloc.h"
#include "ggml.h"
#include "host_bytes.h"

namespace coe {

// Squares and sums rows by a small graph on the device that holds them, so that one number of each row leaves
// it.
class DeviceReducer {
  public:
    // Null where the device cannot.
    static std::unique_ptr<DeviceReducer> make(ggml_backend_dev_t device) {
        ggml_backend_t backend = ggml_backend_dev_init(device, nullptr);
        return backend == nullptr ? nullptr : std::unique_ptr<DeviceReducer>(new DeviceReducer(backend));
    }
    ~DeviceReducer() {
        ggml_gallocr_free(allocator_);
        ggml_backend_free(backend_);
    }
    DeviceReducer(const DeviceReducer&) = delete;
    DeviceReducer& operator=(const DeviceReducer&) = delete;

    // The sum of the squares of each row; false where the device has no such operations, or no memory left.
    bool sums_of_squares(const ggml_tensor* rows, float* sums) {
        ggml_context* context = ggml_init({memory_.size(), memory_.data(), true});
        ggml_cgraph* graph = ggml_new_graph_custom(context, most_nodes, false);
        ggml_tensor* input = ggml_new_tensor(context, GGML_TYPE_F32, GGML_MAX_DIMS, rows->ne);
        std::copy(rows->nb, rows->nb + GGML_MAX_DIMS, input->nb);
        input->buffer = buffer_of(rows);
        input->data = rows->data;
        ggml_tensor* squares = ggml_sqr(context, input);
        ggml_tensor* result = ggml_sum_rows(context, squares);
        ggml_build_forward_expand(graph, result);
        bool done = ggml_backend_supports_op(backend_, squares) &&
                    ggml_backend_supports_op(backend_, result) && ggml_gallocr_alloc_graph(allocator_, graph);
        if (done) {
            done = ggml_backend_graph_compute(backend_, graph) == GGML_STATUS_SUCCESS;
        }
        if (done) {
            ggml_backend_tensor_get(result, sums, 0, ggml_nbytes(result));
        }
        ggml_free(context);
        return done;
    }

  private:
    static constexpr size_t most_nodes = 4;

    explicit DeviceReducer(ggml_backend_t backend)
        : backend_(backend),
          allocator_(ggml_gallocr_new(ggml_backend_get_default_buffer_type(backend))),
          memory_(ggml_tensor_overhead() * most_nodes + ggml_graph_overhead_custom(most_nodes, false)) {}

    ggml_backend_t backend_;
    ggml_gallocr_t allocator_;
    std::vector<char> memory_;
};

float row_norm(const float* row, size_t n) {
    // So many sums at once that the compiler makes vectors of them, and that none collects many errors.
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
    if (!std::isfinite(sum)) {  // or a square was too large for a float
        sum = 0.0;
        for (i = 0; i < n; ++i) {
            sum += static_cast<double>(row[i]) * static_cast<double>(row[i]);
        }
    }
    return static_cast<float>(std::sqrt(sum));
}

OutputNorms::OutputNorms(int32_t n_threads) : n_threads_(n_threads) {}
OutputNorms::~OutputNorms() = default;
OutputNorms::OutputNorms(OutputNorms&&) noexcept = default;
OutputNorms& OutputNorms::operator=(OutputNorms&&) noexcept = default;

void OutputNorms::compute(const ggml_tensor* outputs, float* norms) {
    const auto width = static_cast<size_t>(outputs->ne[0]);
    const auto n_rows = static_cast<size_t>(ggml_nrows(outputs));
    if (n_rows == 0) {
        return;
    }
    if (!lies_in_host_memory(outputs)) {
        ggml_backend_dev_t device =
            ggml_backend_buft_get_device(ggml_backend_buffer_get_type(buffer_of(outputs)));
        auto found = reducers_.find(device);
        if (found == reducers_.end()) {
            found = reducers_.emplace(device, DeviceReducer::make(device)).first;
        }
        if (found->second != nullptr && found->second->sums_of_squares(outputs, norms)) {
            std::transform(norms, norms + n_rows, norms, [](float sum) { return std::sqrt(sum); });
            return;
        }
        found->second = nullptr;
    }
    const char* bytes = host_bytes(outputs, host_copy_);
    const auto k = static_cast<size_t>(outputs->ne[1]);
    // A part is large enough to be worth its share of a thread's start.
    constexpr size_t values_of_part = size_t{1} << 16;
    const size_t rows_of_part = std::max<size_t>(1, values_of_part / std::max<size_t>(width, 1));
    const size_t n_parts = (n_rows + rows_of_part - 1) / rows_of_part;
    parallel_for(n_parts, n_threads_, [&](size_t part) {
        const size_t end = std::min(n_rows, (part + 1) * rows_of_part);
        for (size_t row = part * rows_of_part; row < end; ++row) {
            const char* start = bytes + row % k * outputs->nb[1] + row / k * outputs->nb[2];
            norms[row] = row_norm(reinterpret_cast<const float*>(start), width);
        }
    });
}

}  // namespace coe
