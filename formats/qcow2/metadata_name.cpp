// What lies in a host cluster that holds metadata, by name.
#include "formats/qcow2/driver.h"

namespace platter::qcow2 {

std::string_view Qcow2Driver::metadata_name(std::uint64_t cluster) {
  MutexLock lock(core_.mutex());
  const Geometry& g = core_.geometry;
  const auto within = [&](std::uint64_t offset, std::uint64_t length) {
    return length != 0 && cluster >= g.cluster_index(offset) &&
           cluster <= g.cluster_index(offset + length - 1);
  };
  if (cluster == 0) return "qcow2_header";
  if (within(tables_.l1_table_offset(), tables_.l1_size() * 8)) return "active L1 table";
  const std::uint64_t start = cluster << g.cluster_bits;
  for (std::uint64_t i = 0; i < tables_.l1_size(); ++i)
    if (l1_offset(tables_.l1(i)) == start) return "active L2 table";
  const Refcounts::Place place = refcounts_.place();
  if (within(place.offset, place.clusters << g.cluster_bits)) return "refcount table";
  for (std::uint64_t i = 0; i < refcounts_.block_count(); ++i)
    if (refcounts_.block(i) == start) return "refcount block";
  if (within(core_.header.snapshots_offset, snapshots_.table_bytes())) return "snapshot table";
  for (const Snapshot& snapshot : snapshots_.table()) {
    if (within(snapshot.l1_table_offset, std::uint64_t{snapshot.l1_size} * 8))
      return "inactive L1 table";
  }
  const auto& directory = core_.header.extensions.bitmaps;
  if (directory && within(directory->directory_offset, directory->directory_size))
    return "bitmap directory";
  if (const auto& encryption = core_.header.extensions.encryption;
      encryption && within(encryption->offset, encryption->length)) {
    return "encryption header";
  }
  return "bitmap table";
}

}  // namespace platter::qcow2
