// llama.cpp's log while sessions live: what it says in a thread goes to whoever listens in that thread, and
// else to the host, as before.
#pragma once

#include <string>

namespace coe {

// While one lives, llama.cpp's process-wide log is ours; when the last has gone, the host's is back. Only
// that changes what all threads read, so a session holds one for as long as it runs anything.
class LogLease {
  public:
    LogLease();
    ~LogLease();
    LogLease(const LogLease&) = delete;
    LogLease& operator=(const LogLease&) = delete;
};

// Keeps what llama.cpp reports in this thread, and prints nothing of it; for as long as a lease is held.
class LogCapture {
  public:
    LogCapture();
    ~LogCapture();
    LogCapture(const LogCapture&) = delete;
    LogCapture& operator=(const LogCapture&) = delete;

    void receive_error(const char* text);
    // The first error, as one line.
    std::string reason() const;

  private:
    LogCapture* outer_;
    std::string first_error_;
};

}  // namespace coe
