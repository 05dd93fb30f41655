// Reading and writing the contents of a persistent bitmap: its table and the clusters that the
// table names (qcow2 specification, "Bitmap table", "Bitmap data").
//
// Threads: one coroutine; nobody else changes the bitmap.
// Errors: one line that names the bitmap, the table entry, its value and the limit.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "block/node/dirty_bitmap.h"
#include "formats/qcow2/bitmap_directory.h"
#include "formats/qcow2/core.h"
#include "formats/qcow2/host_clusters.h"

namespace platter::qcow2 {

// Bits of bitmaps that may be in memory at once, in bytes as the tables tell them. What is really
// taken is bounded by what the file holds.
inline constexpr std::uint64_t kMaxLoadedBitmapBytes = std::uint64_t{1} << 30;

// Entries of the table of a bitmap for a disk of `size` bytes.
std::uint64_t bitmap_table_entries(std::uint64_t size, unsigned granularity_bits,
                                   std::uint64_t cluster_size);

// The table of `entry`, each of its entries checked: no reserved bits, clusters in the file and
// none named twice.
Task<Result<std::vector<std::uint64_t>>> read_bitmap_table(BlockNode& file,
                                                           const Geometry& geometry,
                                                           const BitmapEntry& entry);

// The bitmap that `entry`, which is not in use, describes, for a disk of `size` bytes.
Task<Result<std::unique_ptr<DirtyBitmap>>> load_bitmap(BlockNode& file, const Geometry& geometry,
                                                       const BitmapEntry& entry,
                                                       std::uint64_t size);

// Clusters set aside and written, which nothing on disk refers to yet.
struct Placed {
  std::vector<Reservation> places;
  void link() PLATTER_REQUIRES(metadata_mutex) {
    for (Reservation& place : places) place.link();
  }
};

// Writes `bits` to new clusters, and sets the place and size of the table in `entry`.
Task<Result<void>> store_bitmap(Core& core, HostClusters& clusters, const DirtyBitmap& bits,
                                BitmapEntry& entry, Placed& placed);

}  // namespace platter::qcow2
