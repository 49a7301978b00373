#include "formats/profile.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>

#include "base/limits.h"

namespace coe {

namespace {

constexpr uint64_t most_tokens = uint64_t{1} << 45;  // sums over all experts of a layer stay exact below
constexpr double largest_float = std::numeric_limits<float>::max();

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument(what); }

// The rest of a sum must be less than half the last digit of the sum, or it would have been rounded
// otherwise.
void check_rests(const ExactSums& sums, const char* what) {
    for (size_t i = 0; i < sums.sums().size(); ++i) {
        const double total = std::abs(sums.sums()[i]);
        const double digit = std::nextafter(total, std::numeric_limits<double>::infinity()) - total;
        if (!(std::abs(sums.rests()[i]) <= digit)) {
            refuse(std::string("the rests of a profile's ") + what +
                   " must be less than the last digit of the sums");
        }
    }
}

}  // namespace

bool Profile::is_whole() const {
    return std::all_of(layer_tokens.begin(), layer_tokens.end(),
                       [&](uint64_t tokens) { return tokens == n_tokens; });
}

std::vector<int64_t> Profile::layer_top_k() const {
    std::vector<int64_t> chosen;
    const size_t n_values = n_experts * n_ranks;
    for (size_t layer = 0; layer < blocks.size(); ++layer) {
        const int64_t* counts = histograms.data() + layer * n_values;
        int64_t total = 0;
        std::vector<bool> is_used(n_ranks, false);
        for (size_t i = 0; i < n_values; ++i) {
            total += has_ranks() ? 0 : counts[i];
            is_used[i % n_ranks] = is_used[i % n_ranks] || counts[i] != 0;
        }
        chosen.push_back(has_ranks()
                             ? std::count(is_used.begin(), is_used.end(), true)
                             : total / static_cast<int64_t>(std::max(layer_tokens[layer], uint64_t{1})));
    }
    return chosen;
}

void Profile::check() const {
    check_sizes();
    check_counts();
    check_totals();
    if (outputs) {
        check_outputs();
    }
    for (const CorpusRecord& record : corpora) {
        record.check();
    }
}

void Profile::check_sizes() const {
    const size_t n_values = blocks.size() * n_experts * n_ranks;
    if (blocks.empty() || n_values == 0 || histograms.size() != n_values ||
        weight_sum.sums().size() != n_values || weight_sum.rests().size() != n_values) {
        refuse("a profile needs histograms and weight sums of one shape [layer, expert, rank]");
    }
    const auto is_block = [](int block) { return block >= 0 && block < most_blocks; };
    if (std::adjacent_find(blocks.begin(), blocks.end(), std::greater_equal<>()) != blocks.end() ||
        !std::all_of(blocks.begin(), blocks.end(), is_block)) {
        refuse("a profile's layers must be different blocks from 0 to " + std::to_string(most_blocks - 1) +
               ", in ascending order");
    }
    if (n_tokens > most_tokens) {
        refuse("a profile cannot have " + std::to_string(n_tokens) + " tokens");
    }
    const auto is_part = [&](uint64_t tokens) { return tokens <= n_tokens; };
    if (layer_tokens.size() != blocks.size() ||
        !std::all_of(layer_tokens.begin(), layer_tokens.end(), is_part)) {
        refuse("a profile of " + std::to_string(n_tokens) +
               " tokens needs the number of tokens that each layer has seen, and no layer can see more");
    }
    if (!has_ranks() && (n_ranks != 1 || n_chosen > n_experts)) {
        refuse("a profile without ranks cannot choose " + std::to_string(n_chosen) + " experts for a token");
    }
    try {
        RouterShape{n_experts, top_k(), n_groups, n_groups_used}.check_groups();
    } catch (const std::invalid_argument&) {
        refuse("a profile of " + std::to_string(n_experts) + " experts cannot have " +
               std::to_string(n_groups) + " groups, of which " + std::to_string(n_groups_used) + " are used");
    }
}

void Profile::check_counts() const {
    for (size_t i = 0; i < histograms.size(); ++i) {
        if (histograms[i] < 0 || static_cast<uint64_t>(histograms[i]) > n_tokens) {
            refuse("an expert cannot be chosen " + std::to_string(histograms[i]) + " times by " +
                   std::to_string(n_tokens) + " tokens");
        }
        const double weight = weight_sum.sums()[i];
        if (!has_weights && weight != 0.0) {
            refuse("a profile without weights cannot have a sum of them");
        }
        // A router's weights are of type F32.
        const auto n_choices = static_cast<double>(std::max(histograms[i], int64_t{1}));
        if (!(std::abs(weight) <= n_choices * largest_float)) {
            refuse("a profile's weights must be finite, and no larger than a router's can be");
        }
    }
    check_rests(weight_sum, "weight sums");
}

