// llama.cpp's log while there are sessions: messages of a thread go to that thread's LogCapture, or else to
// the host, as before.
#pragma once

#include <string>

namespace coe {

// A claim on llama.cpp's process-wide log. While any lease lives, the log is ours; after the last one, it is
// the host's again. A session holds a lease as long as it runs, since the log may change only between leases.
class LogLease {
  public:
    LogLease();
    ~LogLease();
    LogLease(const LogLease&) = delete;
    LogLease& operator=(const LogLease&) = delete;
};

// Collects llama.cpp's messages in this thread instead of printing them. A lease must be held.
class LogCapture {
  public:
    LogCapture();
    ~LogCapture();
    LogCapture(const LogCapture&) = delete;
    LogCapture& operator=(const LogCapture&) = delete;

    void receive_error(const char* text);
    // Returns the first error, as one line.
    std::string reason() const;

  private:
    LogCapture* outer_;
    std::string first_error_;
};

}  // namespace coe
