// BulkRefcounts: refcounts of very many clusters changed at once, for snapshots: blocks are loaded
// whole, changed in memory, and written back together.
//
// To be used while requests are held back and the caches are clean; afterwards the cached refcounts
// must be loaded anew. Memory: the blocks that were touched.
//
// Threads: one coroutine.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "block/exec/buffer.h"
#include "formats/qcow2/core.h"
#include "formats/qcow2/refcounts.h"

namespace platter::qcow2 {

class BulkRefcounts {
 public:
  BulkRefcounts(Core& core, const Refcounts& refcounts) : core_(core), refcounts_(refcounts) {}

  // Walks tables: counts `delta` (+1 or -1) for each L2 table in `l1` and for everything those
  // tables refer to. Nothing is written.
  Task<Result<void>> count(std::span<const std::uint64_t> l1, int delta);
  // Makes the flags "refcount is one" in `l1` (in place) and in its L2 tables (in the file) agree
  // with the counts.
  Task<Result<void>> mark_copied(std::span<std::uint64_t> l1);
  // Changes the count of [first, first + clusters).
  Task<Result<void>> change(std::uint64_t first, std::uint64_t clusters, int delta);
  // Writes the changed blocks.
  Task<Result<void>> write();

  // Runs of clusters whose count has become 0, as (first, count), not sorted; taken once.
  struct Run {
    std::uint64_t first = 0;
    std::uint64_t count = 0;
  };
  std::vector<Run> take_freed() { return std::move(freed_); }

 private:
  struct Block {
    Buffer data;
    bool dirty = false;
  };
  bool has(std::uint64_t cluster) const {
    const std::uint64_t i = core_.geometry.reftable_index(cluster);
    return i < blocks_.size() && blocks_[i] != nullptr;
  }
  Task<Result<void>> load(std::uint64_t block);
  // Loads what the entries of a table refer to.
  Task<Result<void>> load_for(std::span<const std::byte> table);
  Result<void> change_one(std::uint64_t cluster, int delta);
  Result<void> change_entry(std::uint64_t entry, int delta);
  std::uint64_t get(std::uint64_t cluster) const;

  Core& core_;
  const Refcounts& refcounts_;
  std::vector<std::unique_ptr<Block>> blocks_;
  std::vector<Run> freed_;
};

}  // namespace platter::qcow2
