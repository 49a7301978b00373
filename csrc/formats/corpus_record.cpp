#include "formats/corpus_record.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <stdexcept>

#include "formats/json_fields.h"

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

constexpr uint64_t most = std::numeric_limits<uint64_t>::max();

CorpusRecord record_of(const Json& value) {
    const auto number = [&](const char* key) { return count(field(value, key), key, 0, most); };
    CorpusRecord record;
    record.name = text_field(value, "name");
    record.documents = number("documents");
    record.tokens = number("tokens");
    record.sha256 = text_field(value, "sha256");
    record.n_shards = value.contains("n_shards") ? number("n_shards") : 1;
    record.run = value.contains("run") ? text_field(value, "run") : "";
    if (value.contains("shards")) {
        record.shards.clear();
        for (const Json& shard : list_field(value, "shards")) {
            record.shards.push_back(count(shard, "a shard", 0, most));
        }
    }
    if (value.contains("columns")) {
        for (const Json& column : list_field(value, "columns")) {
            if (!column.is_string()) {
                refuse("its columns are not texts");
            }
            record.columns.push_back(column.get<std::string>());
        }
    }
    record.date = value.contains("date") ? text_field(value, "date") : "";
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
    Json records = Json::array();
    for (const CorpusRecord& record : corpora) {
        Json fields = {{"name", record.name},
                       {"documents", record.documents},
                       {"tokens", record.tokens},
                       {"sha256", record.sha256}};
        if (record.n_shards > 1) {
            fields["shards"] = record.shards;
            fields["n_shards"] = record.n_shards;
            fields["run"] = record.run;
        }
        if (!record.columns.empty()) {
            fields["columns"] = record.columns;
        }
        if (!record.date.empty()) {
            fields["date"] = record.date;
        }
        records.push_back(fields);
    }
    // A host may name its text in another encoding than UTF-8.
    return records.dump(-1, ' ', true, Json::error_handler_t::replace);
}

std::vector<CorpusRecord> decode_corpora(const std::string& text) {
    const Json records = parse_json(text);
    if (!records.is_array()) {
        refuse("the corpora are not a list of records");
    }
    std::vector<CorpusRecord> corpora;
    for (const Json& record : records) {
        try {
            corpora.push_back(record_of(record));
        } catch (const std::invalid_argument& wrong) {
            refuse(std::string("a record of its corpora: ") + wrong.what());
        }
    }
    return corpora;
}

}  // namespace coe
