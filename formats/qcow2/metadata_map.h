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
#include <vector>

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
  bool overlaps(std::uint64_t offset, std::uint64_t length) const {
    if (length == 0) return false;
    const std::uint64_t last = (offset + length - 1) >> bits_;
    for (std::uint64_t cluster = offset >> bits_; cluster <= last; ++cluster) {
      if (contains(cluster)) return true;
    }
    return false;
  }
  void clear() PLATTER_REQUIRES(metadata_mutex);
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
  struct Free {
    void operator()(void* block) const { std::free(block); }
  };
  // Zeroed, so that the pages of a table that nobody touches cost nothing.
  template <class T>
  using Zeroed = std::unique_ptr<T, Free>;
  template <class T>
  static Zeroed<T> allocate();

  const unsigned bits_;
  const Zeroed<Top> top_;
  // What the tables point to; walking those would touch all their pages.
  std::vector<Zeroed<Middle>> middles_;
  std::vector<Zeroed<Leaf>> leaves_;
};

}  // namespace platter::qcow2
