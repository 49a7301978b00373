#include "graph_replay.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>

namespace coe::tests {

namespace {

struct Free {
    void operator()(char* memory) const { std::free(memory); }
};

using Memory = std::unique_ptr<char, Free>;

// Bytes that make neither a number nor an expert.
constexpr int unused_byte = 0xff;

Memory new_memory(size_t n_bytes) {
    constexpr size_t alignment = 64;
    const size_t whole = (n_bytes + 2 * alignment) / alignment * alignment;
    Memory memory(static_cast<char*>(std::aligned_alloc(alignment, whole)));
    if (memory == nullptr) {
        throw std::bad_alloc();
    }
    std::memset(memory.get(), unused_byte, whole);
    return memory;
}

const ggml_tensor* owner_of(const ggml_tensor* tensor) {
    return tensor->view_src != nullptr ? tensor->view_src : tensor;
}

// One run of a graph, with tensors and memory of its own.
class Run {
  public:
    Run(const RecordedGraph& graph, const Schedule& schedule, ggml_backend_t cpu)
        : graph_(graph), schedule_(schedule), cpu_(cpu), split_of_(graph.size()) {
        for (size_t position = 0; position < graph.size(); ++position) {
            split_of_[schedule.order[position]] = split_at(position);
        }
        copies_.resize(schedule.cuts.size() + 1);
        for (const auto& [address, leaf] : graph.leaves()) {
            add_leaf(address, leaf);
        }
        for (size_t i = 0; i < graph.size(); ++i) {
            ggml_tensor* tensor = add_tensor(graph.address(i), graph.node(i));
            tensor->buffer = nullptr;
            if (tensor->view_src == nullptr) {
                tensor->data = add_memory(ggml_nbytes(tensor));
            }
        }
        for (const size_t i : schedule.order) {
            connect(i);
        }
        find_last_uses();
    }

    ReplayCounts run(ggml_backend_sched_eval_callback callback, void* user_data) {
        ReplayCounts counts;
        for (size_t split = 0; split < copies_.size(); ++split) {
            for (const Copy& copy : copies_[split]) {
                std::memcpy(copy.target->data, copy.source->data, ggml_nbytes(copy.source));
            }
            size_t first = split == 0 ? 0 : schedule_.cuts[split - 1];
            const size_t end = end_of(split);
            while (first < end) {
                size_t last = first;
                bool is_wanted = callback(node_at(last), true, user_data);
                while (!is_wanted && last + 1 < end) {
                    is_wanted = callback(node_at(++last), true, user_data);
                }
                for (size_t position = first; position <= last; ++position) {
                    if (position > first) {
                        overwrite_unused(position - 1);
                    }
                    compute(node_at(position));
                }
                counts.n_computed += last + 1 - first;
                counts.n_stops += is_wanted ? 1 : 0;
                if (is_wanted && !callback(node_at(last), false, user_data)) {
                    break;
                }
                overwrite_unused(last);
                first = last + 1;
            }
        }
        return counts;
    }

  private:
    struct Copy {
        const ggml_tensor* source;
        ggml_tensor* target;
    };

    static constexpr size_t no_backend = 2;  // of leaves, which all can read

    size_t split_at(size_t position) const {
        const std::vector<size_t>& cuts = schedule_.cuts;
        return static_cast<size_t>(std::upper_bound(cuts.begin(), cuts.end(), position) - cuts.begin());
    }
    size_t end_of(size_t split) const {
        return split < schedule_.cuts.size() ? schedule_.cuts[split] : schedule_.order.size();
    }
    ggml_tensor* node_at(size_t position) { return tensors_.at(graph_.address(schedule_.order[position])); }

    char* add_memory(size_t n_bytes) {
        memory_.push_back(new_memory(n_bytes));
        return memory_.back().get();
    }

    ggml_tensor* add_tensor(const ggml_tensor* address, const ggml_tensor& tensor) {
        storage_.push_back(tensor);
        return tensors_[address] = &storage_.back();
    }

    void add_leaf(const ggml_tensor* address, const RecordedGraph::Leaf& leaf) {
        ggml_tensor* tensor = add_tensor(address, leaf.tensor);
        if (!leaf.bytes.empty()) {
            tensor->data = add_memory(leaf.bytes.size());
            tensor->buffer = nullptr;
            std::memcpy(tensor->data, leaf.bytes.data(), leaf.bytes.size());
        }
    }

    // Views lie where their base does.
    size_t backend_of(const ggml_tensor* address) const {
        const size_t i = graph_.index(graph_.owner(address));
        return i < graph_.size() ? split_of_[i] % 2 : no_backend;
    }

    // What a split's nodes read for a tensor: a copy, where it lies on the other backend. The experts'
    // weights count as being on the first, and are not really copied.
    ggml_tensor* input_of(size_t split, const ggml_tensor* address) {
        ggml_tensor* tensor = tensors_.at(address);
        const bool is_weight = std::strstr(tensor->name, "_exps.weight") != nullptr;
        const size_t backend = is_weight ? 0 : backend_of(address);
        if (backend == no_backend || backend == split % 2) {
            return tensor;
        }
        ggml_tensor*& copy = copy_of_[{address, split % 2}];
        if (copy == nullptr) {
            storage_.push_back(*tensor);
            copy = &storage_.back();
            // Longer names are cut off, as ggml does.
            const std::string name = "Device" + std::to_string(split % 2) + "#" + tensor->name + "#0";
            ggml_set_name(copy, name.c_str());
            copy->op = GGML_OP_NONE;
            copy->view_src = nullptr;
            std::fill(copy->src, copy->src + GGML_MAX_SRC, nullptr);
            if (!is_weight) {
                copy->data = add_memory(ggml_nbytes(tensor));
                copies_[split].push_back({tensor, copy});
            }
        }
        return copy;
    }

