// Counts, norms and masks do not depend on the order in which a backend runs a graph's nodes, nor on where it
// is cut into splits: graphs of a model are recorded from llama.cpp and run again in many orders.
//
//     coe_reordered_model MODEL
//
// Prints "equal", and how often the callback stopped each graph; fails with what differs.
#include <algorithm>
#include <cstdio>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "capture/live_profiler.h"
#include "capture/router_hooks.h"
#include "formats/mask_file.h"
#include "ggml-backend.h"
#include "graph_replay.h"
#include "llama.h"
#include "model/fingerprint.h"
#include "node_orders.h"

namespace {

using coe::tests::NodeOrder;
using coe::tests::RecordedGraph;
using coe::tests::ReplayCounts;
using coe::tests::Schedule;

constexpr int32_t n_threads = 1;
// Tokens of each graph: the first is the one that the tap learns in; then a batch and a generated token.
constexpr int32_t batches[] = {17, 9, 1};

void require(bool holds, const std::string& otherwise) {
    if (!holds) {
        throw std::runtime_error(otherwise);
    }
}

// A model in llama.cpp, whose graphs are recorded.
class Host {
  public:
    explicit Host(const std::string& path) {
        llama_log_set([](ggml_log_level, const char*, void*) {}, nullptr);
        ggml_backend_load_all();
        llama_model_params model_params = llama_model_default_params();
        model_params.n_gpu_layers = 0;
        model_params.use_extra_bufts = false;
        model_.reset(llama_model_load_from_file(path.c_str(), model_params));
        require(model_ != nullptr, "llama.cpp cannot load it");
        llama_context_params params = llama_context_default_params();
        params.n_ctx = params.n_batch = params.n_ubatch = 64;
        params.n_threads = params.n_threads_batch = n_threads;
        params.pooling_type = LLAMA_POOLING_TYPE_NONE;
        params.op_offload = false;
        params.cb_eval = &Host::record;
        params.cb_eval_user_data = this;
        context_.reset(llama_init_from_model(model_.get(), params));
        require(context_ != nullptr, "llama.cpp cannot make a context");
    }

    // The graphs of all batches, one behind another.
    std::vector<RecordedGraph> run() {
        std::vector<RecordedGraph> graphs;
        std::mt19937 random(5);
        const int32_t n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(model_.get()));
        const bool has_memory = llama_get_memory(context_.get()) != nullptr;
        int32_t position = 0;
        for (const int32_t n_tokens : batches) {
            llama_batch batch = llama_batch_init(n_tokens, 0, 1);
            batch.n_tokens = n_tokens;
            for (int32_t i = 0; i < n_tokens; ++i) {
                batch.token[i] = static_cast<llama_token>(random() % static_cast<unsigned>(n_vocab));
                batch.pos[i] = position++;
                batch.n_seq_id[i] = 1;
                batch.seq_id[i][0] = 0;
                batch.logits[i] = 1;
            }
            recorded_ = RecordedGraph();
            const int32_t status =
                has_memory ? llama_decode(context_.get(), batch) : llama_encode(context_.get(), batch);
            llama_batch_free(batch);
            require(status == 0, "llama.cpp cannot run it");
            graphs.push_back(std::move(recorded_));
            position = has_memory ? position : 0;
        }
        return graphs;
    }

  private:
    static bool record(ggml_tensor* node, bool ask, void* self) {
        if (ask) {
            static_cast<Host*>(self)->recorded_.add(node);
        }
        return !ask;
    }

    std::unique_ptr<llama_model, decltype(&llama_model_free)> model_{nullptr, &llama_model_free};
    std::unique_ptr<llama_context, decltype(&llama_free)> context_{nullptr, &llama_free};
    RecordedGraph recorded_;
};

// What is watched and how.
struct Watching {
    bool outputs = false;
    bool early_end = false;
    bool masked = false;
};

struct Found {
    std::vector<int64_t> histograms;
    std::vector<double> weights;
    std::vector<double> norms;
    std::vector<double> weighted_norms;
    std::vector<uint64_t> tokens;
    std::vector<ReplayCounts> replays;  // of each graph
};

using Scheduler = std::function<Schedule(const RecordedGraph&)>;

