// Geometry: where things lie in a qcow2 image, as arithmetic; and the table entries as values.
//
// All index and size computations of the format are here, and entries are read and made here:
// nobody else tests or sets their bits. classify() turns an L2 entry into exactly one of the things
// an entry can be.
//
// Spec: qcow2.txt, "Host cluster management", "Cluster mapping", "Extended L2 Entries".
// Threads: values and pure functions. Offsets and lengths are bytes unless named otherwise.
#pragma once

#include <cstdint>
#include <string_view>
#include <variant>

#include "block/base/checked.h"

namespace platter::qcow2 {

inline constexpr std::uint64_t kOffsetMask =
    0x00ff'ffff'ffff'fe00;  // bits 9-55 of L1 and L2 entries
inline constexpr std::uint64_t kRefTableOffsetMask = 0xffff'ffff'ffff'fe00;
inline constexpr std::uint64_t kCopied = std::uint64_t{1} << 63;
inline constexpr std::uint64_t kCompressedBit = std::uint64_t{1} << 62;
inline constexpr std::uint64_t kZeroBit = 1;
// Reserved bits, which must be zero (spec "L1 table entry", "L2 table entry").
inline constexpr std::uint64_t kL1Reserved = 0x7f00'0000'0000'01ff;
inline constexpr std::uint64_t kL2StandardReserved = 0x3f00'0000'0000'01fe;
// Host offsets end here: L1 and L2 entries have 56 bits (64 PiB).
inline constexpr std::uint64_t kMaxHostOffset = std::uint64_t{1} << 56;
inline constexpr unsigned kMinClusterBits = 9;
inline constexpr unsigned kMaxClusterBits = 21;
inline constexpr unsigned kMaxRefcountOrder = 6;
inline constexpr unsigned kSubclusters = 32;
inline constexpr std::uint64_t kSector = 512;
// QEMU's limits on what is read into memory whole.
inline constexpr std::uint64_t kMaxL1Bytes = 32u << 20;
inline constexpr std::uint64_t kMaxRefTableBytes = 8u << 20;

// What an L2 entry says. Host offsets are cluster-aligned except in Compressed.
struct Unallocated {
  friend bool operator==(const Unallocated&, const Unallocated&) = default;
};
struct ZeroCluster {
  std::uint64_t host = 0;  // preallocated space, or 0: none
  bool copied = false;     // the space's refcount is exactly one
  friend bool operator==(const ZeroCluster&, const ZeroCluster&) = default;
};
struct DataCluster {
  std::uint64_t host = 0;
  bool copied = false;  // refcount is exactly one: may be written in place
  friend bool operator==(const DataCluster&, const DataCluster&) = default;
};
struct CompressedCluster {
  std::uint64_t host = 0;    // first packed byte
  std::uint64_t length = 0;  // bytes that may belong to it: up to the end of its last sector
  friend bool operator==(const CompressedCluster&, const CompressedCluster&) = default;
};
// Extended L2 entries only: one bit per subcluster, bit 0 the first one.
struct SubclusteredCluster {
  std::uint64_t host = 0;  // 0: none; then nothing is allocated
  bool copied = false;
  std::uint32_t allocated = 0;
  std::uint32_t zero = 0;
  friend bool operator==(const SubclusteredCluster&, const SubclusteredCluster&) = default;
};
struct InvalidEntry {
  std::string_view reason;
  friend bool operator==(const InvalidEntry&, const InvalidEntry&) = default;
};
using ClusterState = std::variant<Unallocated, ZeroCluster, DataCluster, CompressedCluster,
                                  SubclusteredCluster, InvalidEntry>;

struct Geometry {
  unsigned version = 3;
  unsigned cluster_bits = 16;
  unsigned refcount_order = 4;
  bool extended_l2 = false;
  bool external_data = false;

  // Clusters.
  constexpr std::uint64_t cluster_size() const { return std::uint64_t{1} << cluster_bits; }
  constexpr std::uint64_t in_cluster(std::uint64_t offset) const {
    return offset & (cluster_size() - 1);
  }
  constexpr std::uint64_t cluster_start(std::uint64_t offset) const {
    return align_down(offset, cluster_size());
  }
  constexpr std::uint64_t cluster_index(std::uint64_t offset) const {
    return offset >> cluster_bits;
  }
  // Clusters that hold `bytes` bytes. Does not overflow.
  constexpr std::uint64_t clusters_for(std::uint64_t bytes) const {
    return div_round_up(bytes, cluster_size());
  }
  constexpr std::uint64_t subcluster_size() const { return cluster_size() / kSubclusters; }

  // L1 and L2.
  constexpr unsigned l2_entry_bits() const {
    return extended_l2 ? 4 : 3;
  }  // log2 of an entry's bytes
  constexpr std::uint64_t l2_entry_size() const { return std::uint64_t{1} << l2_entry_bits(); }
  constexpr unsigned l2_bits() const { return cluster_bits - l2_entry_bits(); }
  constexpr std::uint64_t l2_entries() const { return std::uint64_t{1} << l2_bits(); }
  // Guest bytes that one L2 table maps.
  constexpr std::uint64_t l2_coverage() const {
    return std::uint64_t{1} << (cluster_bits + l2_bits());
  }
  constexpr std::uint64_t l1_index(std::uint64_t guest) const {
    return guest >> (cluster_bits + l2_bits());
  }
  constexpr std::uint64_t l2_index(std::uint64_t guest) const {
    return (guest >> cluster_bits) & (l2_entries() - 1);
  }
  // L1 entries for a disk of `size` bytes.
  constexpr std::uint64_t l1_entries_for(std::uint64_t size) const {
    return div_round_up(size, l2_coverage());
  }

