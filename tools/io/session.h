// Session: what one run of `platter io` works on: the open image, the requests that aio_read and
// aio_write have started, the breakpoints that were set; and the commands that work on it.
//
// Threads: everything runs on one executor's thread.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "block/base/error.h"
#include "block/exec/executor.h"
#include "block/exec/sync.h"
#include "block/exec/task.h"
#include "block/node/graph.h"
#include "tools/io/arguments.h"
#include "tools/io/report.h"

namespace platter {
class FaultPoints;
}

namespace platter::io_tool {

class Session {
 public:
  explicit Session(std::string program) : program_(std::move(program)) {}

  // "PROGRAM: text" on stderr, after what stdout still holds.
  void complain(std::string_view text) const;
  // The same for each failure in it, with hints on lines of their own.
  void complain(const Error& error) const;

  bool is_open() const { return static_cast<bool>(image_); }
  BlockNode& node() const { return *image_; }
  // The image itself, when a filter that was put over it keeps what is read from backing images.
  BlockNode& image() const { return copy_on_read_ ? *image_->driver().filtered() : *image_; }
  bool copy_on_read() const { return copy_on_read_; }
  // Takes over an open image; there is none yet.
  void adopt(Edge image, bool copy_on_read) {
    image_ = std::move(image);
    copy_on_read_ = copy_on_read;
  }
  // Lets what halts go on, waits for what runs, closes the image. False: the error was reported.
  Task<bool> close();
  // Adds rights to those that the image was opened with. False: refused and reported.
  Task<bool> need_permissions(std::uint32_t rights);
  Task<Result<void>> set_permissions(Permissions permissions) {
    return image_.set_permissions(permissions);
  }
  const Permissions& permissions() const { return image_.permissions(); }

  // EIO, as qemu-io has it, for what does not lie within the disk.
  Result<void> check_range(std::uint64_t offset, std::uint64_t length) const;

  bool misaligned() const { return misaligned_; }
  void set_misaligned() { misaligned_ = true; }

  // Runs `request` beside the commands that follow. It reports with post().
  void spawn(Task<void> request) { requests_.spawn(std::move(request)); }
  // Keeps a finished request's report until the next place where reports are printed.
  void post(std::function<void()> report) { reports_.push_back(std::move(report)); }
  std::size_t running() const { return requests_.running(); }
  Task<void> wait_for_requests() { return requests_.join(); }
  // Prints the reports of requests that have finished, and which ones have been halted since.
  void print_reports();
  // Says which requests have reached a breakpoint since the last time.
  void note_halted();

  // The fault points below the image; nullptr: none.
  FaultPoints* fault_points() const;
  void add_breakpoint(std::string tag) { breakpoints_.push_back(std::move(tag)); }
  // Whether a breakpoint of that tag has not been reached yet; it is forgotten.
  bool take_breakpoint(std::string_view tag);

  // EEXIST: there is an object of that name already.
  Result<void> add_object(std::string id);

  bool quitting() const { return quitting_; }
  void quit() { quitting_ = true; }

  const std::string& program() const { return program_; }

 private:
  const std::string program_;
  Edge image_;
  bool copy_on_read_ = false;
  bool misaligned_ = false;
  bool quitting_ = false;
  TaskScope requests_;
  std::vector<std::function<void()>> reports_;
  std::vector<std::string> breakpoints_;  // set and not yet reached
  std::vector<std::string> objects_;
  std::vector<std::string> halted_;  // reached; may have gone on since
};

// A command: `false` is what makes the program's exit status 1.
using CommandFunction = Task<bool> (*)(Session& session, Arguments arguments);

struct Command {
  std::string_view name;
  std::string_view alias;  // empty: none
  CommandFunction run;
  int least_arguments;
  int most_arguments;  // -1: any number; the command itself checks
  bool works_closed;   // needs no open image
  std::uint32_t permissions;
  const char* synopsis;  // its arguments; nullptr: takes none
  const char* summary;
  const char* details;  // shown by `help NAME`; nullptr: the summary is all
};

// All commands, sorted by name.
std::span<const Command> commands();
const Command* find_command(std::string_view name);
// "read [-bCqv] ... off len -- reads ..."; `name` as the user spelled it.
void print_summary(const Command& command, std::string_view name);
// The summary of the command that `arguments` belong to, after a usage error; gives false.
bool usage_error(const Arguments& arguments);

// Splits a line into words and runs it. An empty line does nothing.
Task<bool> run_line(Session& session, std::string line);

// read_write.cpp
Task<bool> run_read(Session& session, Arguments arguments);
Task<bool> run_write(Session& session, Arguments arguments);
// vectored.cpp
Task<bool> run_readv(Session& session, Arguments arguments);
Task<bool> run_writev(Session& session, Arguments arguments);
// aio.cpp
Task<bool> run_aio_read(Session& session, Arguments arguments);
Task<bool> run_aio_write(Session& session, Arguments arguments);
Task<bool> run_aio_flush(Session& session, Arguments arguments);
// image.cpp
Task<bool> run_discard(Session& session, Arguments arguments);
Task<bool> run_flush(Session& session, Arguments arguments);
Task<bool> run_truncate(Session& session, Arguments arguments);
Task<bool> run_length(Session& session, Arguments arguments);
// describe.cpp
Task<bool> run_info(Session& session, Arguments arguments);
Task<bool> run_alloc(Session& session, Arguments arguments);
Task<bool> run_map(Session& session, Arguments arguments);
// control.cpp
Task<bool> run_break(Session& session, Arguments arguments);
Task<bool> run_remove_break(Session& session, Arguments arguments);
Task<bool> run_resume(Session& session, Arguments arguments);
Task<bool> run_wait_break(Session& session, Arguments arguments);
Task<bool> run_sleep(Session& session, Arguments arguments);
Task<bool> run_sigraise(Session& session, Arguments arguments);
Task<bool> run_abort(Session& session, Arguments arguments);
Task<bool> run_quit(Session& session, Arguments arguments);
Task<bool> run_help(Session& session, Arguments arguments);
// open.cpp
Task<bool> run_open(Session& session, Arguments arguments);
Task<bool> run_close(Session& session, Arguments arguments);
Task<bool> run_reopen(Session& session, Arguments arguments);

}  // namespace platter::io_tool