class Checker {
  public:
    explicit Checker(const std::string& path)
        : host_(path),
          layout_(coe::read_router_layout(path)),
          cpu_(ggml_backend_dev_init(ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU), nullptr),
               &ggml_backend_free),
          graphs_(host_.run()) {
        const auto set_threads =
            reinterpret_cast<ggml_backend_set_n_threads_t>(ggml_backend_reg_get_proc_address(
                ggml_backend_dev_backend_reg(ggml_backend_get_device(cpu_.get())),
                "ggml_backend_set_n_threads"));
        set_threads(cpu_.get(), n_threads);
        coe::Mask mask;
        mask.fingerprint = layout_.fingerprint;
        mask.architecture = layout_.architecture;
        mask.n_experts = layout_.shape.n_experts;
        mask.keep = layout_.shape.n_experts / 2;
        for (const int block : layout_.blocks) {
            for (size_t expert = 1; expert < layout_.shape.n_experts; expert += 2) {
                mask.kept[block].push_back(static_cast<int>(expert));
            }
            kept_.push_back(mask.kept[block]);
        }
        try {
            mask.check_cut(layout_);
            can_be_masked_ = true;
        } catch (const std::invalid_argument&) {
            can_be_masked_ = false;
        }
    }

    bool can_be_masked() const { return can_be_masked_; }
    const std::vector<RecordedGraph>& graphs() const { return graphs_; }
    size_t n_layers() const { return layout_.blocks.size(); }

    Found run(const Watching& watching, const Scheduler& schedule) const {
        coe::RouterTap tap(layout_.blocks, layout_.shape.n_experts, layout_.top_k);
        if (watching.outputs) {
            tap.watch_outputs(n_threads);
        }
        tap.set_early_end(watching.early_end);
        tap.set_complete(true);
        coe::RouterHooks hooks;
        hooks.tap = &tap;
        if (watching.masked) {
            hooks.mask.set(layout_.blocks, kept_, layout_.shape.n_experts);
        }
        Found found;
        for (size_t i = 0; i < graphs_.size(); ++i) {
            tap.begin_batch();
            found.replays.push_back(coe::tests::replay(graphs_[i], schedule(graphs_[i]), cpu_.get(),
                                                       &coe::RouterHooks::callback, &hooks));
            hooks.rethrow();
            tap.end_batch(static_cast<size_t>(batches[i]));
            if (watching.masked) {
                for (const uint64_t applications : hooks.mask.take_applications(layout_.blocks)) {
                    require(applications > 0, "the mask was not applied");
                }
            }
        }
        found.histograms = tap.stats().histograms();
        found.weights = tap.stats().weight_sum().sums();
        found.norms = tap.stats().norm_sum().sums();
        found.weighted_norms = tap.stats().weighted_norm_sum().sums();
        found.tokens = tap.tokens_seen();
        return found;
    }

    // The same in a host's own context. `announced`: it tells of its decodes; else the counts are looked at
    // between them.
    Found run_live(bool announced, const Scheduler& schedule) const {
        coe::LiveProfiler live(layout_.blocks, layout_.shape.n_experts, layout_.top_k);
        for (const RecordedGraph& graph : graphs_) {
            if (announced) {
                live.begin_decode();
            }
            coe::tests::replay(graph, schedule(graph), cpu_.get(), &coe::LiveProfiler::callback, &live);
            if (announced) {
                live.end_decode();
            } else {
                live.counts(0);
            }
        }
        const coe::LiveCounts counts = live.counts(0);
        Found found;
        found.histograms = counts.stats.histograms();
        found.weights = counts.stats.weight_sum().sums();
        found.tokens = counts.tokens;
        return found;
    }

  private:
    Host host_;  // whose weights the graphs read
    coe::RouterLayout layout_;
    std::unique_ptr<ggml_backend, decltype(&ggml_backend_free)> cpu_;
    std::vector<RecordedGraph> graphs_;
    std::vector<std::vector<int>> kept_;
    bool can_be_masked_ = false;
};

void check_equal(const Found& found, const Found& expected) {
    require(found.tokens == expected.tokens, "tokens differ");
    require(found.histograms == expected.histograms, "choices differ");
    require(found.weights == expected.weights, "weights differ");
    require(found.norms == expected.norms, "norms differ");
    require(found.weighted_norms == expected.weighted_norms, "weighted norms differ");
}

// Whether the scheduler could cut the graph here: it runs what writes into a node's memory where that node
// lies.
bool can_cut(const RecordedGraph& graph, size_t place) {
    for (size_t i = place; i < graph.size(); ++i) {
        if (!coe::tests::is_empty(graph.node(i)) && graph.index(graph.owner(i)) < place) {
            return false;
        }
    }
    return true;
}

