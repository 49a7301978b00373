#include "node_orders.h"

#include <algorithm>
#include <initializer_list>
#include <set>

namespace coe::tests {

namespace {

using Operations = std::vector<ggml_op>;

// Softmax to the chosen experts' weights, normalised or not.
const Operations chosen_by_softmax = {GGML_OP_SOFT_MAX, GGML_OP_RESHAPE, GGML_OP_ARGSORT, GGML_OP_VIEW,
                                      GGML_OP_GET_ROWS};
const Operations normalised = {GGML_OP_RESHAPE, GGML_OP_SUM_ROWS, GGML_OP_CLAMP, GGML_OP_DIV,
                               GGML_OP_RESHAPE};

Operations joined(std::initializer_list<Operations> parts) {
    Operations whole;
    for (const Operations& part : parts) {
        whole.insert(whole.end(), part.begin(), part.end());
    }
    return whole;
}

// Whether the nodes from `i` on, up to `end`, are these operations, each but the first fed by one before it.
bool matches(const RecordedGraph& graph, size_t i, size_t end, const Operations& operations) {
    if (operations.empty() || i + operations.size() > end) {
        return false;
    }
    for (size_t j = 0; j < operations.size(); ++j) {
        if (graph.node(i + j).op != operations[j]) {
            return false;
        }
        bool is_fed = j == 0;
        for (size_t k = 0; k < j && !is_fed; ++k) {
            const auto& sources = graph.node(i + j).src;
            is_fed =
                std::find(std::begin(sources), std::end(sources), graph.address(i + k)) != std::end(sources);
        }
        if (!is_fed) {
            return false;
        }
    }
    return true;
}

// Products of k experts with their weights, added up.
Operations reduction(size_t k) {
    return joined({{GGML_OP_MUL}, Operations(k, GGML_OP_VIEW), Operations(k - 1, GGML_OP_ADD)});
}

// How many nodes from `i` on Metal computes by one kernel.
size_t metal_fused(const RecordedGraph& graph, size_t i, size_t end) {
    static const std::vector<Operations> patterns = [] {
        std::vector<Operations> all;
        for (const ggml_op norm : {GGML_OP_NORM, GGML_OP_RMS_NORM}) {
            all.push_back({norm, GGML_OP_MUL, GGML_OP_ADD});
            all.push_back({norm, GGML_OP_MUL});
            all.push_back({norm, GGML_OP_SCALE});
        }
        all.push_back(joined({chosen_by_softmax, normalised, {GGML_OP_SCALE}}));
        all.push_back(joined({chosen_by_softmax, normalised}));
        all.push_back(joined({chosen_by_softmax, {GGML_OP_SCALE}}));
        all.push_back(chosen_by_softmax);
        for (size_t k = 2; k <= 8; ++k) {
            all.push_back(reduction(k));
        }
        all.push_back({GGML_OP_SSM_CONV, GGML_OP_UNARY});
        return all;
    }();
    size_t longest = 1;
    for (const Operations& pattern : patterns) {
        if (pattern.size() > longest && matches(graph, i, end, pattern)) {
            longest = pattern.size();
        }
    }
    size_t n_added = 1;
    while (n_added < 7 && matches(graph, i + n_added - 1, end, {GGML_OP_ADD, GGML_OP_ADD})) {
        ++n_added;
    }
    return graph.node(i).op == GGML_OP_ADD ? std::max(longest, n_added) : longest;
}

bool metal_moves(const ggml_tensor& node) {
    static const std::set<ggml_op> moved = {
        GGML_OP_MUL_MAT,    GGML_OP_MUL_MAT_ID, GGML_OP_ROPE,     GGML_OP_NORM,     GGML_OP_RMS_NORM,
        GGML_OP_GROUP_NORM, GGML_OP_L2_NORM,    GGML_OP_SUM_ROWS, GGML_OP_SSM_CONV, GGML_OP_SSM_SCAN,
        GGML_OP_CLAMP,      GGML_OP_TRI,        GGML_OP_DIAG,     GGML_OP_MUL,      GGML_OP_ADD,
        GGML_OP_SUB,        GGML_OP_DIV,        GGML_OP_GLU,      GGML_OP_SCALE,    GGML_OP_UNARY,
        GGML_OP_GET_ROWS,   GGML_OP_SET_ROWS,   GGML_OP_SET,      GGML_OP_CPY,      GGML_OP_CONT,
        GGML_OP_REPEAT};
    return is_empty(node) || moved.count(node.op) > 0;
}

// The memory that nodes read and write, by the tensors that own it.
struct Accesses {
    std::set<const ggml_tensor*> read;
    std::set<const ggml_tensor*> written;

