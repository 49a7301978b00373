// What a profile says about the corpora that it has seen.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace coe {

// One corpus that a profile has seen, or some of its shards.
struct CorpusRecord {
    std::string name;
    uint64_t documents = 0;
    uint64_t tokens = 0;
    std::string sha256;                  // over all its documents
    std::vector<uint64_t> shards = {1};  // those that were profiled, ascending
    uint64_t n_shards = 1;
    std::vector<std::string> columns;  // of its records, that were read
    std::string date;                  // which a chat template may have printed
    std::string run;  // stands for all corpora of the run, on which the documents of a shard depend

    // Throws std::invalid_argument.
    void check() const;
    // Whether both are shards of one corpus in one run, and of different documents.
    bool completes(const CorpusRecord& other) const;
    void add(const CorpusRecord& other);
};

// The records of two profiles: shards of a corpus become one record. Throws std::invalid_argument where
// documents would count twice.
std::vector<CorpusRecord> join_corpora(const std::vector<CorpusRecord>& ours,
                                       const std::vector<CorpusRecord>& theirs);

// Records of corpora as JSON. Throws std::invalid_argument.
std::string encode_corpora(const std::vector<CorpusRecord>& corpora);
std::vector<CorpusRecord> decode_corpora(const std::string& text);

}  // namespace coe
