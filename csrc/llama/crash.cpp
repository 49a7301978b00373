#include "llama/crash.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <mutex>
#include <tuple>
#include <vector>

#include "ggml.h"

#if !defined(_WIN32)
#include <unistd.h>
#endif

namespace coe {

namespace {

// A text without allocations, which signal handlers must not make.
struct Text {
    std::array<char, 1024> bytes{};
    size_t length = 0;

    void set(const std::string& text) {
        bytes.fill('\0');
        length = 0;
        add(text.c_str(), bytes.size() - 1);
    }
    void add(const char* text, size_t most = std::tuple_size<decltype(bytes)>::value) {
        for (; *text != '\0' && length < std::min(most, bytes.size()); ++text) {
            bytes[length++] = *text == '\n' || *text == '\r' ? ' ' : *text;
        }
    }
};

Text line_prefix;
Text line_subject;
Text line_advice;  // empty: the file may be damaged

volatile std::sig_atomic_t listener = -1;
std::atomic<void (*)()> release_for_listener{nullptr};
constexpr unsigned listener_seconds = 20;

void write_text(const char* text, size_t length) {
#if defined(_WIN32)
    std::fwrite(text, 1, length, stderr);
#else
    static_cast<void>(!write(STDERR_FILENO, text, length));
#endif
}

[[noreturn]] void end(const Text& text) {
    for (const Text* part :
         {static_cast<const Text*>(&line_prefix), static_cast<const Text*>(&line_subject), &text}) {
        write_text(part->bytes.data(), part->length);
    }
    write_text("\n", 1);
#if !defined(_WIN32)
    if (listener >= 0 && write(listener, "x", 1) == 1) {
        if (void (*release)() = release_for_listener) {
            release();
        }
        sleep(listener_seconds);
    }
#endif
    std::_Exit(1);
}

constexpr char maybe_damaged[] = "; the file may be damaged: download or make it again";

const char* advice() { return line_advice.length > 0 ? line_advice.bytes.data() : maybe_damaged; }

[[noreturn]] void end(const char* what) {
    Text text;
    text.add("llama.cpp ");
    text.add(what);
    text.add(advice());
    end(text);
}

// Removes the directory of the source file that ggml's messages begin with.
const char* without_directory(const char* message) {
    const char* rest = message;
    for (const char* at = message; *at != '\0' && *at != ':'; ++at) {
        if (*at == '/' || *at == '\\') {
            rest = at + 1;
        }
    }
    return rest;
}

constexpr size_t longest_message = 700;  // leaves room for advice

void on_signal(int number) {
    const char* what = number == SIGSEGV   ? "crashed (segmentation fault)"
                       : number == SIGFPE  ? "crashed (division by zero)"
                       : number == SIGABRT ? "gave up (abort)"
                                           : "crashed";
#if defined(SIGBUS)
    if (number == SIGBUS) {
        Text text;
        text.add(
            "a file was truncated while it was read, or its disk was removed; restore it and run this again");
        end(text);
    }
#endif
    end(what);
}

void on_abort(const char* message) {
    const bool memory =
        std::strstr(message, "out of memory") != nullptr || std::strstr(message, "alloc") != nullptr;
    Text text;
    text.add("llama.cpp gave up: ");
    text.add(without_directory(message), longest_message);
    text.add(memory ? "; halve --batch or --ctx to need about half of that memory, or use --n-cpu-moe to "
                      "free GPU memory"
                    : advice());
    end(text);
}

void on_terminate() { end("ended by an exception"); }

std::atomic<bool> reports_crashes{false};

#if !defined(_WIN32)
// A thread's stack for signal handlers, for the lifetime of the thread.
class HandlerStack {
  public:
    HandlerStack() {
        stack_t alternative{};
        alternative.ss_sp = bytes_.data();
        alternative.ss_size = bytes_.size();
        sigaltstack(&alternative, nullptr);
    }
    ~HandlerStack() {
        stack_t none{};
        none.ss_flags = SS_DISABLE;
        sigaltstack(&none, nullptr);
    }
    HandlerStack(const HandlerStack&) = delete;
    HandlerStack& operator=(const HandlerStack&) = delete;

  private:
    std::vector<char> bytes_ = std::vector<char>(65536);
};
#endif

}  // namespace

void prepare_thread_for_crashes() {
#if !defined(_WIN32)
    if (reports_crashes) {
        static thread_local const HandlerStack stack;
        static_cast<void>(stack);
    }
#endif
}

void report_crashes(const std::string& prefix) {
    line_prefix.set(prefix);
    ggml_set_abort_callback(&on_abort);
    std::set_terminate(&on_terminate);
#if defined(_WIN32)
    for (const int number : {SIGSEGV, SIGFPE, SIGABRT, SIGILL}) {
        std::signal(number, &on_signal);
    }
#else
    reports_crashes = true;
    prepare_thread_for_crashes();
    struct sigaction action{};
    action.sa_handler = &on_signal;
    action.sa_flags = SA_ONSTACK;
    for (const int number : {SIGSEGV, SIGFPE, SIGABRT, SIGILL, SIGBUS}) {
        sigaction(number, &action, nullptr);
    }
#endif
}

void set_crash_advice(const std::string& advice) { line_advice.set(advice); }

void set_crash_listener(int descriptor, void (*release)()) {
    release_for_listener = release;
    listener = descriptor;
}

void set_crash_subject(const std::string& subject) {
    static std::mutex one_at_a_time;
    const std::lock_guard<std::mutex> lock(one_at_a_time);
    line_subject.set(subject + ": ");
}

}  // namespace coe
