// Core: what all parts of the engine of one open qcow2 image share: its geometry, header, file, the
// mutex of its metadata, and how corruption is met.
//
// Threads: see each member.
#pragma once

#include <atomic>
#include <functional>
#include <string>
#include <string_view>

#include "block/base/error.h"
#include "block/exec/sync.h"
#include "block/node/in_flight.h"
#include "block/node/node.h"
#include "formats/qcow2/geometry.h"
#include "formats/qcow2/layout.h"
#include "formats/qcow2/metadata_map.h"
#include "formats/qcow2/metadata_mutex.h"

namespace platter::qcow2 {

// Why a host cluster loses a reference: decides whether its space is handed back below (the options
// pass-discard-*).
enum class Discard : std::uint8_t { kNever, kAlways, kRequest, kSnapshot, kOther };

struct Core {
  Core(const Geometry& g, InFlight& requests) : geometry(g), in_flight(requests), metadata(g) {}

  // Cluster size, subclusters and data file never change; version and refcount width do with an
  // amendment, with nothing in flight.
  Geometry geometry;
  InFlight& in_flight;
  Edge file;
  Edge data_file;  // external data file, if any
  Edge backing_edge;
  bool encrypted = false;  // what lies in the file is not what the disk reads as
  bool writable = false;   // changed by reopen, with nothing in flight
  bool discard_passes[5] = {false, true, false, true, false};  // by Discard

  BlockNode& data_node() const { return data_file ? *data_file : *file; }
  BlockNode* backing() const { return backing_edge.get(); }

  // Guards L1, the refcount table, all slices, claims and host-cluster states. Held for
  // microseconds and never across a suspension.
  Mutex& mutex() PLATTER_RETURNS_CAPABILITY(metadata_mutex) { return mutex_; }

  // Changed under header_mutex (and, for what others read, also under mutex).
  AsyncMutex header_mutex;
  Header header;

  std::atomic<std::uint64_t> size{0};  // virtual disk, bytes
  MetadataMap metadata;

  // Set when the tables were found wrong: nothing is written any more.
  std::atomic<bool> poisoned{false};
  std::atomic<bool> reported{false};

  // Writing the header has begun and no flush has succeeded since: the file may have this header or
  // the one before it. The next write-back writes `header` again before it writes anything else,
  // for what it makes durable must be what the header on disk leads to.
  std::atomic<bool> header_unsure{false};

  // Writes `header` to the file (the caller holds header_mutex); publish_header() makes it durable
  // too. After a failure the caller puts back in `header` what the image goes on with.
  Task<Result<void>> write_header();
  Task<Result<void>> publish_header();
  // Changes feature bits and makes that durable.
  Task<Result<void>> set_incompatible(std::uint64_t bits, bool on);

  // The error for whoever would write to a poisoned image.
  static std::unexpected<Error> given_up();
  // The image's tables are wrong: says so once, marks a writable image as corrupt if `fatal`, and
  // gives the error for the request. `what` is one line without period.
  Task<Error> corruption(std::string what, bool fatal);
  // The same when data or a new table would lie on this host cluster, which holds metadata.
  Task<Error> overlap(std::uint64_t cluster);
  // What a host cluster holds: "active L1 table". Called without mutex().
  std::function<std::string_view(std::uint64_t cluster)> metadata_name;
  // What to do when a part of a table is about to be loaded (as for each new table, too: of the
  // counts of its space). Called without mutex(), often.
  std::function<void()> table_loads;

 private:
  Mutex mutex_;
};

}  // namespace platter::qcow2
