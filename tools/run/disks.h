// Disks: the images behind a machine's disks: opening them with their options, throw-away
// overlays, and closing them with everything on stable storage.
//
// Threads: from one plain thread; the work itself runs on the control executor, whose thread must
// not be the caller's.
// Ownership: owns the edges to the nodes. close() before destruction, after the last request.
// Errors: name the image. close() goes on after an error and gives the first one.
#pragma once

#include <string>
#include <vector>

#include "block/base/error.h"
#include "block/exec/executor.h"
#include "block/node/node.h"
#include "tools/run/options.h"

namespace platter::run {

// How cache modes and the rest become the flags of the block layer.
OpenFlags open_flags(const DiskOptions& disk);

class Disks {
 public:
  explicit Disks(Executor& control) : control_(control) {}
  ~Disks();
  Disks(const Disks&) = delete;
  Disks& operator=(const Disks&) = delete;

  // Opens one more disk; gives its node.
  Result<BlockNode*> open(const DiskOptions& disk);
  // Flushes and closes all, last one first.
  Result<void> close();

 private:
  Executor& control_;
  std::vector<Edge> edges_;
};

}  // namespace platter::run
