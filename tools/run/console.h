// Console: the user's side of the serial port: standard input and output, a file, or nothing.
//
// On a terminal the input is raw, and Ctrl-A is a prefix: X ends the machine, Ctrl-A sends itself,
// anything else is sent as it is. Input that is no terminal is passed on untouched.
//
// Threads: write() from vCPU threads (the serial port's lock keeps them apart); the rest from the
// main thread.
// Ownership: restores the terminal on destruction.
// Errors: a file that cannot be opened is named. Output that cannot be written is dropped: the
// guest goes on.
#pragma once

#include <termios.h>

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "block/base/error.h"
#include "block/base/unique_fd.h"

namespace platter::run {

// What a stretch of typed bytes means.
struct Typed {
  std::vector<std::byte> for_guest;
  bool quit = false;
};

// Takes the Ctrl-A prefix out of what a terminal sends; keeps the state between calls.
class EscapeFilter {
 public:
  Typed filter(std::span<const std::byte> input);

 private:
  bool prefix_seen_ = false;
};

class Console {
 public:
  // `target`: "stdio", "none", or "file:PATH".
  static Result<std::unique_ptr<Console>> open(const std::string& target);
  ~Console();
  Console(const Console&) = delete;
  Console& operator=(const Console&) = delete;

  // The machine starts: what an earlier one has left in the file goes. (Not before, as this one may
  // not come to start.)
  void begin();
  void write(std::byte byte);

  bool is_terminal() const { return raw_; }
  // Descriptor to wait on for input, -1 when there is none (any more).
  int input_fd() const { return input_; }
  // Reads what is there, at most `room` (> 0) bytes; at the end of input input_fd() becomes -1.
  Typed read(std::size_t room);

 private:
  Console() = default;
  int input_ = -1;
  int output_ = -1;
  UniqueFd file_;
  bool raw_ = false;
  termios saved_{};
  EscapeFilter escape_;
};

}  // namespace platter::run
