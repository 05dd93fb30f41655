// ClusterWriter: every change of the active disk's mapping: allocating writes, packed writes,
// zeroes and discards.
//
// A range whose clusters are being replaced is claimed: others who want to change the mapping of
// one of its clusters wait and look again. A claim is held while data is on its way; the mapping
// changes at its end, at once, under the mutex. Zeroes and discards change mappings at once and
// hold no claim.
//
// Clusters of an external data file lie where the guest has them: no host clusters are taken for
// them, and what is zeroed or discarded is handed on at once, while the range is claimed.
//
// Threads: any executor; callers hold an InFlight ticket.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>

#include "block/node/mapped_driver.h"
#include "formats/qcow2/codec.h"
#include "formats/qcow2/core.h"
#include "formats/qcow2/host_clusters.h"
#include "formats/qcow2/l2_tables.h"
#include "formats/qcow2/refcount_map.h"

namespace platter::qcow2 {

class ClusterWriter {
 public:
  ClusterWriter(Core& core, L2Tables& tables, HostClusters& clusters)
      : core_(core), tables_(tables), clusters_(clusters) {}

  // For MappedDriver.
  Task<Result<WritePlan>> plan(std::uint64_t offset, std::uint64_t length);
  void publish(WritePlan& plan);
  void abandon(WritePlan& plan);
  // Instead of publish(): the clusters have space, and still read as before where the format can
  // say so (extended L2 entries); otherwise as what lies in that space.
  void publish_space(WritePlan& plan);

  // Stores the cluster at `offset` packed; false: it does not get smaller, write it plainly.
  // `cluster` is the whole cluster.
  Task<Result<bool>> write_packed(std::uint64_t offset, std::span<const std::byte> cluster);

  // Whole units (the last one may be cut off by the end of the disk) read as zeroes from now on.
  // ENOTSUP: cannot without writing them.
  Task<Result<void>> zero(std::uint64_t offset, std::uint64_t length, bool may_unmap);
  // Whether that can be done as things are; changes nothing.
  Task<Result<void>> may_zero(std::uint64_t offset, std::uint64_t length, bool may_unmap);
  // Whole units (the last one as above) that show the backing node read as zeroes from now on; the
  // others stay as they are. Not in version 2, nor over a raw external data file.
  Task<Result<void>> hide(std::uint64_t offset, std::uint64_t length);
  // Whole units lose their data, and clusters without any their space. `full` (whole clusters):
  // nothing is left, the backing node shows through; otherwise they read as zeroes, in version 2
  // only if there is no backing node.
  Task<Result<void>> discard(std::uint64_t offset, std::uint64_t length, Discard why, bool full);

  // cluster_flags.cpp: says "refcount is one" again of what shares nothing any more. `single`: the
  // clusters whose count is exactly one, as far as the flag may be missing there. For the L1
  // entries [first, end), as far as there are such.
  Task<Result<void>> regain(const RefcountMap& single, std::uint64_t first, std::uint64_t end);

  // Whether no claim is held.
  bool idle() const PLATTER_REQUIRES(metadata_mutex) { return claims_.empty(); }

 private:
  // Guest clusters [first, first + count) whose mapping is about to be replaced.
  struct Claim {
    std::uint64_t first = 0;
    std::uint64_t count = 0;
    bool fresh = false;       // another place than before; otherwise the cluster's own
    Reservation reservation;  // of a fresh place, unless it is in an external data file
    std::uint64_t host = 0;   // of the first cluster, bytes
    TableCache::Pin slice;
    std::uint64_t packed_length = 0;  // packed write: bytes at host
    ConditionQueue waiters PLATTER_GUARDED_BY(metadata_mutex);
  };
  using Claims = std::map<std::uint64_t, std::unique_ptr<Claim>>;

  // The claim on a cluster of [first, first + count), or nullptr.
  Claim* claimed(std::uint64_t first, std::uint64_t count) PLATTER_REQUIRES(metadata_mutex);
  // How far a plan may go: clusters from `first` on that need a new place.
  std::uint64_t replaceable(const TableCache::Slice& slice, std::uint64_t entry,
                            std::uint64_t most) const PLATTER_REQUIRES(metadata_mutex);
  // The two kinds of plans, for data in the cluster's own place and in a fresh one.
  void plan_own(WritePlan& plan, const ClusterUnits& units, TableCache::Slice* slice)
      PLATTER_REQUIRES(metadata_mutex);
  void plan_fresh(WritePlan& plan, std::uint64_t count, TableCache::Slice* slice,
                  Reservation reservation) PLATTER_REQUIRES(metadata_mutex);
  // Units that show zeroes when they are neither allocated nor zero.
  UnitMask clear_units(std::uint64_t guest) const;
  // Whether bytes [from, to) of the cluster that `guest` is in read as zeroes by its entry alone.
  bool shows_zeroes(const ClusterUnits& units, std::uint64_t guest, std::uint64_t from,
                    std::uint64_t to) const;
  // Bytes of the disk behind `end`.
  std::uint64_t left_behind(std::uint64_t end) const;
  // What `entry` referred to is not referred to any more.
  void unlink_entry(L2Entry entry, Discard why) PLATTER_REQUIRES(metadata_mutex);
  void show(WritePlan& plan, bool data);
  void finish(Claim& claim) PLATTER_REQUIRES(metadata_mutex);
  struct PackedPlace;
  Task<Result<PackedPlace>> place_packed(std::uint64_t length);

  enum class Change : std::uint8_t { kZero, kZeroUnmap, kHide, kDiscard, kDiscardFully };
  Task<Result<void>> change(std::uint64_t offset, std::uint64_t length, Change change, Discard why);
  // Up to where entries are changed at once: in one slice, and not too many.
  std::uint64_t step_end(std::uint64_t offset, std::uint64_t end) const;
  // Whether nothing needs to change as far as the L2 table goes that there is none of at `offset`.
  bool passes_over(std::uint64_t offset, Change change) const;
  // Whether an entry would change; the error, where one cannot.
  Task<Result<bool>> would_change(std::uint64_t offset, std::uint64_t end, Change change);
  // What the units `which` of a cluster become; false: it cannot be done.
  bool changed(ClusterUnits& units, UnitMask which, std::uint64_t guest, Change change) const;
  // The same for the entry of the cluster that `from` is in, of which [from, end) is meant.
  std::optional<L2Entry> changed_entry(L2Entry entry, std::uint64_t from, std::uint64_t end,
                                       Change change) const;
  // Changes entries from `offset` on; where it has stopped.
  std::uint64_t apply(TableCache::Slice& slice, std::uint64_t offset, std::uint64_t end,
                      Change change, Discard why) PLATTER_REQUIRES(metadata_mutex);
  // regain() for one L1 entry; false: its table has been replaced meanwhile.
  Task<Result<bool>> regain_table(std::uint64_t l1_index, const RefcountMap& single);
  // For some entries of a table, ours alone or not; gives a claim that must end first.
  Claim* regain_entries(TableCache::Slice& slice, std::uint64_t offset, std::uint64_t count,
                        bool ours, const RefcountMap& single) PLATTER_REQUIRES(metadata_mutex);
  // Hands a range of an external data file on, if it is to be.
  bool passes_on(Change change, Discard why) const;
  Task<Result<void>> pass_on(std::uint64_t offset, std::uint64_t end, Change change);

  Core& core_;
  L2Tables& tables_;
  HostClusters& clusters_;
  Claims claims_ PLATTER_GUARDED_BY(metadata_mutex);  // by first cluster
};

}  // namespace platter::qcow2
