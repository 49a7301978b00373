#include "model/shards.h"

#include <filesystem>
#include <set>

namespace coe {

namespace {

constexpr uint64_t most_shards = 99999;

std::string padded(uint64_t number) {
    const std::string digits = std::to_string(number);
    return std::string(digits.size() < 5 ? 5 - digits.size() : 0, '0') + digits;
}

}  // namespace

std::vector<std::string> shard_paths(const GgufFile& first) {
    const std::string& path = first.path();
    const uint64_t count = first.count("split.count").value_or(1);
    if (count <= 1) {
        return {path};
    }
    if (count > most_shards) {
        refuse_file(path, "says that it is one of " + std::to_string(count) + " shards; it is damaged");
    }
    const std::string of_count = "-of-" + padded(count) + ".gguf";
    const std::string ending = "-00001" + of_count;
    if (path.size() < ending.size() ||
        path.compare(path.size() - of_count.size(), of_count.size(), of_count) != 0) {
        refuse_file(path, "is one of " + std::to_string(count) + " shards but is not named NAME" + ending);
    }
    const std::string stem = path.substr(0, path.size() - ending.size());
    if (path != stem + ending) {
        refuse_file(path, "is not the first shard; give " + stem + ending);
    }
    if (first.count("split.no").value_or(0) != 0) {
        refuse_file(path, "says that it is not the first shard; give the shards their names back");
    }
    std::vector<std::string> paths;
    std::string missing;
    for (uint64_t number = 1; number <= count; ++number) {
        paths.push_back(stem + "-" + padded(number) + of_count);
        if (!std::filesystem::exists(std::filesystem::u8path(paths.back()))) {
            missing += (missing.empty() ? "" : ", ") + paths.back();
        }
    }
    if (!missing.empty()) {
        refuse_file(path, "is one of " + std::to_string(count) + " shards; missing: " + missing +
                              "; put them beside it");
    }
    return paths;
}

void check_shards(const ModelFiles& files) {
    if (files.size() == 1) {
        return;
    }
    const GgufFile& first = *files[0];
    std::set<std::string> names;
    size_t n_tensors = 0;
    for (size_t number = 0; number < files.size(); ++number) {
        const GgufFile& file = *files[number];
        if (number > 0 && (file.count("split.no") != number || file.count("split.count") != files.size())) {
            refuse_file(file.path(), "is not shard " + std::to_string(number + 1) + " of " +
                                         std::to_string(files.size()) + " of the model in " + first.path() +
                                         "; give the shards their names back");
        }
        for (const GgufTensor& tensor : file.header().tensors) {
            names.insert(tensor.name);
            n_tensors += 1;
        }
    }
    if (names.size() != n_tensors || first.count("split.tensors.count").value_or(n_tensors) != n_tensors) {
        refuse_file(first.path(), "its " + std::to_string(files.size()) +
                                      " shards do not hold the tensors of one model, each once");
    }
}

ModelFiles open_model(const std::string& path) {
    ModelFiles files = {std::make_shared<GgufFile>(path)};
    const std::vector<std::string> paths = shard_paths(*files[0]);
    for (size_t number = 1; number < paths.size(); ++number) {
        files.push_back(std::make_shared<GgufFile>(paths[number]));
    }
    check_shards(files);
    return files;
}

}  // namespace coe
