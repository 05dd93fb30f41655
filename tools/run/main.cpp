#include "tools/run/main.h"

#include <fmt/format.h>
#include <signal.h>

#include <cerrno>
#include <cstdio>
#include <string_view>

#include "block/crypto/secret.h"
#include "tools/run/end_signals.h"
#include "tools/run/machine.h"
#include "tools/run/options.h"
#include "tools/run/probe.h"

namespace platter::run {
namespace {

constexpr int kCouldNotStart = 1;
constexpr int kCouldNotClose = 4;

int fail_with(const std::string& program, int code, const std::string& message) {
  fmt::print(stderr, "{}: {}\n", program, message);
  return code;
}

// Writes an answer to standard output; gives `code`, or another one when it did not get there.
int answer(const std::string& program, int code, std::string_view text) {
  const bool written = std::fwrite(text.data(), 1, text.size(), stdout) == text.size();
  if (written && std::fflush(stdout) == 0) return code;
  return fail_with(program, code != 0 ? code : kCouldNotStart,
                   "could not write to standard output: " + errno_text(errno));
}

int probe(const std::string& program, bool json) {
  auto result = probe_kvm();
  if (!result) {
    const int code =
        json ? answer(program, kCouldNotStart, "{\"usable\": false}\n") : kCouldNotStart;
    return fail_with(program, code, result.error().message());
  }
  const double million = result->instructions_per_second / 1e6;
  if (json) {
    return answer(program, 0,
                  fmt::format("{{\"usable\": true, \"kind\": \"{}\", "
                              "\"million-instructions-per-second\": {:.3f}}}\n",
                              result->hardware ? "hardware" : "software", million));
  }
  if (result->hardware) {
    return answer(program, 0,
                  fmt::format("hardware: /dev/kvm runs guests on the processor ({:.0f} million "
                              "ring-0 instructions a second)\n",
                              million));
  }
  return answer(program, 0,
                fmt::format("software: /dev/kvm emulates ring 0 ({:.2f} million instructions a "
                            "second); stock kernels do not run here\n",
                            million));
}

// Ends by these are ours to handle, in the main thread; every thread inherits the mask.
void block_end_signals() {
  const sigset_t set = end_signals();
  ::pthread_sigmask(SIG_BLOCK, &set, nullptr);
  ::signal(SIGPIPE, SIG_IGN);
}

}  // namespace

int run_main(std::string program, int argc, char** argv) {
  const CommandLine line = parse_command_line(program, argc, argv);
  if (line.exit_code) {
    if (*line.exit_code == 0) return answer(program, 0, line.text);
    std::fwrite(line.text.data(), 1, line.text.size(), stderr);
    return *line.exit_code;
  }
  if (line.options.probe) return probe(program, line.options.json);

  for (const std::string& object : line.options.objects) {
    const Result<void> added = crypto::add_secret_object(object);
    if (!added) return fail_with(program, kCouldNotStart, added.error().message());
  }

  block_end_signals();
  auto machine = Machine::create(line.options);
  if (!machine) return fail_with(program, kCouldNotStart, machine.error().message());
  const Result<void> closed = (*machine)->run();
  const EndReason reason = (*machine)->control().reason();
  const std::string message = (*machine)->control().message();
  machine->reset();  // the terminal is itself again before the last words
  if (!message.empty()) fail_with(program, 0, message);
  if (!closed) return fail_with(program, kCouldNotClose, closed.error().message());
  return exit_code(reason);
}

}  // namespace platter::run