void Profile::check_totals() const {
    const std::vector<int64_t> chosen = layer_top_k();
    for (size_t layer = 0; layer < blocks.size(); ++layer) {
        const auto seen = static_cast<int64_t>(layer_tokens[layer]);
        bool is_right = (seen == 0 || chosen[layer] > 0) &&
                        (has_ranks() || chosen[layer] <= static_cast<int64_t>(n_chosen));
        for (size_t rank = 0; rank < n_ranks; ++rank) {
            int64_t total = 0;
            for (size_t expert = 0; expert < n_experts; ++expert) {
                total += histograms[(layer * n_experts + expert) * n_ranks + rank];
            }
            const int64_t expected =
                has_ranks() ? (static_cast<int64_t>(rank) < chosen[layer] ? seen : 0) : seen * chosen[layer];
            is_right = is_right && total == expected;
        }
        if (!is_right) {
            refuse("block " + std::to_string(blocks[layer]) + " has seen " + std::to_string(seen) + " of " +
                   std::to_string(n_tokens) + " tokens, but its choices do not add up to that at each rank");
        }
    }
}

void Profile::check_outputs() const {
    const size_t n_values = blocks.size() * n_experts;
    const auto check_part = [&](const ExactSums& sums, double largest, bool may_be_negative,
                                const char* name) {
        if (sums.sums().size() != n_values || sums.rests().size() != n_values) {
            refuse(std::string("a profile's ") + name + " needs a number for each expert of each layer");
        }
        for (size_t i = 0; i < n_values; ++i) {
            int64_t count = 0;
            for (size_t rank = 0; rank < n_ranks; ++rank) {
                count += histograms[i * n_ranks + rank];
            }
            const double sum = sums.sums()[i];
            if (!(std::abs(sum) <= static_cast<double>(count) * largest) || (sum < 0 && !may_be_negative)) {
                refuse(std::string("a profile's ") + name +
                       " must be finite, and 0 for an expert that was never chosen");
            }
        }
        check_rests(sums, name);
    };
    check_part(outputs->norm_sum, largest_float, false, "norm_sum");
    check_part(outputs->weighted_norm_sum, largest_float * largest_float, true, "weighted_norm_sum");
}

void Profile::check_addable(const Profile& other) const {
    const char* different = nullptr;
    if (blocks != other.blocks) {
        different = "layers";
    } else if (n_experts != other.n_experts || n_ranks != other.n_ranks || n_chosen != other.n_chosen) {
        different = "numbers of experts";
    } else if (n_groups != other.n_groups || n_groups_used != other.n_groups_used) {
        different = "groups of experts";
    } else if (has_weights != other.has_weights) {
        different = "kinds of counts";
    } else if (fingerprint != other.fingerprint) {
        different = "router weights";
    }
    if (different != nullptr) {
        refuse(std::string("their ") + different + " differ; only profiles of one model can be added");
    }
    if (outputs.has_value() != other.outputs.has_value()) {
        refuse(std::string(outputs ? "the second" : "the first") +
               " has no activation norms; make both with the same --stats, or leave the norms out "
               "(merge --stats routing)");
    }
}

void Profile::add(const Profile& other) {
    check_addable(other);
    corpora = join_corpora(corpora, other.corpora);
    n_tokens += other.n_tokens;
    for (size_t layer = 0; layer < layer_tokens.size(); ++layer) {
        layer_tokens[layer] += other.layer_tokens[layer];
    }
    for (size_t i = 0; i < histograms.size(); ++i) {
        histograms[i] += other.histograms[i];
    }
    weight_sum.add(other.weight_sum);
    if (outputs) {
        outputs->norm_sum.add(other.outputs->norm_sum);
        outputs->weighted_norm_sum.add(other.outputs->weighted_norm_sum);
    }
}

Profile make_profile(const RouterLayout& layout, const RoutingStats& stats,
                     const std::vector<uint64_t>& tokens) {
    Profile profile;
    profile.architecture = layout.architecture;
    profile.model_name = layout.model_name;
    profile.fingerprint = layout.fingerprint;
    profile.blocks = layout.blocks;
    profile.n_experts = stats.n_experts();
    profile.n_ranks = stats.top_k();
    profile.n_groups = layout.shape.n_groups;
    profile.n_groups_used = layout.shape.n_groups_used;
    profile.n_tokens = *std::max_element(tokens.begin(), tokens.end());
    profile.layer_tokens = tokens;
    profile.histograms = stats.histograms();
    profile.weight_sum = stats.weight_sum();
    if (stats.has_outputs()) {
        profile.outputs = OutputSums{stats.norm_sum(), stats.weighted_norm_sum()};
    }
    return profile;
}

}  // namespace coe