    // Also of nodes that compute nothing, which Metal takes to read and write like others.
    void add(const RecordedGraph& graph, size_t first, size_t count) {
        for (size_t i = first; i < first + count; ++i) {
            for (const ggml_tensor* source : graph.node(i).src) {
                const size_t own = source == nullptr ? graph.size() : graph.index(source);
                if (source != nullptr && !(own >= first && own < first + count)) {
                    read.insert(graph.owner(source));
                }
            }
            written.insert(graph.owner(i));
        }
    }
    bool allow(const Accesses& others) const {
        const auto meet = [](const auto& some, const auto& more) {
            return std::any_of(some.begin(), some.end(),
                               [&](const auto* one) { return more.count(one) > 0; });
        };
        return !meet(written, others.written) && !meet(written, others.read) && !meet(read, others.written);
    }
};

bool reads(const RecordedGraph& graph, size_t reader, const ggml_tensor* owned) {
    const auto& sources = graph.node(reader).src;
    return std::any_of(std::begin(sources), std::end(sources), [&](const ggml_tensor* source) {
        return source != nullptr && graph.owner(source) == owned;
    });
}

bool has_source(const RecordedGraph& graph, size_t node, size_t source) {
    const auto& sources = graph.node(node).src;
    return std::find(std::begin(sources), std::end(sources), graph.address(source)) != std::end(sources);
}

// Whether Vulkan keeps `later` behind `earlier`: it looks at direct sources, and at memory of views.
bool vulkan_keeps(const RecordedGraph& graph, size_t later, size_t earlier) {
    if (has_source(graph, later, earlier) || graph.owner(later) == graph.owner(earlier)) {
        return true;
    }
    if (is_empty(graph.node(later)) || is_empty(graph.node(earlier))) {
        return false;
    }
    return reads(graph, later, graph.owner(earlier)) || reads(graph, earlier, graph.owner(later));
}

// The patterns that Vulkan moves as a whole; 0 where none begins.
size_t vulkan_fused(const RecordedGraph& graph, size_t i, size_t end) {
    static const Operations sigmoid_biased = joined(
        {{GGML_OP_UNARY, GGML_OP_RESHAPE, GGML_OP_ADD, GGML_OP_ARGSORT, GGML_OP_VIEW, GGML_OP_GET_ROWS},
         normalised});
    static const Operations softplus_biased =
        joined({{GGML_OP_UNARY, GGML_OP_SQRT, GGML_OP_RESHAPE, GGML_OP_ADD, GGML_OP_ARGSORT, GGML_OP_VIEW,
                 GGML_OP_GET_ROWS},
                normalised});
    static const std::vector<Operations> patterns = {
        joined({chosen_by_softmax, normalised}),
        sigmoid_biased,
        softplus_biased,
        chosen_by_softmax,
        {GGML_OP_ARGSORT, GGML_OP_VIEW, GGML_OP_GET_ROWS, GGML_OP_RESHAPE, GGML_OP_SOFT_MAX, GGML_OP_RESHAPE},
        {GGML_OP_RMS_NORM, GGML_OP_MUL, GGML_OP_ADD, GGML_OP_MUL},
        {GGML_OP_RMS_NORM, GGML_OP_MUL, GGML_OP_ADD},
        {GGML_OP_RMS_NORM, GGML_OP_MUL, GGML_OP_ROPE, GGML_OP_VIEW, GGML_OP_SET_ROWS},
        {GGML_OP_RMS_NORM, GGML_OP_VIEW, GGML_OP_SET_ROWS},
        {GGML_OP_ROPE, GGML_OP_VIEW, GGML_OP_SET_ROWS},
    };
    for (const Operations& pattern : patterns) {
        bool is_here = i + pattern.size() <= end;
        for (size_t j = 0; j < pattern.size() && is_here; ++j) {
            is_here = graph.node(i + j).op == pattern[j];
        }
        if (is_here) {
            return pattern.size();
        }
    }
    return 0;
}

// Whether Vulkan lets a node follow its source at once, since it computes both by one kernel.
bool vulkan_pairs(const RecordedGraph& graph, size_t source, size_t node) {
    static const std::set<std::pair<ggml_op, ggml_op>> neighbours = {
        {GGML_OP_MUL_MAT, GGML_OP_ADD},    {GGML_OP_MUL_MAT_ID, GGML_OP_ADD_ID},
        {GGML_OP_MUL_MAT_ID, GGML_OP_MUL}, {GGML_OP_ADD, GGML_OP_ADD},
        {GGML_OP_SSM_CONV, GGML_OP_ADD},   {GGML_OP_SSM_CONV, GGML_OP_UNARY},
        {GGML_OP_RMS_NORM, GGML_OP_MUL},   {GGML_OP_UNARY, GGML_OP_MUL}};
    return node == source + 1 && neighbours.count({graph.node(source).op, graph.node(node).op}) > 0;
}

}  // namespace

std::vector<size_t> natural_order(const RecordedGraph&, size_t first, size_t end) {
    std::vector<size_t> order;
    for (size_t i = first; i < end; ++i) {
        order.push_back(i);
    }
    return order;
}

std::vector<size_t> metal_order(const RecordedGraph& graph, size_t first, size_t end) {
    struct Group {
        size_t first;
        size_t count;
        Accesses accesses;
        bool is_empty;
        bool was_taken;
    };
    std::vector<Group> groups;
    for (size_t i = first; i < end; i += groups.back().count) {
        Group group = {i, metal_fused(graph, i, end), {}, is_empty(graph.node(i)), false};
        group.accesses.add(graph, group.first, group.count);
        groups.push_back(group);
    }
    std::vector<size_t> order;
    const auto take = [&](Group& group) {
        for (size_t i = 0; i < group.count; ++i) {
            order.push_back(group.first + i);
        }
        group.was_taken = true;
    };
    const auto merge = [](Accesses& all, const Accesses& more) {
        all.read.insert(more.read.begin(), more.read.end());
        all.written.insert(more.written.begin(), more.written.end());
    };
    Accesses at_once;
    for (size_t i = 0; i < groups.size(); ++i) {
        Group& group = groups[i];
        if (group.was_taken) {
            continue;
        }
        if (!group.is_empty && !group.accesses.allow(at_once)) {
            Accesses left = group.accesses;
            for (size_t j = i + 1; j < std::min(i + 64, groups.size()); ++j) {
                Group& next = groups[j];
                if (next.was_taken) {
                    continue;
                }
                if (!metal_moves(graph.node(next.first))) {
                    break;
                }
                if ((next.is_empty || next.accesses.allow(at_once)) && next.accesses.allow(left)) {
                    merge(at_once, next.accesses);
                    take(next);
                } else {
                    merge(left, next.accesses);
                }
            }
            at_once = {};
        }
        merge(at_once, group.accesses);
        take(group);
    }
    return order;
}

std::vector<size_t> vulkan_order(const RecordedGraph& graph, size_t first, size_t end) {
    constexpr size_t n_looked_at = 20;
    std::vector<bool> was_taken(end, false);
    std::vector<size_t> order;
    const auto take = [&](size_t i) {
        order.push_back(i);
        was_taken[i] = true;
    };
    size_t next = first;
    while (next < end) {
        if (was_taken[next]) {
            ++next;
            continue;
        }
        const size_t n_fused = vulkan_fused(graph, next, end);
        bool is_whole = n_fused > 0;
        for (size_t i = next; i < next + n_fused; ++i) {
            is_whole = is_whole && !was_taken[i];
        }
        if (is_whole) {
            for (size_t i = next; i < next + n_fused; ++i) {
                take(i);
            }
            continue;
        }
        std::vector<size_t> chosen = {next};
        const auto is_chosen = [&](size_t i) {
            return std::find(chosen.begin(), chosen.end(), i) != chosen.end();
        };
        const size_t limit = std::min(next + n_looked_at, end);
        for (size_t i = next + 1; i < limit; ++i) {
            if (was_taken[i] || is_empty(graph.node(i)) || vulkan_fused(graph, i, end) > 0) {
                continue;
            }
            bool is_free = true;
            for (size_t j = next; j < i && is_free; ++j) {
                const bool follows = j == chosen.back() && vulkan_pairs(graph, j, i);
                is_free = was_taken[j] || follows || !vulkan_keeps(graph, i, j);
            }
            if (is_free) {
                chosen.push_back(i);
            }
        }
        if (graph.node(chosen.back()).op != GGML_OP_ADD) {
            for (size_t i = next + 1; i < limit; ++i) {
                bool is_free = !was_taken[i] && is_empty(graph.node(i));
                for (size_t j = next; j < i && is_free; ++j) {
                    is_free = was_taken[j] || is_chosen(j) || !vulkan_keeps(graph, i, j);
                }
                if (is_free) {
                    chosen.push_back(i);
                }
            }
        }
        for (const size_t i : chosen) {
            take(i);
        }
    }
    return order;
}

std::vector<size_t> random_order(const RecordedGraph& graph, std::mt19937& random) {
    const size_t n = graph.size();
    std::vector<std::vector<size_t>> followers(n);
    std::vector<size_t> n_before(n);
    for (size_t later = 0; later < n; ++later) {
        for (size_t earlier = 0; earlier < later; ++earlier) {
            if (depends_on(graph, later, earlier)) {
                followers[earlier].push_back(later);
                n_before[later] += 1;
            }
        }
    }
    std::vector<size_t> ready;
    for (size_t i = 0; i < n; ++i) {
        if (n_before[i] == 0) {
            ready.push_back(i);
        }
    }
    std::vector<size_t> order;
    while (!ready.empty()) {
        std::swap(ready[random() % ready.size()], ready.back());
        const size_t i = ready.back();
        ready.pop_back();
        order.push_back(i);
        for (const size_t follower : followers[i]) {
            if (--n_before[follower] == 0) {
                ready.push_back(follower);
            }
        }
    }
    return order;
}

bool depends_on(const RecordedGraph& graph, size_t later, size_t earlier) {
    if (has_source(graph, later, earlier)) {
        return true;
    }
    if (is_empty(graph.node(later)) || is_empty(graph.node(earlier))) {
        return false;
    }
    return reads(graph, later, graph.owner(earlier)) || reads(graph, earlier, graph.owner(later)) ||
           graph.owner(later) == graph.owner(earlier);
}

bool is_possible(const RecordedGraph& graph, const std::vector<size_t>& order) {
    std::vector<size_t> positions(graph.size(), graph.size());
    for (size_t position = 0; position < order.size(); ++position) {
        positions[order[position]] = position;
    }
    for (size_t later = 0; later < graph.size(); ++later) {
        for (size_t earlier = 0; earlier < later; ++earlier) {
            if (positions[later] <= positions[earlier] && depends_on(graph, later, earlier)) {
                return false;
            }
        }
    }
    return order.size() == graph.size();
}

}  // namespace coe::tests
