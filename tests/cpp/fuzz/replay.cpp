// Runs a fuzz target without a fuzzer: all seeds, then changed ones for some seconds. It sees no coverage, so
// it finds little that is new; it shows that what was found does not come back.
//
//     coe_fuzz_TARGET SECONDS SEED...
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <random>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

using Bytes = std::vector<uint8_t>;

Bytes read_file(const char* path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) {
        std::fprintf(stderr, "%s: cannot be read\n", path);
        std::exit(2);
    }
    return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

void run(const Bytes& input) {
    // Of exactly that size, so that a sanitizer sees a byte too many being read.
    const Bytes exact(input.begin(), input.end());
    LLVMFuzzerTestOneInput(exact.data(), exact.size());
}

class Mutator {
  public:
    Bytes change(Bytes bytes, const Bytes& other) {
        for (size_t n_changes = 1 + below(6); n_changes > 0; --n_changes) {
            const size_t at = below(bytes.size() + 1);
            const auto here = bytes.begin() + static_cast<std::ptrdiff_t>(at);
            switch (below(6)) {
                case 0:
                    bytes.resize(at);
                    break;
                case 1:
                    bytes.insert(here, static_cast<uint8_t>(random_()));
                    break;
                case 2:
                    bytes.insert(here, other.begin(),
                                 other.begin() + static_cast<std::ptrdiff_t>(below(other.size() + 1)));
                    break;
                case 3:
                    bytes.erase(here, here + static_cast<std::ptrdiff_t>(below(bytes.size() - at + 1)));
                    break;
                default:
                    overwrite(bytes, at);
            }
        }
        bytes.resize(std::min<size_t>(bytes.size(), 1 << 16));
        return bytes;
    }

    size_t below(size_t bound) { return static_cast<size_t>(random_() % bound); }

  private:
    void overwrite(Bytes& bytes, size_t at) {
        static constexpr uint64_t edges[] = {0,          1,          0x7f,       0x80,       0xff,
                                             0x7fffffff, 0x80000000, ~0ull >> 1, 1ull << 63, ~0ull};
        const uint64_t value = below(2) == 0 ? edges[below(std::size(edges))] : random_();
        for (size_t i = 0, n_bytes = size_t{1} << below(4); i < n_bytes && at + i < bytes.size(); ++i) {
            bytes[at + i] = static_cast<uint8_t>(value >> (8 * i));
        }
    }

    std::mt19937_64 random_{2026};
};

}  // namespace

int main(int argc, char** argv) {
    if (argc < 3) {
        std::fprintf(stderr, "usage: %s SECONDS SEED...\n", argv[0]);
        return 2;
    }
    std::vector<Bytes> seeds;
    for (int i = 2; i < argc; ++i) {
        seeds.push_back(read_file(argv[i]));
        run(seeds.back());
    }
    const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(std::atof(argv[1]));
    Mutator mutator;
    size_t n_runs = seeds.size();
    for (; std::chrono::steady_clock::now() < end; ++n_runs) {
        run(mutator.change(seeds[mutator.below(seeds.size())], seeds[mutator.below(seeds.size())]));
    }
    std::printf("%zu inputs\n", n_runs);
    return 0;
}
