#include "llama/backends.h"

#include <mutex>
#include <stdexcept>

#include "llama.h"
#include "llama/llama_log.h"

namespace coe {

void start_backends() {
    static std::once_flag once;
    std::call_once(once, [] {
        const LogLease lease;
        const LogCapture quiet;
        ggml_backend_load_all();
        llama_backend_init();
    });
}

// The devices are not added to llama.cpp's own list, from which every later model would use them.
std::vector<ggml_backend_dev_t> rpc_devices(const std::string& endpoint) {
    const ggml_backend_reg_t rpc = ggml_backend_reg_by_name("RPC");
    if (rpc == nullptr) {
        throw std::runtime_error("this build of llama.cpp cannot use an rpc-server");
    }
    const auto add_server = reinterpret_cast<ggml_backend_reg_t (*)(const char*)>(
        ggml_backend_reg_get_proc_address(rpc, "ggml_backend_rpc_add_server"));
    const ggml_backend_reg_t server = add_server(endpoint.c_str());
    std::vector<ggml_backend_dev_t> devices;
    for (size_t i = 0; server != nullptr && i < ggml_backend_reg_dev_count(server); ++i) {
        devices.push_back(ggml_backend_reg_dev_get(server, i));
    }
    return devices;
}

std::vector<ggml_backend_dev_t> local_gpus() {
    for (const auto kind : {GGML_BACKEND_DEVICE_TYPE_GPU, GGML_BACKEND_DEVICE_TYPE_IGPU}) {
        std::vector<ggml_backend_dev_t> devices;
        for (size_t i = 0; i < ggml_backend_dev_count(); ++i) {
            if (ggml_backend_dev_type(ggml_backend_dev_get(i)) == kind) {
                devices.push_back(ggml_backend_dev_get(i));
            }
        }
        if (!devices.empty()) {
            return devices;
        }
    }
    return {};
}

std::vector<DeviceFacts> describe_devices() {
    start_backends();
    std::vector<DeviceFacts> facts;
    for (size_t i = 0; i < ggml_backend_dev_count(); ++i) {
        const ggml_backend_dev_t device = ggml_backend_dev_get(i);
        DeviceFacts& fact = facts.emplace_back();
        fact.name = ggml_backend_dev_name(device);
        fact.description = ggml_backend_dev_description(device);
        fact.backend = ggml_backend_reg_name(ggml_backend_dev_backend_reg(device));
        ggml_backend_dev_memory(device, &fact.free_memory, &fact.total_memory);
    }
    return facts;
}

bool has_rpc() {
    start_backends();
    return ggml_backend_reg_by_name("RPC") != nullptr;
}

bool has_amx() {
    start_backends();
    static const bool found = [] {
        const ggml_backend_dev_t cpu = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
        const auto extra_buffers =
            reinterpret_cast<ggml_backend_dev_get_extra_bufts_t>(ggml_backend_reg_get_proc_address(
                ggml_backend_dev_backend_reg(cpu), "ggml_backend_dev_get_extra_bufts"));
        ggml_backend_buffer_type_t* kind = extra_buffers == nullptr ? nullptr : extra_buffers(cpu);
        while (kind != nullptr && *kind != nullptr && std::string(ggml_backend_buft_name(*kind)) != "AMX") {
            ++kind;
        }
        return kind != nullptr && *kind != nullptr;
    }();
    return found;
}

size_t free_gpu_memory() {
    start_backends();
    size_t sum = 0;
    for (ggml_backend_dev_t device : local_gpus()) {
        size_t n_free = 0;
        size_t n_total = 0;
        ggml_backend_dev_memory(device, &n_free, &n_total);
        sum += n_free;
    }
    return sum;
}

size_t count_rpc_devices(const std::string& endpoint) {
    start_backends();
    return rpc_devices(endpoint).size();
}

}  // namespace coe
