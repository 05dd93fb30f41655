// The progress line of -p, or of a SIGUSR1 without it.
// Threads: one; at most one Progress at a time (the signal is the process's).
#pragma once

#include <cstdint>

namespace platter::img {

class Progress {
 public:
  // `enabled`: -p without -q.
  explicit Progress(bool enabled);
  ~Progress();  // ends the line
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  // Prints when it is at least a percent further than what was last printed.
  void update(double percent);
  void update(std::uint64_t done, std::uint64_t total) {
    update(total == 0 ? 100.0 : 100.0 * static_cast<double>(done) / static_cast<double>(total));
  }
  void start() { update(0.0); }
  void finish() { update(100.0); }

 private:
  const bool enabled_;
  double printed_ = 0;
};

}  // namespace platter::img
