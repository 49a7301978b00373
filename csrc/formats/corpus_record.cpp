#include "formats/corpus_record.h"

#include <algorithm>
#include <functional>
#include <nlohmann/json.hpp>
#include <stdexcept>

namespace coe {

namespace {

constexpr uint64_t most_shards = 10'000;

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument(what); }

bool is_ascending(const std::vector<uint64_t>& numbers) {
    return std::adjacent_find(numbers.begin(), numbers.end(), std::greater_equal<>()) == numbers.end();
}

std::string shards_of(const CorpusRecord& record) {
    std::string text = "shard ";
    for (const uint64_t shard : record.shards) {
        text += (text.back() == ' ' ? "" : ", ") + std::to_string(shard);
    }
    return text + " of " + std::to_string(record.n_shards);
}

// What a corpus record covers, for messages.
std::string part_of(const CorpusRecord& record) { return record.n_shards == 1 ? "all" : shards_of(record); }

using nlohmann::json;

uint64_t count_of(const json& record, const char* key) {
    const json& value = record.at(key);
    if (!value.is_number_unsigned()) {
        refuse(std::string("the ") + key + " of a corpus is not a count");
    }
    return value.get<uint64_t>();
}

CorpusRecord record_of(const json& value) {
    CorpusRecord record;
    record.name = value.at("name").get<std::string>();
    record.documents = count_of(value, "documents");
    record.tokens = count_of(value, "tokens");
    record.sha256 = value.at("sha256").get<std::string>();
    record.n_shards = value.contains("n_shards") ? count_of(value, "n_shards") : 1;
    record.run = value.value("run", "");
    if (value.contains("shards")) {
        record.shards.clear();
        for (const json& shard : value["shards"].get_ref<const json::array_t&>()) {
            if (!shard.is_number_unsigned()) {
                refuse("the shards of a corpus are not counts");
            }
            record.shards.push_back(shard.get<uint64_t>());
        }
    }
    record.check();
    if (record.n_shards == 1) {
        record.run.clear();
    }
    return record;
}

}  // namespace

void CorpusRecord::check() const {
    const bool in_range = !shards.empty() && shards.front() >= 1 && shards.back() <= n_shards;
    if (!in_range || !is_ascending(shards) || n_shards > most_shards) {
        refuse("a corpus cannot have " + shards_of(*this));
    }
}

bool CorpusRecord::completes(const CorpusRecord& other) const {
    if (n_shards == 1 || sha256 != other.sha256 || run != other.run || n_shards != other.n_shards) {
        return false;
    }
    return std::find_first_of(shards.begin(), shards.end(), other.shards.begin(), other.shards.end()) ==
           shards.end();
}

void CorpusRecord::add(const CorpusRecord& other) {
    documents += other.documents;
    tokens += other.tokens;
    shards.insert(shards.end(), other.shards.begin(), other.shards.end());
    std::sort(shards.begin(), shards.end());
    if (shards.size() == n_shards) {
        shards = {1};
        n_shards = 1;
        run.clear();
    }
}

std::vector<CorpusRecord> join_corpora(const std::vector<CorpusRecord>& ours,
                                       const std::vector<CorpusRecord>& theirs) {
    std::vector<CorpusRecord> joined = ours;
    // A corpus that was given twice to a run has two records in each of its shards.
    std::vector<bool> matched(ours.size(), false);
    for (const CorpusRecord& record : theirs) {
        size_t at = 0;
        while (at < ours.size() && (matched[at] || !joined[at].completes(record))) {
            ++at;
        }
        if (at < ours.size()) {
            matched[at] = true;
            joined[at].add(record);
            continue;
        }
        for (const CorpusRecord& other : ours) {
            if (other.sha256 == record.sha256 && std::max(other.n_shards, record.n_shards) > 1) {
                refuse("both have documents of " + record.name + " (" + part_of(other) + ", " +
                       part_of(record) + "); merge shards of one run, each once");
            }
        }
        joined.push_back(record);
    }
    return joined;
}

std::string encode_corpora(const std::vector<CorpusRecord>& corpora) {
    nlohmann::ordered_json records = nlohmann::ordered_json::array();
    for (const CorpusRecord& record : corpora) {
        nlohmann::ordered_json fields = {{"name", record.name},
                                         {"documents", record.documents},
                                         {"tokens", record.tokens},
                                         {"sha256", record.sha256}};
        if (record.n_shards > 1) {
            fields["shards"] = record.shards;
            fields["n_shards"] = record.n_shards;
            fields["run"] = record.run;
        }
        records.push_back(fields);
    }
    // A host may name its text in another encoding than UTF-8.
    return records.dump(-1, ' ', true, nlohmann::ordered_json::error_handler_t::replace);
}

std::vector<CorpusRecord> decode_corpora(const std::string& text) {
    try {
        std::vector<CorpusRecord> corpora;
        const json records = json::parse(text);
        for (const json& record : records.get_ref<const json::array_t&>()) {
            corpora.push_back(record_of(record));
        }
        return corpora;
    } catch (const json::exception&) {
        refuse("its corpora are not a list of records");
    }
}

}  // namespace coe
