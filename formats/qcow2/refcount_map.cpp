#include "formats/qcow2/refcount_map.h"

namespace platter::qcow2 {

void RefcountMap::clear() {
  chunks_.clear();
  large_.clear();
}

void RefcountMap::make_chunk(std::uint64_t index) {
  if (index >= chunks_.size()) chunks_.resize(index + 1);
  chunks_[index] = std::make_unique<std::uint16_t[]>(kChunk);
  grow(index * kChunk + 1);
}

void RefcountMap::set(std::uint64_t cluster, std::uint64_t value) {
  grow(cluster + 1);
  if (value == 0 && !chunk_at(cluster / kChunk)) return;
  std::uint16_t& cell = cell_at(cluster);
  if (cell == kLarge) large_.erase(cluster);
  if (value >= kLarge) {
    large_[cluster] = value;
    cell = kLarge;
  } else {
    cell = static_cast<std::uint16_t>(value);
  }
}

std::uint64_t RefcountMap::add_large(std::uint64_t cluster, std::uint64_t n, std::uint64_t max,
                                     bool& overflow) {
  const std::uint64_t before = get(cluster);
  overflow = before > max || n > max - before;
  const std::uint64_t after = overflow ? max : before + n;
  set(cluster, after);
  return after;
}

}  // namespace platter::qcow2
