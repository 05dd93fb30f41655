// ClusterWriter: every change of the active disk's mapping: allocating writes, packed writes,
// zeroes and discards.
//
// A range whose clusters are being replaced is claimed: others who want to change the mapping of
// one of its clusters wait and look again. A claim is held while data is on its way; the mapping
// changes at its end, at once, under the mutex. Zeroes and discards change mappings at once and
// hold no claim.
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

namespace platter::qcow2 {

class ClusterWriter {
 public:
  ClusterWriter(Core& core, L2Tables& tables, HostClusters& clusters)
      : core_(core), tables_(tables), clusters_(clusters) {}

  // For MappedDriver.
  Task<Result<WritePlan>> plan(std::uint64_t offset, std::uint64_t length);
  void publish(WritePlan& plan);
  void abandon(WritePlan& plan);

  // Stores the cluster at `offset` packed; false: it does not get smaller, write it plainly.
  // `cluster` is the whole cluster.
  Task<Result<bool>> write_packed(std::uint64_t offset, std::span<const std::byte> cluster);

  // Whole clusters (the last one may be cut off by the end of the disk) read as zeroes from now on.
  // ENOTSUP: cannot without writing them.
  Task<Result<void>> zero(std::uint64_t offset, std::uint64_t length, bool may_unmap);
  // Whole clusters lose their space. `full`: nothing is left, the backing node shows through;
  // otherwise they read as zeroes, in version 2 only if there is no backing node.
  Task<Result<void>> discard(std::uint64_t offset, std::uint64_t length, Discard why, bool full);

  // Whether some claim is held. mutex.
  bool idle() const { return claims_.empty(); }

 private:
  // Guest clusters [first, first + count) whose mapping is about to be replaced.
  struct Claim {
    std::uint64_t first = 0;
    std::uint64_t count = 0;
    Reservation reservation;  // empty: space that the cluster has already is used
    std::uint64_t host = 0;   // of the first cluster, bytes
    TableCache::Pin slice;
    std::uint64_t packed_length = 0;  // packed write: bytes at host
    ConditionQueue waiters;
  };
  using Claims = std::map<std::uint64_t, std::unique_ptr<Claim>>;

  // mutex: the claim on a cluster of [first, first + count), or nullptr.
  Claim* claimed(std::uint64_t first, std::uint64_t count);
  // mutex: how far a plan may go: clusters from `first` on that need a new place.
  std::uint64_t replaceable(const TableCache::Slice& slice, std::uint64_t entry,
                            std::uint64_t most) const;
  bool shows_zeroes(std::uint64_t entry, std::uint64_t guest) const;
  // Bytes of the disk behind `end`: what lies in the last cluster behind the disk's end is not
  // copied.
  std::uint64_t left_behind(std::uint64_t end) const;
  // mutex: what `entry` referred to is not referred to any more.
  void unlink_entry(std::uint64_t entry, Discard why);
  void finish(Claim& claim);
  struct PackedPlace;
  Task<Result<PackedPlace>> place_packed(std::uint64_t length);

  enum class Change : std::uint8_t { kZero, kZeroUnmap, kDiscard, kDiscardFully };
  Task<Result<void>> change(std::uint64_t offset, std::uint64_t length, Change change, Discard why);
  // The new entry for a cluster; its old one where nothing changes. False: it cannot be done.
  bool changed_entry(std::uint64_t entry, std::uint64_t guest, Change change,
                     std::uint64_t& result) const;

  Core& core_;
  L2Tables& tables_;
  HostClusters& clusters_;
  Claims claims_;  // guarded by Core::mutex; by first cluster
};

}  // namespace platter::qcow2
