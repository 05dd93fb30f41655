// The copy engine: moves what one or several nodes show to a target node. It walks extents, so that
// only stored bytes are read; finds zeroes in those; and keeps several requests in flight.
//
//   CopySource source{.node = a.get(), .length = a->size()};
//   CopyOptions options;
//   options.target_is_zero = true;
//   Result<void> done = co_await copy(std::span(&source, 1), *target, options);
//
// Used by convert, commit, rebase and stream.
//
// A node can also be its own source: then it takes up what it shows from below (Mode).
//
// Threads: one executor, that of the caller. The nodes and what `options` refers to live until the
// end. Errors: "error while reading at byte N: ..." and "error while writing at byte N: ..."; what
// was written before stays written. ECANCELED: "cancelled".
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <span>

#include "block/base/error.h"
#include "block/exec/task.h"
#include "block/node/node.h"

namespace platter {

// [offset, offset + length) of `node` goes to [target_offset, ...) of the target. Behind the node's
// end are zeroes. Sources are in ascending order, without gaps.
struct CopySource {
  BlockNode* node = nullptr;
  std::uint64_t target_offset = 0;
  std::uint64_t length = 0;
  // With CopyOptions::keep_unallocated: the node from which on nothing is copied; nullptr: the
  // source stands on nothing.
  BlockNode* base = nullptr;
  std::uint64_t offset = 0;
};

struct CopyOptions {
  static constexpr std::uint64_t kDefaultSparse = 4096;

  enum class Mode : std::uint8_t {
    kCopy,
    // The only source is the target itself: what it shows from between itself and the source's base
    // becomes its own. It may be written to meanwhile, and what is written wins.
    kTakeUp,
    // The same, but only sectors that would read otherwise once the target stands on `new_backing`
    // in place of what it stands on (nullptr: nothing, which reads as zeroes). Nobody else writes.
    // A base is for when new_backing is in the chain: what lies below it stays in sight.
    kKeepDifferences,
  } mode = Mode::kCopy;
  BlockNode* new_backing = nullptr;

  unsigned in_flight = 8;
  // Start writes in the order of their offsets, so that a format allocates in that order.
  bool in_order = true;
  // Zeroes of at least this many bytes (a multiple of 512) are not written as data; 0: everything
  // is written.
  std::uint64_t sparse = kDefaultSparse;
  // The target reads as zeroes everywhere: zeroes need not be written at all.
  bool target_is_zero = false;
  // Leave the target alone where a source shows what its base does (the target shows the same from
  // its own backing node), up to this offset of the target. Beyond it, and where the base has ended
  // or there is none, what no node above it allocates is zeroes.
  bool keep_unallocated = false;
  std::uint64_t keep_until = ~std::uint64_t{0};
  // Nonzero: write compressed, in units of this many bytes.
  std::uint32_t compressed_unit = 0;
  // Let the host copy where it can.
  bool offload = false;
  // Nobody writes to the sources meanwhile, so that bytes may be taken from where an earlier look
  // found them: from file to file, unseen, where the target's units are large enough to tell by
  // their first bytes that they are no zeroes.
  bool still_sources = false;
  // Put zeroes in place of what cannot be read, and tell.
  bool salvage = false;
  std::function<void(std::uint64_t offset, const Error& error)> on_unreadable;
  std::uint64_t bytes_per_second = 0;  // 0: as fast as it goes
  // Called as the copy goes on, with a count out of the sum of all lengths.
  std::function<void(std::uint64_t bytes)> progress;
  // Once this is true, nothing new is begun and the copy ends with ECANCELED. May be null.
  const std::atomic<bool>* cancelled = nullptr;
};

Task<Result<void>> copy(std::span<const CopySource> sources, BlockNode& target,
                        const CopyOptions& options);

}  // namespace platter
