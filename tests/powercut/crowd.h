// The crowd of the power cut that many are at work in: small writers in each cluster, on several
// executors over a real file, beside a stream or beside snapshots, resizes and changes of
// properties; what each of them has done, and what a state after a cut may show of it.
//
// Threads: a lane is played by one thread; Scene's parts are of any or of one lane alone.
#pragma once

#include <atomic>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "block/filters/fault.h"
#include "block/filters/write_log.h"
#include "block/node/node.h"
#include "powercut/history.h"

namespace platter::powercut::crowd {

inline constexpr std::uint64_t kDisk = 1 << 20;
inline constexpr std::uint64_t kMost = kDisk + kDisk / 2;  // as far as the disk grows
inline constexpr std::uint64_t kSectors = kDisk / kSector;
inline constexpr unsigned kLanes = 24;
inline constexpr unsigned kQueues = 3;

struct Setting {
  const char* create;
  bool streams = false;
  bool faults = false;  // requests to the image's files fail now and then
  bool data_file = false;
  const char* open = "";
};

// What a lane has done to a sector. Each sector's changes are its lane's alone.
struct Change {
  Stamp stamp = 0;
  std::size_t begun = 0;         // moment
  std::size_t done = kNever;     // moment of the acknowledgement
  std::size_t durable = kNever;  // moment
};
using Changes = std::vector<std::vector<Change>>;  // by sector

struct Scene {
  BlockNode& node;
  const Setting& setting;
  WriteLog& log;
  const std::vector<FaultPoints*>& points;  // of each file
  Changes& changes;
  std::vector<SnapshotRecord>& snapshots;  // of who operates
  unsigned seed;
  std::atomic<unsigned> playing{kLanes};
  std::atomic<unsigned> refused{0};
};

bool failed();
// Whether it was done; it has to be, unless there are faults.
bool done_well(Scene& scene, const Result<void>& done, std::string_view what);

// What is wrong with what a sector shows, if it may show any change from `from` on that had begun
// before `cut`.
std::string find_wrong(std::span<const std::byte> shown, std::uint64_t sector,
                       const std::vector<Change>& changes, std::size_t from, std::size_t cut);

// The lanes of one queue, beside each other, to their ends.
Task<void> play_lanes(Scene& scene, unsigned queue);
// Beside the lanes: operations in turns, or a stream.
Task<void> operate(Scene& scene);
Task<void> stream_up(Scene& scene);

// The first thing wrong with the image in the present state of the disks, or nothing.
struct Evidence {
  const std::string& options;  // open the image
  const Changes& changes;
  const std::vector<SnapshotRecord>& snapshots;
  bool leaks_allowed = false;
};
Task<std::string> judge(const Evidence& evidence, std::size_t cut, std::uint64_t pick);

}  // namespace platter::powercut::crowd
