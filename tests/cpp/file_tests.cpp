// What C hosts read and write without Python: digests, masks, layouts. Python's tests compare them with its
// own.
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>

#include "base/sha256.h"
#include "check.h"
#include "formats/atomic_file.h"
#include "formats/mask_file.h"
#include "formats/profile_file.h"
#include "model/fingerprint.h"

namespace {

using coe::Mask;
using coe::parse_mask;
using coe::RouterLayout;

std::string digest(const std::string& text) {
    coe::Sha256 sha;
    sha.update(text);
    return sha.hex();
}

std::string replaced(std::string text, const std::string& part, const std::string& by) {
    const size_t at = text.find(part);
    CHECK(at != std::string::npos);
    return text.replace(at, part.size(), by);
}

const std::string mask_text = R"({"format": "coe-native.expert-mask", "version": 1, "architecture": "olmoe",
    "fingerprint": "f00d", "expert_count": 8, "keep": 2, "layers": {"0": [1, 7], "10": [0, 3], "2": [4, 5]},
    "swaps": [{"layer": 0, "incoming": 7, "outgoing": 2, "stage": 3, "incoming_score": 1, "outgoing_score": 0.5}],
    "unplaced": [[2, 6]], "provenance": {"model": "x"}})";

RouterLayout layout() {
    RouterLayout made;
    made.architecture = "olmoe";
    made.fingerprint = "f00d";
    made.blocks = {0, 2, 10};
    made.top_k = {2, 1, 2};
    made.shape = {8, 2, 1, 1};
    return made;
}

}  // namespace

