#include <sched.h>

#include <algorithm>
#include <csignal>
#include <string_view>

#include "tools/img/cancel.h"
#include "tools/img/commands.h"
#include "tools/img/common.h"
#include "tools/tools.h"

namespace platter::img {
namespace {

struct Command {
  std::string_view name;
  int (*run)(int argc, char** argv);
};

constexpr Command kCommands[] = {
    {"amend", run_amend},     {"bench", run_bench},   {"bitmap", run_bitmap},
    {"check", run_check},     {"commit", run_commit}, {"compare", run_compare},
    {"convert", run_convert}, {"create", run_create}, {"dd", run_dd},
    {"info", run_info},       {"map", run_map},       {"measure", run_measure},
    {"rebase", run_rebase},   {"resize", run_resize}, {"snapshot", run_snapshot},
    {"stream", run_stream},
};

// Says that this work is not interactive: a thread that is woken then waits for the one that wakes
// it to finish, which completes requests many at a time (up to a third less CPU time for queued
// O_DIRECT writes), and the guests on this host come first. A policy that the user chose stays.
// Threads inherit it, so it is set before there are any.
void become_batch_work() {
  if (sched_getscheduler(0) != SCHED_OTHER) return;
  const sched_param param{};
  // Where it is refused, the default serves as well.
  static_cast<void>(sched_setscheduler(0, SCHED_BATCH, &param));
}

}  // namespace

int run_img(std::string program, int argc, char** argv) {
  set_program(std::move(program));
  become_batch_work();
  // A limit on file sizes is an error like a full disk, not a reason to die half-way.
  std::signal(SIGXFSZ, SIG_IGN);
  // Neither is a reader of the output that wants no more of it.
  std::signal(SIGPIPE, SIG_IGN);
  static constexpr Flag kFlags[] = {{'h', "help"}, {'V', "version"}, {'T', "trace", true}};

  // Options of the tool stand in front of the command; the command's own come after it.
  int first = 1;
  while (first < argc && argv[first][0] == '-' && argv[first][1] != '\0') {
    const bool separate_value =
        std::string_view(argv[first]) == "-T" || std::string_view(argv[first]) == "--trace";
    first += separate_value ? 2 : 1;
  }
  const int standard = std::min(first, argc);
  Arguments arguments(standard, argv, kFlags);
  while (const std::optional<Option> option = arguments.next()) {
    if (option->id == 'h') return print_help();
    if (option->id == 'V') return print_version();
  }
  if (arguments.failed()) return 1;
  if (first >= argc) return usage_error("Not enough arguments");

  const std::string_view name = argv[first];
  for (const Command& command : kCommands) {
    if (command.name != name) continue;
    const int status = command.run(argc - first, argv + first);
    Cancellation::die_if(status);
    return status;
  }
  return usage_error("Command not found: {}", name);
}

}  // namespace platter::img
