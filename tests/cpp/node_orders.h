// The orders in which backends run the nodes of a graph: models of our own of what Metal and Vulkan do in
// llama.cpp 0.3.36 (llama-cpp-python's number), and any other order that the data allow.
#pragma once

#include <cstddef>
#include <random>
#include <vector>

#include "graph_replay.h"

namespace coe::tests {

// A stretch of nodes, first to last, in the order that a backend gives them.
using NodeOrder = std::vector<size_t> (*)(const RecordedGraph&, size_t first, size_t end);

std::vector<size_t> natural_order(const RecordedGraph& graph, size_t first, size_t end);

// Metal: nodes that could run at once are put beside each other. Where a node must wait for those before it,
// the next 64 are searched for some that need not wait, among operations that Metal moves; what it fuses
// stays together.
std::vector<size_t> metal_order(const RecordedGraph& graph, size_t first, size_t end);

// Vulkan: behind the first node left come those of the next 20 that depend on none of the nodes between, then
// views.
std::vector<size_t> vulkan_order(const RecordedGraph& graph, size_t first, size_t end);

// Any order in which no node comes before one that it depends on.
std::vector<size_t> random_order(const RecordedGraph& graph, std::mt19937& random);

// Whether `later`, behind `earlier` in llama.cpp's order, must stay behind it: it reads what that computes,
// or writes where that reads or writes.
bool depends_on(const RecordedGraph& graph, size_t later, size_t earlier);

// Whether an order keeps every node behind all that it depends on.
bool is_possible(const RecordedGraph& graph, const std::vector<size_t>& order);

}  // namespace coe::tests
