// Reports of crashes of llama.cpp, as one line. Only for programs of our own, such as the command line: a
// library must not take over its host's signals.
#pragma once

#include <string>

namespace coe {

// Makes a crash, an uncaught exception and ggml's aborts end the process with status 1 and one line on
// standard error, which begins with `prefix`.
void report_crashes(const std::string& prefix);

// Sets the end of that line if a crash or an exception gave no reason. Empty: the advice for a program that
// was given a file.
void set_crash_advice(const std::string& advice);

// Sets a file descriptor to which a byte is written after that line. The process then ends after some
// seconds: in between, another thread can save its data and end the process itself. `release` is called in
// the crashed thread before it waits, to release what the other thread needs. -1: none.
void set_crash_listener(int descriptor, void (*release)());

// Gives the calling thread a stack for the handlers, so that an overflow of its own stack is reported too.
// For threads that run llama.cpp. Does nothing before `report_crashes`.
void prepare_thread_for_crashes();

// Sets the subject of that line: the path of the model that runs.
void set_crash_subject(const std::string& subject);

}  // namespace coe
