// L2Tables: the L1 table and the cached L2 tables of the active disk; guest offset to mapping.
//
// try_lookup() is the path of every request: it takes no lock. The caller holds an InFlight ticket.
//
// "Refcount is one" in an L2 entry counts only where the L1 entry says it of the table, too. So
// freeze() makes all of the disk shared by changing L1 alone. What is found in a table that is not
// ours alone is never changed, and its copy starts without these flags.
//
// Threads: lookups from any executor; the annotations say what needs Core::mutex().
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <set>
#include <vector>

#include "block/node/mapped_driver.h"
#include "formats/qcow2/cluster_units.h"
#include "formats/qcow2/core.h"
#include "formats/qcow2/l1_table.h"
#include "formats/qcow2/table_cache.h"

namespace platter::qcow2 {

class HostClusters;

class L2Tables {
 public:
  struct CacheSizes {
    std::uint64_t bytes = 0;        // l2-cache-size
    std::uint64_t entry_bytes = 0;  // l2-cache-entry-size; 0: chosen
  };

  L2Tables(Core& core, HostClusters& clusters)
      : core_(core), clusters_(clusters), cache_(core.mutex(), &core.in_flight, core.table_loads) {}

  // Reads the active L1 table. `clean` writes back dirty slices.
  Task<Result<void>> open(CacheSizes sizes, std::function<Task<Result<void>>()> clean);

  bool try_lookup(std::uint64_t offset, std::uint64_t length, bool for_write,
                  Mapping& mapping) const;
  Task<Result<Mapping>> lookup(std::uint64_t offset, std::uint64_t length, bool for_write);

  // Makes the table for `offset` exist, be ours alone, and its slice be in memory (as long as the
  // Pin lives). Somebody may have changed it again by the time the caller holds the mutex: see
  // writable_slice().
  Task<Result<TableCache::Pin>> make_writable(std::uint64_t offset);
  // The slice if its table may be changed now.
  TableCache::Slice* writable_slice(std::uint64_t offset) const PLATTER_REQUIRES(metadata_mutex);

  // Slices and entries. Entry numbers count within a slice.
  std::uint64_t slice_of(std::uint64_t offset) const { return offset >> slice_shift_; }
  std::uint64_t slice_coverage() const { return std::uint64_t{1} << slice_shift_; }
  std::uint64_t entry_of(std::uint64_t offset) const {
    return (offset >> core_.geometry.cluster_bits) & (slice_entries_ - 1);
  }
  std::uint64_t slice_entries() const { return slice_entries_; }
  // Both words of an entry as they were at one moment.
  L2Entry entry(const TableCache::Slice& slice, std::uint64_t index) const;
  // Sets the entry of a table that is ours alone.
  void set_entry(TableCache::Slice& slice, std::uint64_t index, L2Entry entry)
      PLATTER_REQUIRES(metadata_mutex);

  // Says in an entry whether its cluster's count is one. Requests may go by the change at
  // once, or a little later.
  void set_copied(TableCache::Slice& slice, std::uint64_t index, bool copied)
      PLATTER_REQUIRES(metadata_mutex);
  // Whether the table of an L1 entry is being made or copied; made() tells its end.
  bool being_made(std::uint64_t i) const PLATTER_REQUIRES(metadata_mutex) {
    return making_.contains(i);
  }
  ConditionQueue& made() PLATTER_REQUIRES(metadata_mutex) { return made_; }
  // With no request running: from now on no table is ours alone. Gives the L1 entries.
  std::vector<std::uint64_t> freeze() PLATTER_REQUIRES(metadata_mutex);

