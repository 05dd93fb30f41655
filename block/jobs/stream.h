// stream: makes an image independent of the images between it and a base (or of all below it),
// while it stays in use: what it shows from them becomes its own, and then its backing reference
// changes.
//
//   StreamOptions options;
//   Result<void> done = co_await stream(*top, options);
//
// Threads: one executor; requests to `top` may run on any other meanwhile. The graph does not
// change meanwhile but for what this does at its end. Errors: one line; the image reads as before,
// and so does it after ECANCELED: what has become its own stays so.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>

#include "block/base/error.h"
#include "block/exec/task.h"
#include "block/node/node.h"

namespace platter {

struct StreamOptions {
  // A node of the backing chain that the image is to stand on; nullptr: on none.
  BlockNode* base = nullptr;
  unsigned in_flight = 8;
  std::uint64_t bytes_per_second = 0;  // 0: as fast as it goes
  // Called as it goes on, with a count out of the image's size.
  std::function<void(std::uint64_t bytes)> progress;
  // Once this is true, nothing new is begun. May be null.
  const std::atomic<bool>* cancelled = nullptr;
};

// `top` is open for writing; where it stands on the base already, nothing happens. An image with
// internal snapshots is refused: what they show from below would be lost.
Task<Result<void>> stream(BlockNode& top, const StreamOptions& options);

}  // namespace platter
