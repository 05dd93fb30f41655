#include "formats/qcow2/refcounts.h"

#include <algorithm>

#include "block/base/checked.h"

namespace platter::qcow2 {
namespace {

constexpr std::uint64_t kTablePiece = 64;  // table entries: a sector
constexpr std::uint64_t kSliceBytes = 4 << 10;
constexpr std::uint64_t kDefaultRefcountBytes = 1 << 20;
constexpr std::uint64_t kMinRefcountSlices = 4;

}  // namespace

Task<Result<void>> Refcounts::open(std::uint64_t cache_bytes,
                                   std::function<Task<Result<void>>()> clean) {
  const Geometry& g = core_.geometry;
  const std::uint64_t entries = core_.header.refcount_table_bytes() / 8;
  std::vector<std::uint64_t> table(entries);
  if (entries != 0) {
    const Buffer bytes(entries * 8);
    PLATTER_FAULT(*core_.file, FaultEvent::kReftableLoad);
    auto fetched = co_await core_.file->read(core_.header.refcount_table_offset, bytes.iov());
    if (!fetched) co_return forward_error(fetched, "could not read the refcount table");
    for (std::uint64_t i = 0; i < entries; ++i)
      table[i] = load_be<std::uint64_t>(bytes.data() + i * 8);
  }
  MutexLock lock(core_.mutex());
  table_ = std::move(table);
  table_offset_ = core_.header.refcount_table_offset;
  const std::uint64_t slice = std::min(kSliceBytes, g.cluster_size());
  slice_bits_ =
      g.refblock_bits() - static_cast<unsigned>(std::countr_zero(g.cluster_size() / slice));
  const std::uint64_t bytes = cache_bytes != 0 ? cache_bytes : kDefaultRefcountBytes;
  TableCache::Config config{.slice_bytes = slice,
                            .slice_count = entries * slices_per_block(),
                            .capacity = std::max(kMinRefcountSlices, bytes / slice),
                            .load_event = FaultEvent::kRefblockLoad};
  const auto where = [this](std::uint64_t index)
                         PLATTER_REQUIRES(metadata_mutex) { return locate(index); };
  cache_.configure(config, *core_.file, where, std::move(clean));
  co_return {};
}

std::uint64_t Refcounts::locate(std::uint64_t slice) const {
  const std::uint64_t host = block(slice / slices_per_block());
  if (host == 0 || core_.geometry.in_cluster(host) != 0) return 0;
  return host + (slice % slices_per_block()) * cache_.slice_bytes();
}

std::optional<std::uint64_t> Refcounts::get(std::uint64_t cluster) const {
  if (block(core_.geometry.reftable_index(cluster)) == 0) return 0;
  const TableCache::Slice* slice = cache_.peek(slice_of(cluster));
  if (!slice) return std::nullopt;
  return refcount_get(core_.geometry, slice->data.data(), cluster & (slice_clusters() - 1));
}

void Refcounts::set(std::uint64_t cluster, std::uint64_t value) {
  TableCache::Slice* slice = cache_.peek(slice_of(cluster));
  const std::uint64_t index = cluster & (slice_clusters() - 1);
  refcount_set(core_.geometry, slice->data.data(), index, value);
  cache_.mark_dirty(*slice, (index << core_.geometry.refcount_order) / 8, 1);
}

void Refcounts::mark_changed(TableCache::Slice& slice, std::uint64_t first, std::uint64_t end) {
  const unsigned order = core_.geometry.refcount_order;
  const std::uint64_t index = first & (slice_clusters() - 1);
  const std::uint64_t from = (index << order) / 8;
  cache_.mark_dirty(slice, from, ((index + (end - first) - 1) << order) / 8 - from + 1);
}

void Refcounts::add_block(std::uint64_t i, std::uint64_t host) {
  table_[i] = host;
  dirty_.insert(i / kTablePiece);
}

Refcounts::Place Refcounts::move_table(std::uint64_t host, std::uint64_t entries) {
  const Place old = place();
  table_.resize(entries, 0);
  table_offset_ = host;
  moved_ = true;
  cache_.resize(entries * slices_per_block());
  return old;
}

std::vector<Refcounts::TableWrite> Refcounts::take_dirty_table(bool& moved) {
  std::vector<TableWrite> writes;
  moved = moved_;
  const auto take = [&](std::uint64_t first, std::uint64_t count) PLATTER_REQUIRES(metadata_mutex) {
    TableWrite one{table_offset_ + first * 8, Buffer(count * 8)};
    for (std::uint64_t i = 0; i < count; ++i) store_be(one.bytes.data() + i * 8, table_[first + i]);
    writes.push_back(std::move(one));
  };
  if (moved_) {
    take(0, table_.size());
  } else {
    for (const std::uint64_t piece : dirty_) {
      take(piece * kTablePiece,
           std::min<std::uint64_t>(kTablePiece, table_.size() - piece * kTablePiece));
    }
  }
  moved_ = false;
  dirty_.clear();
  return writes;
}

void Refcounts::put_back_table(const std::vector<TableWrite>& writes, bool moved) {
  moved_ = moved_ || moved;
  if (moved) return;
  for (const TableWrite& one : writes) {
    // After a move meanwhile the whole table is written anyway.
    if (one.offset >= table_offset_) dirty_.insert((one.offset - table_offset_) / 8 / kTablePiece);
  }
}

}  // namespace platter::qcow2