    // Gives a node its sources; in the order of the run, so that the first split that needs a copy makes it.
    void connect(size_t i) {
        const ggml_tensor& recorded = graph_.node(i);
        ggml_tensor* tensor = tensors_.at(graph_.address(i));
        if (tensor->view_src != nullptr) {
            tensor->view_src = tensors_.at(recorded.view_src);
            tensor->data = static_cast<char*>(tensor->view_src->data) + tensor->view_offs;
        }
        for (int s = 0; s < GGML_MAX_SRC; ++s) {
            if (recorded.src[s] != nullptr) {
                tensor->src[s] = is_empty(recorded) ? tensors_.at(recorded.src[s])
                                                    : input_of(split_of_[i], recorded.src[s]);
            }
        }
    }

    void find_last_uses() {
        std::map<const ggml_tensor*, size_t> last_uses;
        for (size_t position = 0; position < schedule_.order.size(); ++position) {
            for (const ggml_tensor* source : node_at(position)->src) {
                if (source != nullptr) {
                    last_uses[owner_of(source)] = position;
                }
            }
        }
        for (size_t split = 1; split < copies_.size(); ++split) {
            for (const Copy& copy : copies_[split]) {
                size_t& last = last_uses[owner_of(copy.source)];
                last = std::max(last, schedule_.cuts[split - 1]);
            }
        }
        for (const auto& [tensor, position] : last_uses) {
            const bool is_leaf = tensor->op == GGML_OP_NONE && std::strchr(tensor->name, '#') == nullptr;
            const bool is_weight = tensor->buffer != nullptr;
            if (!is_leaf && !is_weight && (tensor->flags & GGML_TENSOR_FLAG_OUTPUT) == 0) {
                unused_after_[position].push_back(tensor);
            }
        }
    }

    void compute(ggml_tensor* tensor) {
        if (is_empty(*tensor)) {
            return;
        }
        graph_memory_.resize(ggml_graph_overhead_custom(1, false));
        ggml_context* context = ggml_init({graph_memory_.size(), graph_memory_.data(), true});
        ggml_cgraph* graph = ggml_new_graph_custom(context, 1, false);
        ggml_graph_add_node(graph, tensor);
        const ggml_status status = ggml_backend_graph_compute(cpu_, graph);
        ggml_free(context);
        if (status != GGML_STATUS_SUCCESS) {
            throw std::runtime_error(std::string("cannot compute ") + tensor->name);
        }
    }

    void overwrite_unused(size_t position) {
        for (const ggml_tensor* tensor : unused_after_[position]) {
            std::memset(tensor->data, unused_byte, ggml_nbytes(tensor));
        }
    }

    const RecordedGraph& graph_;
    const Schedule& schedule_;
    ggml_backend_t cpu_;
    std::vector<size_t> split_of_;  // by node
    std::deque<ggml_tensor> storage_;
    std::vector<Memory> memory_;
    std::map<const ggml_tensor*, ggml_tensor*> tensors_;  // of this run, by the addresses in llama.cpp
    std::map<std::pair<const ggml_tensor*, size_t>, ggml_tensor*> copy_of_;
    std::vector<std::vector<Copy>> copies_;                           // by split
    std::map<size_t, std::vector<const ggml_tensor*>> unused_after_;  // by position
    std::vector<char> graph_memory_;
};

}  // namespace

void RecordedGraph::add(const ggml_tensor* node) {
    for (const ggml_tensor* source : node->src) {
        if (source != nullptr) {
            add_leaf(source);
        }
    }
    if (node->view_src != nullptr) {
        add_leaf(node->view_src);
    }
    indices_[node] = nodes_.size();
    nodes_.push_back(*node);
    addresses_.push_back(node);
}

size_t RecordedGraph::index(const ggml_tensor* address) const {
    const auto found = indices_.find(address);
    return found == indices_.end() ? nodes_.size() : found->second;
}

const ggml_tensor* RecordedGraph::owner(const ggml_tensor* address) const {
    const size_t i = index(address);
    const ggml_tensor& tensor = i < size() ? nodes_[i] : leaves_.at(address).tensor;
    return tensor.view_src != nullptr ? tensor.view_src : address;
}

// Unless it is a node.
void RecordedGraph::add_leaf(const ggml_tensor* tensor) {
    if (indices_.count(tensor) > 0 || leaves_.count(tensor) > 0) {
        return;
    }
    Leaf leaf{*tensor, {}};
    const bool is_weight = tensor->buffer != nullptr &&
                           ggml_backend_buffer_get_usage(tensor->buffer) == GGML_BACKEND_BUFFER_USAGE_WEIGHTS;
    if (!is_weight && tensor->data != nullptr) {
        const auto* bytes = static_cast<const char*>(tensor->data);
        leaf.bytes.assign(bytes, bytes + ggml_nbytes(tensor));
    }
    leaves_.emplace(tensor, std::move(leaf));
}

bool is_empty(const ggml_tensor& node) {
    return node.op == GGML_OP_NONE || node.op == GGML_OP_RESHAPE || node.op == GGML_OP_VIEW ||
           node.op == GGML_OP_PERMUTE || node.op == GGML_OP_TRANSPOSE;
}

ReplayCounts replay(const RecordedGraph& graph, const Schedule& schedule, ggml_backend_t cpu,
                    ggml_backend_sched_eval_callback callback, void* user_data) {
    return Run(graph, schedule, cpu).run(callback, user_data);
}

}  // namespace coe::tests
