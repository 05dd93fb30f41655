// The commands that steer: breakpoints, waiting, signals, the end.
#include <csignal>
#include <cstdio>
#include <cstdlib>

#include "block/exec/timer.h"
#include "block/filters/fault.h"
#include "tools/io/session.h"

namespace platter::io_tool {
namespace {

bool fail_to(std::string_view what, int code) {
  print("Could not {}: {}\n", what, errno_text(code));
  return false;
}

}  // namespace

Task<bool> run_break(Session& session, Arguments arguments) {
  FaultPoints* points = session.fault_points();
  if (points == nullptr) co_return fail_to("set breakpoint", ENOTSUP);
  const std::optional<FaultEvent> event = parse_fault_event(arguments.words[1]);
  if (!event) co_return fail_to("set breakpoint", ENOENT);
  points->suspend(arguments.words[2], *event);
  session.add_breakpoint(arguments.words[2]);
  co_return true;
}

Task<bool> run_remove_break(Session& session, Arguments arguments) {
  const std::string tag = arguments.words[1];
  const std::string what = fmt::format("remove breakpoint {}", tag);
  FaultPoints* points = session.fault_points();
  if (points == nullptr) co_return fail_to(what, ENOTSUP);
  session.print_reports();
  const bool suspended = points->is_suspended(tag);
  const bool unreached = session.take_breakpoint(tag);
  const Result<void> removed = points->remove_break(tag);
  if (suspended) print("blkdebug: Resuming request '{}'\n", tag);
  // As in qemu-io, a breakpoint that was reached is no more, although its request goes on.
  if (!removed || !unreached) co_return fail_to(what, ENOENT);
  co_return true;
}

Task<bool> run_resume(Session& session, Arguments arguments) {
  FaultPoints* points = session.fault_points();
  if (points == nullptr) co_return fail_to("resume request", ENOTSUP);
  const Result<void> resumed = points->resume(arguments.words[1]);
  if (!resumed) co_return fail_to("resume request", resumed.error().code());
  print("blkdebug: Resuming request '{}'\n", arguments.words[1]);
  co_return true;
}

Task<bool> run_wait_break(Session& session, Arguments arguments) {
  FaultPoints* points = session.fault_points();
  const std::string tag = arguments.words[1];
  const std::string what = fmt::format("wait for breakpoint {}", tag);
  if (points == nullptr) co_return fail_to(what, ENOTSUP);
  while (!points->is_suspended(tag)) {
    // Once nothing runs that could still reach it, say so instead of waiting for ever.
    if (session.running() == 0) {
      session.print_reports();
      co_return fail_to(what, ENOENT);
    }
    co_await sleep_for(std::chrono::microseconds(100));
  }
  session.print_reports();
  co_return true;
}

Task<bool> run_sleep(Session& session, Arguments arguments) {
  const char* text = arguments.words[1];
  char* end = nullptr;
  errno = 0;
  const long milliseconds = std::strtol(text, &end, 0);
  if (errno != 0 || end == text || *end != '\0' || milliseconds < 0) {
    print("{} is not a valid number\n", text);
    co_return false;
  }
  co_await sleep_for(std::chrono::milliseconds(milliseconds));
  session.print_reports();
  co_return true;
}

Task<bool> run_sigraise(Session&, Arguments arguments) {
  const std::optional<std::uint64_t> signal = read_number(arguments.words[1]);
  if (!signal) co_return false;
  if (*signal > static_cast<std::uint64_t>(NSIG)) {
    print("signal argument '{}' is too large to be a valid signal\n", arguments.words[1]);
    co_return false;
  }
  // A signal may end the process without any farewell: what was printed must be out by then.
  std::fflush(stdout);
  std::raise(static_cast<int>(*signal));
  co_return true;
}

Task<bool> run_abort(Session&, Arguments) {
  std::abort();
  co_return false;
}

Task<bool> run_quit(Session& session, Arguments) {
  session.quit();
  co_return true;
}

Task<bool> run_help(Session&, Arguments arguments) {
  if (arguments.count == 1) {
    for (const Command& command : commands()) print_summary(command, command.name);
    print("\nUse 'help commandname' for extended help.\n");
    co_return true;
  }
  const Command* command = find_command(arguments.words[1]);
  if (command == nullptr) {
    print("command {} not found\n", arguments.words[1]);
    co_return false;
  }
  print_summary(*command, arguments.words[1]);
  if (command->details != nullptr) put(command->details);
  co_return true;
}

}  // namespace platter::io_tool
