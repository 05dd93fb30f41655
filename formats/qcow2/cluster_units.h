// ClusterUnits: an L2 entry seen through the units in which a cluster is allocated and zeroed.
//
// With extended L2 entries a unit is a subcluster, and its bits lie in the entry's bitmap. Without
// them the whole cluster is one unit; it is shown as 32 bits that are all alike, so that whoever
// changes mappings needs no second way for either kind of image.
//
// Threads: values.
// Source: qcow2 specification, "Cluster mapping" and "Extended L2 Entries".
#pragma once

#include <cstdint>

#include "formats/qcow2/geometry.h"

namespace platter::qcow2 {

// An entry as it lies in the table, in host byte order; without extended L2 entries no bitmap.
struct L2Entry {
  std::uint64_t word = 0;
  std::uint64_t bitmap = 0;
  friend bool operator==(const L2Entry&, const L2Entry&) = default;
};

// Bit i: unit i of the cluster, from its start.
using UnitMask = std::uint32_t;
inline constexpr UnitMask kAllUnits = ~UnitMask{0};

struct ClusterUnits {
  bool valid = true;
  bool compressed = false;  // all of it is data, packed; nothing below is set
  bool has_host = false;    // there is a host cluster
  bool copied = false;      // which is this entry's alone
  std::uint64_t host = 0;   // bytes; in an external data file 0 is a place too
  UnitMask allocated = 0;   // units whose data is in the host cluster
  UnitMask zero = 0;        // units that read as zeroes; the others show the backing node

  // Written where it is, without a new host cluster.
  bool own() const { return valid && !compressed && has_host && copied; }
  UnitMask data() const { return compressed ? kAllUnits : allocated; }
};

inline ClusterUnits units_of(const Geometry& g, L2Entry entry) {
  ClusterUnits units;
  const ClusterState state = classify(g, entry.word, entry.bitmap);
  if (std::holds_alternative<InvalidEntry>(state)) {
    units.valid = false;
  } else if (std::holds_alternative<CompressedCluster>(state)) {
    units.compressed = true;
  } else if (!std::holds_alternative<Unallocated>(state)) {
    units.host = entry.word & kOffsetMask;
    units.copied = (entry.word & kCopied) != 0;
    units.has_host = units.host != 0 || (g.external_data && units.copied);
    if (const auto* sub = std::get_if<SubclusteredCluster>(&state)) {
      units.allocated = sub->allocated;
      units.zero = sub->zero;
    } else if (std::holds_alternative<ZeroCluster>(state)) {
      units.zero = kAllUnits;
    } else {
      units.allocated = kAllUnits;
    }
  }
  return units;
}

// The entry that says it; not for compressed ones.
inline L2Entry entry_of(const Geometry& g, const ClusterUnits& units) {
  L2Entry entry;
  if (units.has_host) entry.word = data_entry(units.host, units.copied);
  if (g.extended_l2) {
    entry.bitmap = (std::uint64_t{units.zero} << 32) | units.allocated;
  } else if (units.zero != 0) {
    entry.word |= kZeroBit;
  }
  return entry;
}

// Bytes of a unit.
constexpr std::uint64_t unit_size(const Geometry& g) {
  return g.extended_l2 ? g.subcluster_size() : g.cluster_size();
}

// The units that bytes [from, to) of a cluster touch; `from` < `to`.
constexpr UnitMask units_in(const Geometry& g, std::uint64_t from, std::uint64_t to) {
  if (!g.extended_l2) return kAllUnits;
  const std::uint64_t first = from / g.subcluster_size();
  const std::uint64_t end = div_round_up(to, g.subcluster_size());
  const UnitMask below_end = end >= kSubclusters ? kAllUnits : (UnitMask{1} << end) - 1;
  return below_end & ~((UnitMask{1} << first) - 1);
}

}  // namespace platter::qcow2