  // L1; reads anywhere.
  std::uint64_t l1_size() const { return l1_.size(); }
  std::uint64_t l1(std::uint64_t i) const { return l1_.load(i); }
  void set_l1(std::uint64_t i, std::uint64_t entry) PLATTER_REQUIRES(metadata_mutex);
  // The changed pieces of L1 for writing, as (first entry, bytes in disk order).
  struct L1Piece {
    std::uint64_t first = 0;
    Buffer bytes;
  };
  std::vector<L1Piece> take_dirty_l1() PLATTER_REQUIRES(metadata_mutex);
  void put_back(const std::vector<L1Piece>& pieces) PLATTER_REQUIRES(metadata_mutex);
  bool dirty() const PLATTER_REQUIRES(metadata_mutex) {
    return cache_.has_dirty() || !dirty_l1_.empty();
  }
  std::uint64_t l1_table_offset() const { return l1_table_offset_; }
  // Whether L1 names so few tables so often that going through all that it shows would take much
  // longer than the file is long. No program makes such an image.
  bool repeats() const {
    const Repeats known = repeats_.load(std::memory_order_relaxed);
    return known == Repeats::kUnknown ? find_repeats() : known == Repeats::kYes;
  }
  // With no request running: another L1 table at another place, all of it as on disk.
  void replace_l1(std::uint64_t offset, const std::vector<std::uint64_t>& entries)
      PLATTER_REQUIRES(metadata_mutex);
  Task<Result<std::vector<std::uint64_t>>> read_l1(std::uint64_t offset, std::uint64_t entries);

  TableCache& cache() { return cache_; }
  // Slices of one table.
  std::uint64_t slices_per_table() const {
    return core_.geometry.cluster_size() / cache_.slice_bytes();
  }

 private:
  void configure_slices(CacheSizes sizes);
  bool find_repeats() const;
  // Calls `take(entry number, value)` for each entry of the table.
  Task<Result<void>> stream_l1(std::uint64_t offset, std::uint64_t entries,
                               const std::function<void(std::uint64_t, std::uint64_t)>& take);
  std::uint64_t locate(std::uint64_t slice) const;
  // Whether the table for `offset` is ours alone. Asked before the slice is looked for: what is
  // found in the slice is then at least as new.
  bool ours(std::uint64_t offset) const {
    const std::uint64_t i = core_.geometry.l1_index(offset);
    return i < l1_.size() && l1_copied(l1_.load(i));
  }
  // Answer from a slice; false: the entry needs attention (wrong, or a write onto metadata).
  // `ours`: asked for a write, and the table is ours alone.
  bool answer(const TableCache::Slice& slice, std::uint64_t offset, std::uint64_t length, bool ours,
              Mapping& mapping) const;
  // The two kinds of entries, if not compressed.
  void answer_clusters(const TableCache::Slice& slice, std::uint64_t word,
                       const ClusterState& state, std::uint64_t offset, std::uint64_t length,
                       Mapping& mapping) const;
  void answer_units(const TableCache::Slice& slice, std::uint64_t offset, std::uint64_t length,
                    Mapping& mapping) const;
  Task<Error> complain(std::uint64_t offset, TableCache::Slice* slice, bool for_write);
  Task<Result<void>> make_table(std::uint64_t l1_index, std::uint64_t old_entry);
  // No cluster in the slice is ours alone.
  void disown(TableCache::Slice& slice) PLATTER_REQUIRES(metadata_mutex);
  // Until the file has all of a table.
  Task<Result<void>> written_back(std::uint64_t l1_index);

  Core& core_;
  HostClusters& clusters_;
  TableCache cache_;
  // Immutable after open (but for resizes, with nothing in flight):
  unsigned slice_shift_ = 0;
  std::uint64_t slice_entries_ = 0;
  L1Table l1_;  // its entries are changed under mutex
  std::uint64_t l1_table_offset_ = 0;
  // Found out when somebody first asks for extents. (No change of an entry makes a repetition.)
  enum class Repeats : std::uint8_t { kUnknown, kYes, kNo };
  mutable std::atomic<Repeats> repeats_{Repeats::kUnknown};
  std::set<std::uint64_t> dirty_l1_
      PLATTER_GUARDED_BY(metadata_mutex);  // by piece of kL1Piece entries
  std::set<std::uint64_t> making_
      PLATTER_GUARDED_BY(metadata_mutex);  // L1 entries whose table is being made
  ConditionQueue made_ PLATTER_GUARDED_BY(metadata_mutex);
};

}  // namespace platter::qcow2
