// The rig: records what an operation does to the disk below the image, and tries the states in
// which a power cut could leave that disk.
//
// Threads: one.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "block/exec/executor.h"
#include "powercut/operation.h"
#include "powercut/state_disk.h"

namespace platter::powercut {

// Runs a coroutine function's Task to its end. One executor for all: a ring for each state would
// cost more than the state.
template <class Start>
auto run(Start&& start) {
  static const std::unique_ptr<Executor> executor = std::move(*Executor::create());
  return executor->block_on(std::forward<Start>(start));
}

// The disks of one try, as nodes "powercut-0" (the image) and "powercut-1" (what backs it, for
// operations that change that too). Nodes live as long as this.
class Grounds {
 public:
  void add(NodePtr node);
  void clear() { edges_.clear(); }

 private:
  std::vector<Edge> edges_;
};
std::string ground_name(unsigned disk);
// The passphrases kOldKey and kNewKey, as secrets of these names.
void make_secrets();
unsigned disks_of(const Operation& operation);
// Options that open the image (or the image that backs it) over these nodes.
std::string top_options(const Operation& operation, std::string_view secret = kOldKey);
std::string base_options();
Task<Result<Edge>> open_image(std::string options, bool writable, bool for_check = false);

// Makes the images of an operation, and what is on them before it, on disks in memory; the backing
// disks that do not change exist from the first call on.
struct Prepared {
  std::vector<std::vector<std::byte>> bytes;  // by disk
  History history;
};
Result<Prepared> prepare(const Operation& operation, const Shape& shape, unsigned seed);
// Does the operation, over the grounds that are there, once the image is open (or itself, if it is
// a command). `log` may be null.
Result<void> perform(const Operation& operation, const Shape& shape, History& history,
                     WriteLog* log, unsigned seed);

struct Recording {
  std::vector<std::vector<std::byte>> before;  // by disk
  std::shared_ptr<WriteLog> log = std::make_shared<WriteLog>();
  History history;
};
Result<Recording> record(const Operation& operation, const Shape& shape, unsigned seed);

// What was recorded, and who says of the present state of the disks what is wrong with it, if
// anything is. `pick` is a random number; `complete`: nothing was cut off.
struct Trial {
  std::string name;
  const std::vector<std::vector<std::byte>>& before;  // by disk
  const WriteLog& log;
  std::function<std::string(std::size_t cut, bool complete, std::uint64_t pick)> judge;
};
// How many different states were tried; the first one that is wrong ends it with a test failure.
struct Budget {
  std::uint64_t states = 1000;
  unsigned seed = 1;
};
std::uint64_t try_states(const Trial& trial, Budget budget);
std::uint64_t try_states(const Operation& operation, const Shape& shape, const Recording& recording,
                         Budget budget);

// The errors that a check of the image finds, or nothing.
Task<std::string> check_wrong(BlockNode& node, bool flags_may_lag, bool leaks_allowed = true);

// Judges the present state of the disks: the first thing wrong with it, or nothing. `pick` chooses
// what is looked at besides the most important, and whether the guest goes on and writes.
inline constexpr std::uint64_t kOnlyLook = 16;
std::string judge(const Operation& operation, const Shape& shape, const History& history,
                  std::size_t cut, bool complete, std::uint64_t pick);

}  // namespace platter::powercut
