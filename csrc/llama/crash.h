// What a user reads when llama.cpp ends the process: one line. For programs that are ours alone, as a command
// line is; a library must not take over its host's signals.
#pragma once

#include <string>

namespace coe {

// From now on, a crash, an uncaught exception and ggml's own aborts end the process with status 1 and one
// line on standard error, which begins with `prefix`.
void report_crashes(const std::string& prefix);

// What that line says at its end, where a crash or an exception left no reason; empty for the advice that
// fits a program which was given a file.
void set_crash_advice(const std::string& advice);

// When the line has been written, a byte is written to `descriptor`, and the process ends only after some
// seconds: in between, another thread can save what there is to save, and end the process itself. -1 for
// none. Not on Windows.
void set_crash_listener(int descriptor);

// For threads that run llama.cpp: gives the calling one a stack for the handlers, so that the overflow of its
// own is reported too. Does nothing before `report_crashes`.
void prepare_thread_for_crashes();

// What that line is about: the model that is being run, by its path.
void set_crash_subject(const std::string& subject);

}  // namespace coe
