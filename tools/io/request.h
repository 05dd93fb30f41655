// What the commands that read, write and discard share: their options, how a request is timed, and
// how its outcome is reported. What is wrong with a command line is said on stdout.
//
// Threads: everything runs on one executor's thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "block/base/error.h"
#include "block/exec/task.h"
#include "tools/io/arguments.h"
#include "tools/io/report.h"

namespace platter::io_tool {

struct ReadOptions {
  ReportStyle style;
  bool vm_state = false;                       // -b
  bool inject = false;                         // -i; what follows it has not been looked at
  bool dump = false;                           // -v
  std::optional<std::byte> pattern;            // -P
  std::optional<std::uint64_t> verify_offset;  // -s, bytes from the start of what is read
  std::optional<std::uint64_t> verify_length;  // -l, bytes
};
// `letters` are those that the command has, as for getopt(). nullopt: that has been said.
std::optional<ReadOptions> read_read_options(const Arguments& arguments, const char* letters);

struct WriteOptions {
  ReportStyle style;
  bool vm_state = false;             // -b
  bool compressed = false;           // -c
  bool fua = false;                  // -f
  bool inject = false;               // -i; what follows it has not been looked at
  bool no_fallback = false;          // -n
  bool unmap = false;                // -u
  bool zeroes = false;               // -z
  const char* source = nullptr;      // -s: a file whose bytes are repeated
  std::optional<std::byte> pattern;  // -P

  std::byte fill() const { return pattern.value_or(kDefaultPattern); }
};
std::optional<WriteOptions> read_write_options(const Arguments& arguments, const char* letters);

// "off len [len..]" after the options.
struct VectorRequest {
  std::uint64_t offset = 0;
  RequestVector vector;
};
std::optional<VectorRequest> read_vector_request(const Arguments& arguments, bool misaligned);

struct Outcome {
  Result<void> result;
  Clock::duration elapsed{};
};
// The outcome of what `start()` starts, unless it is not allowed. `start` must have a name.
template <class Start>
Task<Outcome> timed(Result<void> allowed, Start start) {
  const Clock::time_point began = Clock::now();
  Outcome outcome{.result = std::move(allowed)};
  if (outcome.result) {
    Task<Result<void>> running = start();
    outcome.result = co_await running;
  }
  outcome.elapsed = Clock::now() - began;
  co_return outcome;
}

// Says how reading `bytes` at `offset` went. False: it failed, or they are not as -P says.
bool report_read(std::string_view command, const Outcome& outcome, std::span<const std::byte> bytes,
                 std::uint64_t offset, const ReadOptions& options);
// The same of what changes bytes; `done` is the verb for it, "wrote" or "discard".
bool report_change(std::string_view command, std::string_view done, const Outcome& outcome,
                   std::uint64_t offset, std::uint64_t length, ReportStyle style);

}  // namespace platter::io_tool
