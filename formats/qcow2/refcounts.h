// Refcounts: the refcount table in memory and the cached refcount blocks; who counts what.
//
// A count in memory is never lower than what the tables on disk need: it is raised before a
// reference is made, and lowered only after the loss of the reference is durable (host_clusters.h).
// So dirty refcount slices may be written at any time.
//
// Threads: members need Core::mutex, except where they are coroutines.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <set>
#include <vector>

#include "formats/qcow2/core.h"
#include "formats/qcow2/table_cache.h"

namespace platter::qcow2 {

class Refcounts {
 public:
  explicit Refcounts(Core& core) : core_(core), cache_(core.mutex(), nullptr, core.table_loads) {}

  // Reads the refcount table. `cache_bytes` 0: default.
  Task<Result<void>> open(std::uint64_t cache_bytes, std::function<Task<Result<void>>()> clean);

  // The count of a host cluster; nullopt: its slice must be loaded first. 0 where no block exists.
  std::optional<std::uint64_t> get(std::uint64_t cluster) const PLATTER_REQUIRES(metadata_mutex);
  // The slice must be in memory and the value fit.
  void set(std::uint64_t cluster, std::uint64_t value) PLATTER_REQUIRES(metadata_mutex);

  // The counts of [first, end), which the slice has, were changed in its bytes.
  void mark_changed(TableCache::Slice& slice, std::uint64_t first, std::uint64_t end)
      PLATTER_REQUIRES(metadata_mutex);

  // Slices: each counts the same number of clusters.
  std::uint64_t slice_of(std::uint64_t cluster) const { return cluster >> slice_bits_; }
  std::uint64_t slice_clusters() const { return std::uint64_t{1} << slice_bits_; }
  std::uint64_t slices_per_block() const {
    return core_.geometry.refblock_entries() >> slice_bits_;
  }

  // Refcount table entries; beyond the table: none.
  std::uint64_t block_count() const PLATTER_REQUIRES(metadata_mutex) { return table_.size(); }
  std::uint64_t block(std::uint64_t i) const PLATTER_REQUIRES(metadata_mutex) {
    return i < table_.size() ? table_[i] & kRefTableOffsetMask : 0;
  }
  // A block that reads as zeroes at `host`, counting nothing yet.
  void add_block(std::uint64_t i, std::uint64_t host) PLATTER_REQUIRES(metadata_mutex);
  // Moves the table to `host` and gives it `entries` entries (not fewer). Gives the old place.
  struct Place {
    std::uint64_t offset = 0;
    std::uint64_t clusters = 0;
  };
  Place move_table(std::uint64_t host, std::uint64_t entries) PLATTER_REQUIRES(metadata_mutex);
  Place place() const PLATTER_REQUIRES(metadata_mutex) { return {table_offset_, table_clusters()}; }
  std::uint64_t table_clusters() const PLATTER_REQUIRES(metadata_mutex) {
    return core_.geometry.clusters_for(table_.size() * 8);
  }

  // Changes of the table for writing.
  struct TableWrite {
    std::uint64_t offset = 0;  // in the file
    Buffer bytes;
  };
  bool table_dirty() const PLATTER_REQUIRES(metadata_mutex) { return moved_ || !dirty_.empty(); }
  // The header names another place yet.
  bool table_moved() const PLATTER_REQUIRES(metadata_mutex) { return moved_; }
  // `moved`: the header must name the new place before anything that the new entries count is used.
  std::vector<TableWrite> take_dirty_table(bool& moved) PLATTER_REQUIRES(metadata_mutex);
  void put_back_table(const std::vector<TableWrite>& writes, bool moved)
      PLATTER_REQUIRES(metadata_mutex);

  TableCache& cache() { return cache_; }

 private:
  std::uint64_t locate(std::uint64_t slice) const PLATTER_REQUIRES(metadata_mutex);

  Core& core_;
  TableCache cache_;
  unsigned slice_bits_ = 0;  // immutable after open
  std::vector<std::uint64_t> table_ PLATTER_GUARDED_BY(metadata_mutex);
  std::uint64_t table_offset_ PLATTER_GUARDED_BY(metadata_mutex) = 0;
  bool moved_ PLATTER_GUARDED_BY(metadata_mutex) = false;
  // Pieces of kTablePiece entries.
  std::set<std::uint64_t> dirty_ PLATTER_GUARDED_BY(metadata_mutex);
};

}  // namespace platter::qcow2