TEST(sha256_of_the_standards_examples) {
    CHECK_EQUAL(digest(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    CHECK_EQUAL(digest("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    CHECK_EQUAL(digest("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"),
                "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
    coe::Sha256 sha;
    for (size_t left = 1000000, piece = 1; left > 0; piece = (piece * 7) % 300 + 1) {
        const size_t n_bytes = std::min(piece, left);
        sha.update(std::string(n_bytes, 'a'));
        left -= n_bytes;
    }
    CHECK_EQUAL(sha.hex(), "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST(mask_files_are_read) {
    const coe::MaskFile file = parse_mask(mask_text);
    const Mask& mask = file.mask;
    CHECK_EQUAL(mask.architecture, "olmoe");
    CHECK_EQUAL(mask.fingerprint, "f00d");
    CHECK_EQUAL(mask.keep, size_t{2});
    CHECK(mask.kept == (std::map<int, std::vector<int>>{{0, {1, 7}}, {2, {4, 5}}, {10, {0, 3}}}));
    mask.check_cut(layout());
    CHECK_EQUAL(file.swaps.size(), size_t{1});
    CHECK_EQUAL(file.swaps[0].incoming, int64_t{7});
    CHECK_EQUAL(file.swaps[0].outgoing_score, 0.5);
    CHECK(file.unplaced == (std::vector<std::pair<int64_t, int64_t>>{{2, 6}}));
    CHECK_EQUAL(file.provenance, "{\"model\":\"x\"}");
}

TEST(damaged_masks_are_refused) {
    const struct {
        const char* part;
        const char* by;
        const char* why;
    } cases[] = {
        {"expert-mask", "other", "not a mask"},
        {"\"version\": 1", "\"version\": 2", "mask version 2"},
        {"\"version\": 1", "\"version\": 1.5", "version"},
        {"\"version\": 1", "\"version\": \"1\"", "version"},
        {"\"version\": 1, ", "", "damaged"},
        {"\"olmoe\"", "3", "damaged"},
        {"\"keep\": 2", "\"keep\": 9", "keep is"},
        {"\"keep\": 2", "\"keep\": 0", "keep is"},
        {"\"keep\": 2", "\"keep\": 3", "must keep 3"},
        {"\"expert_count\": 8", "\"expert_count\": 1e99", "expert_count is"},
        {"\"expert_count\": 8", "\"expert_count\": 18446744073709551616", "expert_count is"},
        {"[1, 7]", "[1, 8]", "0 to 7"},
        {"[1, 7]", "[-1, 7]", "0 to 7"},
        {"[1, 7]", "[7, 1]", "ascending"},
        {"[1, 7]", "[7, 7]", "ascending"},
        {"[1, 7]", "7", "damaged"},
        {"[1, 7]", "[1, 7", "not a mask"},
        {"\"incoming\": 7, ", "", "damaged"},
        {"\"stage\": 3", "\"stage\": 4", "stage"},
        {"[[2, 6]]", "[[2]]", "pairs"},
        {"{\"model\": \"x\"}", "[]", "provenance is not an object"},
        {"\"10\"", "\"4096\"", "block index"},
        {"\"10\"", "\"-10\"", "block index"},
        {"\"10\"", "\"010\"", "block index"},
        {"\"10\"", "\"99999999999999999999\"", "block index"},
    };
    for (const auto& wrong : cases) {
        CHECK_THROWS(std::invalid_argument, wrong.why, parse_mask(replaced(mask_text, wrong.part, wrong.by)));
    }
    CHECK_THROWS(std::invalid_argument, "not a mask", parse_mask("[]"));
    CHECK_THROWS(std::invalid_argument, "not a mask", parse_mask(""));
    CHECK_THROWS(std::invalid_argument, "not a mask", parse_mask(mask_text + std::string(1, '\0')));
    CHECK_THROWS(std::invalid_argument, "not a mask", parse_mask(std::string(1 << 20, '[')));
}

TEST(masks_are_checked_against_a_model) {
    const Mask mask = parse_mask(mask_text).mask;
    const auto refused = [&](const char* why, void (*change)(RouterLayout&)) {
        RouterLayout other = layout();
        change(other);
        CHECK_THROWS(std::invalid_argument, why, (mask.check_cut(other), 0));
    };
    refused("other weights", [](RouterLayout& other) { other.fingerprint = "beef"; });
    refused("architecture", [](RouterLayout& other) { other.architecture = "llama"; });
    refused("MoE layers", [](RouterLayout& other) { other.blocks = {0, 2, 9}; });
    refused("number of experts", [](RouterLayout& other) { other.shape.n_experts = 9; });
    refused("a token needs 3", [](RouterLayout& other) { other.top_k = {2, 3, 2}; });
    refused("because", [](RouterLayout& other) { other.obstacle = "because"; });
    refused("another number", [](RouterLayout& other) { other.variant_n_experts = 2; });
    refused("more experts than groups", [](RouterLayout& other) { other.least_keep = 3; });
    refused("a group needs 2", [](RouterLayout& other) { other.shape.n_groups = 2; });
    RouterLayout other = layout();
    other.fingerprint = "beef";
    other.old_fingerprint = "f00d";  // as version 0.1.0 computed it
    mask.check_cut(other);
    const Mask uneven =
        parse_mask(
            R"({"format": "coe-native.expert-mask", "version": 1, "architecture": "olmoe", "fingerprint": "f00d",
            "expert_count": 8, "keep": 4, "layers": {"0": [0, 1, 4, 5], "2": [0, 1, 2, 7], "10": [2, 3, 6, 7]}})")
            .mask;
    uneven.check_cut(layout());
    other = layout();
    other.shape.n_groups = 2;
    CHECK_THROWS(std::invalid_argument, "blocks [2]", (uneven.check_cut(other), 0));
    uneven.check_model(other);
    other = layout();
    other.architecture = other.fingerprint = "unknown";  // given sizes, which fit any model of them
    mask.check_cut(other);
}

TEST(files_are_written_whole_or_not_at_all) {
    namespace fs = std::filesystem;
    const fs::path directory = fs::temp_directory_path() / ("coe-file-tests-" + std::to_string(std::rand()));
    fs::create_directory(directory);
    const fs::path target = directory / "profile.gguf";
    const auto n_files = [&] {
        return std::distance(fs::directory_iterator(directory), fs::directory_iterator());
    };
    coe::write_file(target.string(), {1, 2, 3});
    fs::permissions(target, fs::perms::owner_read | fs::perms::owner_write);
    coe::write_file(target.string(), {4, 5});
    CHECK(fs::status(target).permissions() == (fs::perms::owner_read | fs::perms::owner_write));
    CHECK_EQUAL(fs::file_size(target), uintmax_t{2});
    CHECK_EQUAL(n_files(), 1);
    CHECK_THROWS(std::runtime_error, "cannot be written",
                 (coe::write_file((directory / "no" / "profile.gguf").string(), {1}), 0));
    CHECK_THROWS(std::runtime_error, "regular file", (coe::write_file(directory.string(), {1}), 0));
    CHECK_EQUAL(n_files(), 1);
#ifndef _WIN32
    const fs::path link = directory / "link.gguf";
    fs::create_symlink(target, link);
    coe::write_file(link.string(), {6, 7, 8});
    CHECK(fs::is_symlink(link));
    CHECK_EQUAL(fs::file_size(target), uintmax_t{3});
    fs::remove(target);
    coe::write_file(link.string(), {9});  // a link to nothing yet
    CHECK(fs::is_symlink(link));
    CHECK_EQUAL(fs::file_size(target), uintmax_t{1});
#endif
    fs::remove_all(directory);
}

TEST(layouts_of_what_is_no_model_are_refused) {
    namespace fs = std::filesystem;
    const fs::path path =
        fs::temp_directory_path() / ("coe-no-model-" + std::to_string(std::rand()) + ".gguf");
    std::ofstream(path, std::ios::binary) << std::string("GGUF\3\0\0\0", 8);
    CHECK_THROWS(std::invalid_argument, path.string(), coe::read_router_layout(path.string()));
    std::ofstream(path, std::ios::binary) << "";
    CHECK_THROWS(std::invalid_argument, path.string(), coe::read_router_layout(path.string()));
    // A header without anything in it.
    std::ofstream(path, std::ios::binary) << std::string("GGUF\3\0\0\0", 8) << std::string(16, '\0');
    CHECK_THROWS(std::invalid_argument, "names no architecture", coe::read_router_layout(path.string()));
    fs::remove(path);
}

namespace {

coe::Profile small_profile() {
    coe::Profile profile;
    profile.architecture = "olmoe";
    profile.model_name = "a model";
    profile.fingerprint = "f00d";
    profile.blocks = {0, 3};
    profile.n_experts = 3;
    profile.n_ranks = 2;
    profile.n_tokens = 4;
    profile.layer_tokens = {4, 4};
    profile.histograms = {4, 0, 0, 3, 0, 1, 1, 1, 1, 2, 2, 1};
    profile.weight_sum = coe::ExactSums(std::vector<double>(12, 0.25), std::vector<double>(12, 0.0));
    profile.corpora = {{"text", 1, 4, "abc", {1}, 1, {}, "", ""}};
    return profile;
}

coe::Profile read_back(const coe::Profile& profile) {
    const std::vector<uint8_t> bytes = coe::encode_profile(profile);
    const std::filesystem::path path =
        std::filesystem::temp_directory_path() / ("coe-profile-" + std::to_string(std::rand()) + ".gguf");
    coe::write_file(path.string(), bytes);
    const coe::Profile found = coe::decode_profile(coe::GgufFile(path.string()));
    std::filesystem::remove(path);
    return found;
}

}  // namespace

TEST(profiles_are_read_back) {
    coe::Profile profile = small_profile();
    profile.check();
    coe::Profile found = read_back(profile);
    CHECK(found.histograms == profile.histograms);
    CHECK(found.weight_sum.sums() == profile.weight_sum.sums());
    CHECK(found.blocks == profile.blocks);
    CHECK_EQUAL(found.model_name, "a model");
    CHECK_EQUAL(found.corpora.at(0).tokens, uint64_t{4});
    CHECK(!found.outputs);

    profile.outputs = coe::OutputSums{coe::ExactSums(6), coe::ExactSums(6)};
    profile.layer_tokens = {4, 0};
    std::fill(profile.histograms.begin() + 6, profile.histograms.end(), 0);
    profile.check();
    found = read_back(profile);
    CHECK(found.outputs.has_value());
    CHECK(found.layer_tokens == profile.layer_tokens);
    CHECK((found.layer_top_k() == std::vector<int64_t>{2, 0}));
}

TEST(profiles_that_no_run_can_have_are_refused) {
    const auto refused = [](const char* why, void (*change)(coe::Profile&)) {
        coe::Profile profile = small_profile();
        change(profile);
        CHECK_THROWS(std::invalid_argument, why, (profile.check(), 0));
    };
    refused("choices", [](coe::Profile& p) { p.histograms[0] = 3; });
    refused("chosen -1 times", [](coe::Profile& p) { p.histograms[0] = -1; });
    refused("ascending", [](coe::Profile& p) { p.blocks = {3, 0}; });
    refused("different blocks", [](coe::Profile& p) { p.blocks = {0, 5000}; });
    refused("one shape", [](coe::Profile& p) { p.n_experts = 4; });
    refused("groups", [](coe::Profile& p) { p.n_groups = 3, p.n_groups_used = 3; });
    refused("sum of them", [](coe::Profile& p) { p.has_weights = false; });
    refused("tokens", [](coe::Profile& p) { p.layer_tokens = {5, 4}; });
    refused("shard", [](coe::Profile& p) { p.corpora[0].shards = {2}; });
    refused("finite", [](coe::Profile& p) {
        p.weight_sum = coe::ExactSums(std::vector<double>(12, 1e60), std::vector<double>(12, 0.0));
    });
    refused("last digit", [](coe::Profile& p) {
        p.weight_sum = coe::ExactSums(std::vector<double>(12, 0.25), std::vector<double>(12, 1.0));
    });
}

TEST(profiles_of_one_model_are_added) {
    coe::Profile sum = small_profile();
    sum.add(small_profile());
    sum.check();
    CHECK_EQUAL(sum.n_tokens, uint64_t{8});
    CHECK_EQUAL(sum.histograms[0], int64_t{8});
    CHECK_EQUAL(sum.weight_sum.sums()[0], 0.5);
    CHECK_EQUAL(sum.corpora.size(), size_t{2});
    coe::Profile other = small_profile();
    other.fingerprint = "beef";
    CHECK_THROWS(std::invalid_argument, "router weights", (sum.add(other), 0));
    other = small_profile();
    other.outputs = coe::OutputSums{coe::ExactSums(6), coe::ExactSums(6)};
    CHECK_THROWS(std::invalid_argument, "activation norms", (sum.add(other), 0));
}

TEST(shards_become_one_record) {
    const coe::CorpusRecord first = {"text", 1, 4, "abc", {1}, 3, {}, "", "run"};
    coe::CorpusRecord second = first;
    second.shards = {2, 3};
    std::vector<coe::CorpusRecord> joined = coe::join_corpora({first}, {second});
    CHECK_EQUAL(joined.size(), size_t{1});
    CHECK_EQUAL(joined[0].n_shards, uint64_t{1});
    CHECK_EQUAL(joined[0].tokens, uint64_t{8});
    CHECK_THROWS(std::invalid_argument, "each once", coe::join_corpora({first}, {first}));
    second.run = "another";
    CHECK_THROWS(std::invalid_argument, "each once", coe::join_corpora({first}, {second}));
}