// Cut at random places, each piece in a backend's order.
Schedule ordered(const RecordedGraph& graph, NodeOrder order, size_t n_cuts, std::mt19937& random) {
    std::set<size_t> cuts;
    for (size_t i = 0; i < n_cuts; ++i) {
        const size_t place = 1 + random() % (graph.size() - 1);
        if (can_cut(graph, place)) {
            cuts.insert(place);
        }
    }
    Schedule schedule = {{}, {cuts.begin(), cuts.end()}};
    size_t first = 0;
    for (size_t split = 0; split <= schedule.cuts.size(); ++split) {
        const size_t end = split < schedule.cuts.size() ? schedule.cuts[split] : graph.size();
        const std::vector<size_t> part = order(graph, first, end);
        schedule.order.insert(schedule.order.end(), part.begin(), part.end());
        first = end;
    }
    return schedule;
}

struct NamedScheduler {
    std::string name;
    Scheduler schedule;
};

std::vector<NamedScheduler> all_schedulers() {
    std::vector<NamedScheduler> all;
    const std::pair<const char*, NodeOrder> orders[] = {{"natural", &coe::tests::natural_order},
                                                        {"Metal's", &coe::tests::metal_order},
                                                        {"Vulkan's", &coe::tests::vulkan_order}};
    for (const auto& [name, order] : orders) {
        for (const size_t n_cuts : {0, 1, 3, 12}) {
            const auto random = std::make_shared<std::mt19937>(n_cuts);
            all.push_back({std::string(name) + " order with " + std::to_string(n_cuts) + " cuts",
                           [order = order, n_cuts, random](const RecordedGraph& graph) {
                               return ordered(graph, order, n_cuts, *random);
                           }});
        }
    }
    for (unsigned seed = 0; seed < 3; ++seed) {
        const auto random = std::make_shared<std::mt19937>(seed);
        all.push_back({"random order " + std::to_string(seed), [random](const RecordedGraph& graph) {
                           return Schedule{coe::tests::random_order(graph, *random), {}};
                       }});
    }
    return all;
}

void check(const std::string& path) {
    const Checker checker(path);
    std::vector<Watching> ways = {
        {false, false, false}, {false, true, false}, {true, false, false}, {true, true, false}};
    if (checker.can_be_masked()) {
        ways.push_back({true, true, true});
    }
    const Scheduler natural = [](const RecordedGraph& graph) {
        return Schedule{coe::tests::natural_order(graph, 0, graph.size()), {}};
    };
    std::string failures;
    std::map<std::pair<bool, bool>, Found> references;  // by whether there are norms and a mask
    const auto expected_of = [&](const Watching& way) -> const Found& {
        const auto key = std::make_pair(way.outputs, way.masked);
        if (references.count(key) == 0) {
            references[key] = checker.run({way.outputs, false, way.masked}, natural);
        }
        return references.at(key);
    };
    const auto compare = [&](const std::string& where, const Found& expected,
                             const std::function<Found()>& run) {
        try {
            const Found found = run();
            check_equal(found, expected);
            return found;
        } catch (const std::exception& error) {
            failures += where + ": " + error.what() + "\n";
            return Found();
        }
    };
    for (const NamedScheduler& scheduler : all_schedulers()) {
        const Scheduler schedule = [&](const RecordedGraph& graph) {
            Schedule made = scheduler.schedule(graph);
            require(coe::tests::is_possible(graph, made.order), "not a possible order");
            return made;
        };
        for (const Watching& way : ways) {
            const std::string where = scheduler.name + (way.outputs ? ", norms" : "") +
                                      (way.early_end ? ", early end" : "") + (way.masked ? ", masked" : "");
            const Found found = compare(where, expected_of(way), [&] { return checker.run(way, schedule); });
            if (!found.replays.empty() && scheduler.name.find(" 0 cuts") != std::string::npos) {
                const double n_stops = static_cast<double>(found.replays.back().n_stops);
                std::printf("%s: %.2f stops a layer, %zu of %zu nodes\n", where.c_str(),
                            n_stops / static_cast<double>(checker.n_layers()),
                            found.replays.back().n_computed, checker.graphs().back().size());
            }
        }
        for (const bool announced : {false, true}) {
            compare(scheduler.name + (announced ? ", live, announced" : ", live"), expected_of({}),
                    [&] { return checker.run_live(announced, schedule); });
        }
    }
    require(failures.empty(), failures);
}

}  // namespace

int main(int n_arguments, char** arguments) {
    if (n_arguments != 2) {
        std::fprintf(stderr, "give a model\n");
        return 2;
    }
    try {
        check(arguments[1]);
    } catch (const std::exception& error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 1;
    }
    std::printf("equal\n");
    return 0;
}
