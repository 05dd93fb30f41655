// The command line of `platter run` as a checked value.
//
// Threads: pure functions.
// Errors: EINVAL naming the option, its value and what is allowed.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "block/base/error.h"

namespace platter::run {

inline constexpr const char* kDefaultFirmware = "/usr/share/seabios/bios-256k.bin";

enum class DiskBus : std::uint8_t { kPci, kMmio };
enum class CacheMode : std::uint8_t { kNone, kWriteback, kWritethrough, kUnsafe, kDirectsync };

struct DiskOptions {
  std::string filename;  // plain or "json:{...}", which node options are made into
  std::string name;      // the same as it was typed, for messages
  std::string format;    // empty: probe
  bool read_only = false;
  bool snapshot = false;  // writes go to a throw-away overlay
  bool discard = true;    // guest discards reach the image
  std::uint16_t queues = 1;
  CacheMode cache = CacheMode::kWriteback;
  DiskBus bus = DiskBus::kPci;
  std::string serial;
  std::string key_secret;  // id of the secret of an encrypted image; empty: none
};

// "FILE[,key=value...]", where ",," stands for a comma in FILE or a value. A FILE that begins with
// "driver=" is a list of node options.
Result<DiskOptions> parse_disk(std::string_view text);

enum class CpuChoice : std::uint8_t { kAuto, kHost, kBasic };

struct RunOptions {
  std::uint64_t memory = 256ULL << 20;  // bytes
  unsigned cpus = 1;
  CpuChoice cpu = CpuChoice::kAuto;
  std::optional<std::string> kernel;
  std::optional<std::string> initrd;
  std::string append;
  std::string firmware = kDefaultFirmware;
  std::vector<DiskOptions> disks;
  std::vector<std::string> objects;  // "secret,id=...", as the tools take them
  std::string serial = "stdio";
  std::optional<std::string> debug_log;  // file for the firmware's debug messages
  unsigned io_threads = 0;               // 0: see io_thread_count()
  bool probe = false;
  bool json = false;
};

inline constexpr unsigned kMaxIoThreads = 16;

// Threads for disk queues: as many as were asked for, else one for each queue of the busiest disk,
// but at most one for each of the host's processors (0: unknown) and kMaxIoThreads.
unsigned io_thread_count(const RunOptions& options, unsigned processors);

// What the command line asks for: to run, or to print help and stop with a code.
struct CommandLine {
  RunOptions options;
  std::optional<int> exit_code;  // set: print `text` (to stdout when 0, else to stderr) and stop
  std::string text;
};
// `program` is the name for help and messages; argv[0] is not looked at.
CommandLine parse_command_line(const std::string& program, int argc, const char* const* argv);

}  // namespace platter::run
