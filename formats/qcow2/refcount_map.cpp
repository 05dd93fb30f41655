#include "formats/qcow2/refcount_map.h"

#include <utility>

namespace platter::qcow2 {

const RefcountMap::Chunk RefcountMap::kNothing;

void RefcountMap::Chunk::widen(std::uint64_t value) {
  Chunk wider;
  wider.order_ = value <= 1 ? 0 : value <= 0xff ? 3 : 6;
  wider.mask_ = ~std::uint64_t{0} >> (64 - (1u << wider.order_));
  wider.words_ = std::make_unique<std::uint64_t[]>(kChunk >> (6 - wider.order_));
  for (std::uint64_t i = 0; words_ && i < kChunk; ++i) wider.set(i, get(i));
  *this = std::move(wider);
}

std::uint64_t RefcountMap::end() const {
  std::uint64_t cluster = chunks_.size() * kChunk;
  while (cluster > 0) {
    const Chunk& last = chunk((cluster - 1) / kChunk);
    if (last.empty()) {
      cluster = (cluster - 1) / kChunk * kChunk;
    } else if (last.get((cluster - 1) % kChunk) == 0) {
      --cluster;
    } else {
      break;
    }
  }
  return cluster;
}

void RefcountMap::set(std::uint64_t cluster, std::uint64_t value) {
  const std::uint64_t index = cluster / kChunk;
  grow(cluster + 1);
  if (index >= chunks_.size()) {
    if (value == 0) return;
    chunks_.resize(index + 1);
  }
  if (value == 0 && chunks_[index].empty()) return;
  chunks_[index].set(cluster % kChunk, value);
}

}  // namespace platter::qcow2
