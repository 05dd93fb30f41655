// MetadataMap: which host clusters hold metadata, so that no data or foreign metadata is ever
// written over them, whatever the image's tables say.
//
// A bit per host cluster in a sparse tree: one look-up costs three loads and no lock. It is kept
// while the image is open for writing, from the header, L1, refcount table, refcount blocks, active
// L2 tables and snapshot tables.
//
// Threads: contains() from any; add() and remove() under Core::mutex().
#pragma once

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <memory>

#include "formats/qcow2/geometry.h"
#include "formats/qcow2/metadata_mutex.h"

namespace platter::qcow2 {

class MetadataMap {
 public:
  explicit MetadataMap(const Geometry& geometry);
  ~MetadataMap();
  MetadataMap(const MetadataMap&) = delete;
  MetadataMap& operator=(const MetadataMap&) = delete;

  // Ranges in bytes; every cluster they touch counts.
  void add(std::uint64_t offset, std::uint64_t length) PLATTER_REQUIRES(metadata_mutex);
  void remove(std::uint64_t offset, std::uint64_t length) PLATTER_REQUIRES(metadata_mutex);
  void clear();
  bool overlaps(std::uint64_t offset, std::uint64_t length) const {
    if (length == 0) return false;
    const std::uint64_t last = (offset + length - 1) >> bits_;
    for (std::uint64_t cluster = offset >> bits_; cluster <= last; ++cluster) {
      if (contains(cluster)) return true;
    }
    return false;
  }
  bool contains(std::uint64_t cluster) const;

 private:
  // 2^47 clusters at most: 16 bits for the top, 16 for the middle, 15 for a leaf of 4 KiB.
  struct Leaf {
    std::atomic<std::uint64_t> words[512];
  };
  struct Middle {
    std::atomic<Leaf*> leaves[65536];
  };
  struct Top {
    std::atomic<Middle*> middles[65536];
  };
  Leaf* leaf(std::uint64_t cluster, bool make);

  const unsigned bits_;
  Top* top_;  // calloc'ed: pages that nobody touches cost nothing
};

}  // namespace platter::qcow2
