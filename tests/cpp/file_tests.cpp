// What C hosts read and write without Python: digests, masks, layouts. Python's tests compare them with its
// own.
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>

#include "check.h"
#include "mask_file.h"
#include "profile_file.h"
#include "router_layout.h"
#include "sha256.h"

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
    made.n_experts = 8;
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
    const Mask mask = parse_mask(mask_text);
    CHECK_EQUAL(mask.architecture, "olmoe");
    CHECK_EQUAL(mask.fingerprint, "f00d");
    CHECK_EQUAL(mask.keep, size_t{2});
    CHECK(mask.kept == (std::map<int, std::vector<int>>{{0, {1, 7}}, {2, {4, 5}}, {10, {0, 3}}}));
    coe::check_mask(mask, layout());
}

TEST(damaged_masks_are_refused) {
    const struct {
        const char* part;
        const char* by;
        const char* why;
    } cases[] = {
        {"expert-mask", "other", "is no mask"},
        {"\"version\": 1", "\"version\": 2", "mask version 2"},
        {"\"version\": 1", "\"version\": 1.5", "version is no number"},
        {"\"version\": 1", "\"version\": \"1\"", "version is no number"},
        {"\"version\": 1, ", "", "damaged"},
        {"\"olmoe\"", "3", "damaged"},
        {"\"keep\": 2", "\"keep\": 9", "keep is no count"},
        {"\"keep\": 2", "\"keep\": 0", "keep is no count"},
        {"\"keep\": 2", "\"keep\": 3", "must keep 3"},
        {"\"expert_count\": 8", "\"expert_count\": 1e99", "expert_count is no count"},
        {"\"expert_count\": 8", "\"expert_count\": 18446744073709551616", "expert_count is no count"},
        {"[1, 7]", "[1, 8]", "outside 0 to 7 in block 0"},
        {"[1, 7]", "[-1, 7]", "outside 0 to 7 in block 0"},
        {"[1, 7]", "[7, 1]", "ascending"},
        {"[1, 7]", "[7, 7]", "ascending"},
        {"[1, 7]", "7", "damaged"},
        {"[1, 7]", "[1, 7", "damaged"},
        {"\"incoming\": 7, ", "", "damaged"},
        {"\"stage\": 3", "\"stage\": 4", "second pass or the third"},
        {"[[2, 6]]", "[[2]]", "pairs of block and expert"},
        {"{\"model\": \"x\"}", "[]", "provenance is not an object"},
        {"\"10\"", "\"4096\"", "no block index"},
        {"\"10\"", "\"-10\"", "no block index"},
        {"\"10\"", "\"010\"", "no block index"},
        {"\"10\"", "\"99999999999999999999\"", "no block index"},
    };
    for (const auto& wrong : cases) {
        CHECK_THROWS(std::invalid_argument, wrong.why, parse_mask(replaced(mask_text, wrong.part, wrong.by)));
    }
    CHECK_THROWS(std::invalid_argument, "is no mask", parse_mask("[]"));
    CHECK_THROWS(std::invalid_argument, "is no mask", parse_mask(""));
    CHECK_THROWS(std::invalid_argument, "is no mask", parse_mask(mask_text + std::string(1, '\0')));
    CHECK_THROWS(std::invalid_argument, "damaged", parse_mask(std::string(1 << 20, '[')));
}

TEST(masks_are_held_against_the_model) {
    const Mask mask = parse_mask(mask_text);
    RouterLayout other = layout();
    other.fingerprint = "beef";
    CHECK_THROWS(std::invalid_argument, "another model", (check_mask(mask, other), 0));
    other = layout();
    other.blocks = {0, 2, 9};
    CHECK_THROWS(std::invalid_argument, "another model", (check_mask(mask, other), 0));
    other = layout();
    other.n_experts = 9;
    CHECK_THROWS(std::invalid_argument, "another model", (check_mask(mask, other), 0));
    other = layout();
    other.top_k = {2, 3, 2};
    CHECK_THROWS(std::invalid_argument, "a token needs 3", (check_mask(mask, other), 0));
    other = layout();
    other.obstacle = "because";
    CHECK_THROWS(std::invalid_argument, "cannot be used: because", (check_mask(mask, other), 0));
    other = layout();
    other.variant_n_experts = 2;
    CHECK_THROWS(std::invalid_argument, "a variant of its own", (check_mask(mask, other), 0));
    other = layout();
    other.least_keep = 3;
    CHECK_THROWS(std::invalid_argument, "more than groups of them", (check_mask(mask, other), 0));
    other = layout();
    other.n_groups = 2;
    CHECK_THROWS(std::invalid_argument, "each of the 2 groups needs 2", (check_mask(mask, other), 0));
    const Mask uneven = parse_mask(
        R"({"format": "coe-native.expert-mask", "version": 1, "architecture": "olmoe", "fingerprint": "f00d",
            "expert_count": 8, "keep": 4, "layers": {"0": [0, 1, 4, 5], "2": [0, 1, 2, 7], "10": [2, 3, 6, 7]}})");
    check_mask(uneven, layout());
    CHECK_THROWS(std::invalid_argument, "groups of experts in block 2", (check_mask(uneven, other), 0));
    other = layout();
    other.architecture = other.fingerprint = "unknown";  // given sizes fit any model of them
    check_mask(mask, other);
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
    CHECK_THROWS(std::runtime_error, "no regular file", (coe::write_file(directory.string(), {1}), 0));
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
