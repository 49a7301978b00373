#include "model/fingerprint.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <vector>

#include "base/sha256.h"
#include "ggml.h"

namespace coe {

namespace {

// A router's values in F32; nothing where ggml cannot convert their type.
std::optional<std::vector<float>> router_values(const GgufTensor& router, const std::vector<uint8_t>& bytes) {
    if (router.type >= GGML_TYPE_COUNT) {
        return std::nullopt;
    }
    const auto* traits = ggml_get_type_traits(static_cast<ggml_type>(router.type));
    if (traits->to_float == nullptr) {
        return std::nullopt;
    }
    std::vector<float> values(router.shape[0] * router.shape[1]);
    traits->to_float(bytes.data(), values.data(), static_cast<int64_t>(values.size()));
    return values;
}

// docs/formats.md specifies the bytes. `by_value`: routers of other types count as what they are in F32.
std::string find_fingerprint(const ModelFiles& files, const RouterLayout& layout, bool by_value,
                             const Hasher& digest) {
    const auto add = [&](const std::string& text) { digest.update(text.c_str(), text.size() + 1); };
    add(layout.architecture);
    add(std::to_string(layout.n_blocks));
    add(std::to_string(layout.shape.n_experts));
    add(std::to_string(*std::max_element(layout.top_k.begin(), layout.top_k.end())));
    for (const MoeLayer& layer : layout.layers) {
        const GgufFile& file = *files[layer.router.file];
        const GgufTensor& router = file.header().tensors[layer.router.index];
        const std::vector<uint8_t> bytes = file.read(router);
        const bool converts = by_value && router.type != GGML_TYPE_F32;
        const auto values = converts ? router_values(router, bytes) : std::nullopt;
        add(router.name);
        add("(" + std::to_string(router.shape[0]) + ", " + std::to_string(router.shape[1]) + ")");
        add(std::to_string(values ? static_cast<uint32_t>(GGML_TYPE_F32) : router.type));
        if (values) {
            digest.update(values->data(), values->size() * sizeof(float));
        } else {
            digest.update(bytes.data(), bytes.size());
        }
    }
    return digest.hex();
}

}  // namespace

Hasher make_hasher() {
    const auto digest = std::make_shared<Sha256>();
    return {[digest](const void* data, size_t n_bytes) { digest->update(data, n_bytes); },
            [digest] { return digest->hex(); }};
}

void find_fingerprints(const ModelFiles& files, RouterLayout& layout, const std::function<Hasher()>& make) {
    const auto is_f32 = [&](const MoeLayer& layer) {
        return files[layer.router.file]->header().tensors[layer.router.index].type == GGML_TYPE_F32;
    };
    const bool all_f32 = std::all_of(layout.layers.begin(), layout.layers.end(), is_f32);
    layout.fingerprint = find_fingerprint(files, layout, true, make());
    layout.old_fingerprint = all_f32 ? "" : find_fingerprint(files, layout, false, make());
}

RouterLayout read_router_layout(const std::string& path) {
    const ModelFiles files = open_model(path);
    RouterLayout layout = find_router_layout(files);
    find_fingerprints(files, layout);
    return layout;
}

}  // namespace coe
