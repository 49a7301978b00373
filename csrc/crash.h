// What a user reads when llama.cpp ends the process: one line. For programs that are ours alone, as a command
// line is; a library must not take over its host's signals.
#pragma once

#include <string>

namespace coe {

// From now on, a crash, an uncaught exception and ggml's own aborts end the process with status 1 and one
// line on standard error, which begins with `prefix`.
void report_crashes(const std::string& prefix);

// What that line is about: the model that is being run, by its path.
void set_crash_subject(const std::string& subject);

}  // namespace coe
