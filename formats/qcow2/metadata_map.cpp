#include "formats/qcow2/metadata_map.h"

namespace platter::qcow2 {
namespace {

constexpr std::uint64_t kEnd = std::uint64_t{1} << 47;

}  // namespace

template <class T>
MetadataMap::Zeroed<T> MetadataMap::allocate() {
  // Zero bytes are valid atomics of value zero on every platform that io_uring exists on.
  Zeroed<T> made(static_cast<T*>(std::calloc(1, sizeof(T))));
  if (!made) std::abort();
  return made;
}

MetadataMap::MetadataMap(const Geometry& geometry)
    : bits_(geometry.cluster_bits), top_(allocate<Top>()) {}

MetadataMap::~MetadataMap() = default;

void MetadataMap::clear() {
  for (const Zeroed<Leaf>& leaf : leaves_) {
    for (auto& word : leaf->words) word.store(0);
  }
}

MetadataMap::Leaf* MetadataMap::leaf(std::uint64_t cluster, bool make) {
  if (cluster >= kEnd) return nullptr;
  auto& middle_slot = top_->middles[cluster >> 31];
  Middle* middle = middle_slot.load();
  if (!middle) {
    if (!make) return nullptr;
    middle = middles_.emplace_back(allocate<Middle>()).get();
    middle_slot.store(middle);
  }
  auto& leaf_slot = middle->leaves[(cluster >> 15) & 0xffff];
  Leaf* found = leaf_slot.load();
  if (!found && make) {
    found = leaves_.emplace_back(allocate<Leaf>()).get();
    leaf_slot.store(found);
  }
  return found;
}

bool MetadataMap::contains(std::uint64_t cluster) const {
  if (cluster >= kEnd) return false;
  const Middle* middle = top_->middles[cluster >> 31].load();
  if (!middle) return false;
  const Leaf* found = middle->leaves[(cluster >> 15) & 0xffff].load();
  if (!found) return false;
  const std::uint64_t bit = cluster & 0x7fff;
  return ((found->words[bit / 64].load(std::memory_order_acquire) >> (bit % 64)) & 1) != 0;
}

void MetadataMap::add(std::uint64_t offset, std::uint64_t length) {
  if (length == 0) return;
  const std::uint64_t last = (offset + length - 1) >> bits_;
  for (std::uint64_t cluster = offset >> bits_; cluster <= last; ++cluster) {
    Leaf* found = leaf(cluster, true);
    const std::uint64_t bit = cluster & 0x7fff;
    if (found) found->words[bit / 64].fetch_or(std::uint64_t{1} << (bit % 64));
  }
}

void MetadataMap::remove(std::uint64_t offset, std::uint64_t length) {
  if (length == 0) return;
  const std::uint64_t last = (offset + length - 1) >> bits_;
  for (std::uint64_t cluster = offset >> bits_; cluster <= last; ++cluster) {
    Leaf* found = leaf(cluster, false);
    const std::uint64_t bit = cluster & 0x7fff;
    if (found) found->words[bit / 64].fetch_and(~(std::uint64_t{1} << (bit % 64)));
  }
}

}  // namespace platter::qcow2
