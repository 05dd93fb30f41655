// WriteBack: the order in which changed metadata reaches the disk.
//
// One write-back takes, at one moment, a copy of everything that has changed, and then writes
//
//   1. refcount slices, and makes the file as long as its new tables
//      -- barrier: data, new tables' first contents and counts are durable --
//   2. refcount table entries of new blocks           (only if there are any)
//      -- barrier --
//   3. the header, if the refcount table has moved    (only then)
//      -- barrier --
//   4. L2 slices and L1 entries
//      -- barrier --
//   5. what lost its last reference before that moment leaves "settling" (host_clusters.h)
//
// When an earlier header write may or may not have reached the disk, the header comes first of all,
// behind a barrier for what it leads to.
// A barrier is a flush of the file. So no reference is on disk before the data it shows and the
// count that keeps it, and nothing is reused before the loss of its references is on disk. Requests
// that change metadata meanwhile go on; their changes are the next write-back's.
//
// Threads: any executor. Several who ask at once share one write-back.
#pragma once

#include <atomic>
#include <cstdint>

#include "formats/qcow2/core.h"
#include "formats/qcow2/host_clusters.h"
#include "formats/qcow2/l2_tables.h"
#include "formats/qcow2/refcounts.h"

namespace platter::qcow2 {

class WriteBack {
 public:
  WriteBack(Core& core, L2Tables& tables, Refcounts& refcounts, HostClusters& clusters)
      : core_(core), tables_(tables), refcounts_(refcounts), clusters_(clusters) {}

  // Whose flush it is. A failed one may have lost what it was for, although writing it again
  // succeeds: so the next one that is asked for from outside is told, too. What an operation does
  // on its way neither fails for that nor counts as having been told.
  enum class Flush : std::uint8_t {
    kIfNeeded,  // only if there is metadata to write
    kOwn,       // of an operation
    kAsked,     // by who uses the image
  };
  // Everything that completed before is durable afterwards.
  Task<Result<void>> commit(Flush flush);

  // The same for a cache that needs room, where nobody is told of a failure: the next flush is.
  Task<Result<void>> clean();

  // What the last write-back could not write or make durable; all false when it succeeded.
  struct Unwritten {
    bool tables = false;  // L2 slices, L1 entries
    bool counts = false;  // refcount slices, refcount table entries
  };
  // Nothing may run meanwhile.
  Unwritten unwritten() const { return unwritten_; }

  // Lazy refcounts: the counts stay in memory until the image is closed, and the dirty bit says so.
  void set_lazy(bool lazy) { lazy_.store(lazy); }
  // The header's autoclear bits that we do not know go before the next write-back writes anything.
  void clear_autoclear_first() { clear_autoclear_ = true; }

 private:
  // What had changed at one moment.
  struct Batch;
  Task<Result<void>> write_all(bool flush_always);
  // Its steps, in this order.
  Batch take();
  Task<Result<void>> prepare_header(const Batch& batch);
  Task<Result<void>> write_counts(Batch& batch);
  Task<Result<void>> write_count_table(Batch& batch);
  Task<Result<void>> move_count_table(const Batch& batch);
  Task<Result<void>> write_references(Batch& batch);
  void end(Batch batch, bool written);
  Task<Result<void>> barrier();
  // The owed error, once.
  Result<void> owed();

  Core& core_;
  L2Tables& tables_;
  Refcounts& refcounts_;
  HostClusters& clusters_;
  std::atomic<bool> lazy_{false};
  bool clear_autoclear_ = false;
  AsyncMutex running_;
  std::atomic<std::uint64_t> asked_{0};
  // Under running_:
  std::uint64_t covered_ = 0;        // requests up to this number are covered by what was written
  std::optional<Error> last_error_;  // of that write-back
  std::optional<Error> last_told_;   // what was owed, and who shared the flush is told as well
  std::optional<Error> owed_error_;  // what the next flush from outside is told
  std::optional<Error> barrier_error_;
  Unwritten unwritten_;
  bool counts_unsure_ = false;  // counts were written, and no barrier has made them durable
};

}  // namespace platter::qcow2
