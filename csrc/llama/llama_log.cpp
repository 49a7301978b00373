#include "llama/llama_log.h"

#include <algorithm>
#include <cstddef>
#include <mutex>

#include "llama.h"

namespace coe {

namespace {

std::mutex leases;
size_t n_leases = 0;
// The host's log; read without the mutex, because it changes only while no session can log.
ggml_log_callback host_log = nullptr;
void* host_data = nullptr;

thread_local LogCapture* listener = nullptr;

void receive(ggml_log_level level, const char* text, void*) {
    if (listener == nullptr) {
        if (host_log != nullptr) {
            host_log(level, text, host_data);
        }
    } else if (level == GGML_LOG_LEVEL_ERROR) {
        listener->receive_error(text);
    }
}

}  // namespace

LogLease::LogLease() {
    const std::lock_guard<std::mutex> lock(leases);
    if (n_leases++ == 0) {
        llama_log_get(&host_log, &host_data);
        llama_log_set(&receive, nullptr);
    }
}

LogLease::~LogLease() {
    const std::lock_guard<std::mutex> lock(leases);
    if (--n_leases == 0) {
        llama_log_set(host_log, host_data);
    }
}

LogCapture::LogCapture() : outer_(listener) { listener = this; }
LogCapture::~LogCapture() { listener = outer_; }

void LogCapture::receive_error(const char* text) {
    if (first_error_.empty()) {
        first_error_ = text;
    }
}

std::string LogCapture::reason() const {
    std::string line = first_error_.substr(0, first_error_.find('\n'));
    // It may quote a name of a damaged file.
    std::replace_if(line.begin(), line.end(), [](char c) { return c < ' ' || c > '~'; }, '?');
    return line.empty() ? "llama.cpp gave no reason" : line;
}

}  // namespace coe
