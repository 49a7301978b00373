#include "llama/crash.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <mutex>
#include <tuple>
#include <vector>

#include "ggml.h"

#if defined(_WIN32)
#include <io.h>

#include "base/win32.h"
#else
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

constexpr int standard_error = 2;

#if defined(_WIN32)
bool write_text(int descriptor, const char* text, size_t length) {
    return _write(descriptor, text, static_cast<unsigned>(length)) == static_cast<int>(length);
}

void wait_for_listener() { Sleep(1000 * listener_seconds); }
#else
bool write_text(int descriptor, const char* text, size_t length) {
    return write(descriptor, text, length) == static_cast<ssize_t>(length);
}

void wait_for_listener() { sleep(listener_seconds); }
#endif

[[noreturn]] void end(const Text& text) {
    for (const Text* part :
         {static_cast<const Text*>(&line_prefix), static_cast<const Text*>(&line_subject), &text}) {
        write_text(standard_error, part->bytes.data(), part->length);
    }
    write_text(standard_error, "\n", 1);
    if (listener >= 0 && write_text(listener, "x", 1)) {
        if (void (*release)() = release_for_listener) {
            release();
        }
        wait_for_listener();
    }
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

[[noreturn]] void on_signal(int number) {
    end(number == SIGSEGV   ? "crashed (segmentation fault)"
        : number == SIGFPE  ? "crashed (division by zero)"
        : number == SIGABRT ? "gave up (abort)"
                            : "crashed");
}

// Ends after a mapped file could not be read.
[[noreturn]] void on_lost_file() {
    Text text;
    text.add(
        "a file was truncated while it was read, or its disk was removed; restore it and run this again");
    end(text);
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

[[noreturn]] void on_terminate() { end("ended by an exception"); }

std::atomic<bool> reports_crashes{false};

// Bytes of stack for the handlers, which run when a thread may have used up its own.
constexpr unsigned handler_stack = 65536;

#if defined(_WIN32)
// Keeps a part of a thread's stack for the handlers, for the lifetime of the thread.
struct HandlerStack {
    HandlerStack() {
        ULONG bytes = handler_stack;
        SetThreadStackGuarantee(&bytes);
    }
};

LPTOP_LEVEL_EXCEPTION_FILTER other_filter = nullptr;

// Windows has signals and a terminate handler too, but the C runtime calls those that the crashed thread
// itself has set, and no others. This is called for all threads.
LONG WINAPI on_exception(EXCEPTION_POINTERS* raised) {
    constexpr DWORD thrown_by_cpp = 0xE06D7363;
    switch (raised->ExceptionRecord->ExceptionCode) {
        case EXCEPTION_ACCESS_VIOLATION:
        case EXCEPTION_STACK_OVERFLOW:
            on_signal(SIGSEGV);
        case EXCEPTION_INT_DIVIDE_BY_ZERO:
            on_signal(SIGFPE);
        case EXCEPTION_ILLEGAL_INSTRUCTION:
            on_signal(SIGILL);
        case EXCEPTION_IN_PAGE_ERROR:
            on_lost_file();
        case thrown_by_cpp:
            on_terminate();
        default:
            return other_filter == nullptr ? EXCEPTION_CONTINUE_SEARCH : other_filter(raised);
    }
}

void catch_crashes() {
    const LPTOP_LEVEL_EXCEPTION_FILTER before = SetUnhandledExceptionFilter(&on_exception);
    other_filter = before == &on_exception ? other_filter : before;
    std::signal(SIGABRT, &on_signal);  // for all threads
}
#else
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
    std::vector<char> bytes_ = std::vector<char>(handler_stack);
};

void catch_crashes() {
    struct sigaction action{};
    action.sa_flags = SA_ONSTACK;
    action.sa_handler = [](int) { on_lost_file(); };
    sigaction(SIGBUS, &action, nullptr);
    action.sa_handler = &on_signal;
    for (const int number : {SIGSEGV, SIGFPE, SIGABRT, SIGILL}) {
        sigaction(number, &action, nullptr);
    }
}
#endif

}  // namespace

void prepare_thread_for_crashes() {
    if (reports_crashes) {
        static thread_local const HandlerStack stack;
        static_cast<void>(stack);
    }
}

void report_crashes(const std::string& prefix) {
    line_prefix.set(prefix);
    ggml_set_abort_callback(&on_abort);
    std::set_terminate(&on_terminate);
    reports_crashes = true;
    prepare_thread_for_crashes();
    catch_crashes();
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