  // Refcounts.
  constexpr unsigned refcount_bits() const { return 1u << refcount_order; }
  // log2 of the entries in a refcount block.
  constexpr unsigned refblock_bits() const { return cluster_bits + 3 - refcount_order; }
  constexpr std::uint64_t refblock_entries() const { return std::uint64_t{1} << refblock_bits(); }
  // Host bytes that one refcount block counts.
  constexpr std::uint64_t refblock_coverage() const {
    return std::uint64_t{1} << (cluster_bits + refblock_bits());
  }
  constexpr std::uint64_t max_refcount() const {
    return refcount_order == 6 ? ~std::uint64_t{0} : (std::uint64_t{1} << refcount_bits()) - 1;
  }
  constexpr std::uint64_t reftable_index(std::uint64_t host_cluster) const {
    return host_cluster >> refblock_bits();
  }
  constexpr std::uint64_t refblock_index(std::uint64_t host_cluster) const {
    return host_cluster & (refblock_entries() - 1);
  }
  constexpr std::uint64_t reftable_entries_per_cluster() const { return cluster_size() / 8; }

  // Compressed descriptors: bits of the offset field (spec's x).
  constexpr unsigned compressed_offset_bits() const { return 62 - (cluster_bits - 8); }
  constexpr std::uint64_t compressed_offset_mask() const {
    const std::uint64_t field = (std::uint64_t{1} << compressed_offset_bits()) - 1;
    return field & (kMaxHostOffset - 1);
  }
  // Most bytes a descriptor can say, counted from a sector's start.
  constexpr std::uint64_t max_packed_bytes() const { return cluster_size() * 2; }
};

// Entries -----------------------------------------------------------------------------------------

constexpr std::uint64_t l1_entry(std::uint64_t l2_table, bool copied) {
  return l2_table | (copied ? kCopied : 0);
}
constexpr std::uint64_t l1_offset(std::uint64_t entry) { return entry & kOffsetMask; }
constexpr bool l1_copied(std::uint64_t entry) { return (entry & kCopied) != 0; }

constexpr std::uint64_t data_entry(std::uint64_t host, bool copied) {
  return host | (copied ? kCopied : 0);
}
// `host` 0: no space preallocated.
constexpr std::uint64_t zero_entry(std::uint64_t host, bool copied) {
  return kZeroBit | host | (copied && host != 0 ? kCopied : 0);
}
// `length` packed bytes at `host` (length > 0, at most the cluster).
constexpr std::uint64_t compressed_entry(const Geometry& g, std::uint64_t host,
                                         std::uint64_t length) {
  const std::uint64_t more_sectors = (host + length - 1) / kSector - host / kSector;
  return kCompressedBit | host | (more_sectors << g.compressed_offset_bits());
}

// What `entry` (and, with extended L2 entries, its bitmap) is. `entry` is in host byte order.
// The zero bit counts only in version 3 without subclusters; with the compressed bit it is part of
// the offset.
constexpr ClusterState classify(const Geometry& g, std::uint64_t entry, std::uint64_t bitmap = 0) {
  if ((entry & kCompressedBit) != 0) {
    const std::uint64_t field = entry & ((std::uint64_t{1} << g.compressed_offset_bits()) - 1);
    if (field >= kMaxHostOffset) return InvalidEntry{"compressed cluster offset beyond 2^56"};
    const std::uint64_t sectors =
        ((entry & ~(kCopied | kCompressedBit)) >> g.compressed_offset_bits()) + 1;
    return CompressedCluster{field, sectors * kSector - (field & (kSector - 1))};
  }
  const std::uint64_t host = entry & kOffsetMask;
  const bool copied = (entry & kCopied) != 0;
  if ((host & (g.cluster_size() - 1)) != 0) return InvalidEntry{"unaligned cluster offset"};
  if (g.extended_l2) {
    const auto allocated = static_cast<std::uint32_t>(bitmap);
    const auto zero = static_cast<std::uint32_t>(bitmap >> 32);
    if ((allocated & zero) != 0) return InvalidEntry{"subcluster both allocated and zero"};
    const bool has_host = host != 0 || (g.external_data && copied);
    if (!has_host && allocated != 0) return InvalidEntry{"subcluster allocated without a cluster"};
    return SubclusteredCluster{host, copied, allocated, zero};
  }
  if (g.version >= 3 && (entry & kZeroBit) != 0) return ZeroCluster{host, copied};
  if (host == 0 && !(g.external_data && copied)) return Unallocated{};
  return DataCluster{host, copied};
}

// Reserved bits that are set in an L2 entry (version 2 has no zero bit), for the checker.
constexpr std::uint64_t l2_reserved_bits(const Geometry& g, std::uint64_t entry) {
  if ((entry & kCompressedBit) != 0) return 0;
  std::uint64_t reserved = kL2StandardReserved;
  if (g.version < 3 || g.extended_l2) reserved |= kZeroBit;
  return entry & reserved;
}

// Refcount block entries of any width: `index` counts entries, `block` is the block's bytes.
std::uint64_t refcount_get(const Geometry& g, const std::byte* block, std::uint64_t index);
// `value` fits the width.
void refcount_set(const Geometry& g, std::byte* block, std::uint64_t index, std::uint64_t value);

}  // namespace platter::qcow2
