// The part of HostClusters that finds room: the free map and the end of the file.
#include <algorithm>

#include "block/base/checked.h"
#include "formats/qcow2/host_clusters.h"

namespace platter::qcow2 {

void HostClusters::open() {
  can_grow_ = core_.file->driver().can_grow();
  MutexLock lock(core_.mutex());
  frontier_known_ = false;
  frontier_ = next_scan_ = 0;
  regions_.clear();
  with_free_.clear();
  unlinked_.clear();
  unlinked_clusters_ = 0;
  quarantined_.clear();
  packed_cursor = 0;
  conflict_.reset();
  zero_from_ = kLastHostCluster;
  if (can_grow_) zero_from_ = core_.geometry.clusters_for(core_.file->size());
}

std::uint64_t HostClusters::limit() const {
  const std::uint64_t format =
      std::min(kMaxHostOffset >> core_.geometry.cluster_bits, most_clusters_.load());
  return can_grow_ ? format : std::min(format, core_.geometry.cluster_index(core_.file->size()));
}

void HostClusters::mark_free(std::uint64_t cluster) {
  const std::uint64_t slice = refcounts_.slice_of(cluster);
  if (slice >= next_scan_ || cluster >= frontier_) return;
  Region& region = *regions_[slice];
  const std::uint64_t i = cluster & (refcounts_.slice_clusters() - 1);
  if (region.bits.empty()) region.bits.resize(div_round_up(refcounts_.slice_clusters(), 64));
  std::uint64_t& word = region.bits[i / 64];
  if (((word >> (i % 64)) & 1) != 0) return;
  word |= std::uint64_t{1} << (i % 64);
  if (region.free++ == 0) with_free_.insert(slice);
}

// With the mutex ---------------------------------------------------------------------------------

std::optional<Reservation> HostClusters::take_from_map(std::uint64_t count) {
  while (!with_free_.empty()) {
    const std::uint64_t slice = *with_free_.begin();
    if (!refcounts_.cache().peek(slice)) return std::nullopt;
    Region& region = *regions_[slice];
    const std::uint64_t base = slice * refcounts_.slice_clusters();
    const auto is_free = [&](std::uint64_t i) {
      return ((region.bits[i / 64] >> (i % 64)) & 1) != 0;
    };
    std::uint64_t first = 0;
    while (region.bits[first / 64] == 0) first += 64;
    first += static_cast<std::uint64_t>(std::countr_zero(region.bits[first / 64]));
    std::uint64_t taken = 0;
    bool usable = true;
    for (std::uint64_t i = first;
         taken < count && i < refcounts_.slice_clusters() && is_free(i) && usable; ++i) {
      const std::uint64_t cluster = base + i;
      // Metadata that counts as free: the image is corrupt (reserve() says so).
      usable =
          cluster < limit() && refcounts_.get(cluster) == 0 && !core_.metadata.contains(cluster);
      if (!usable && taken != 0) break;
      region.bits[i / 64] &= ~(std::uint64_t{1} << (i % 64));
      if (--region.free == 0) with_free_.erase(slice);
      if (usable) ++taken;
      if (core_.metadata.contains(cluster)) conflict_ = cluster;
    }
    if (taken != 0) return own(base + first, taken);
    if (conflict_) return std::nullopt;
  }
  return std::nullopt;
}

std::optional<Reservation> HostClusters::take_at_frontier(std::uint64_t count) {
  if (!frontier_known_) return std::nullopt;
  while (frontier_ < limit()) {
    const auto here = refcounts_.get(frontier_);
    if (refcounts_.block(core_.geometry.reftable_index(frontier_)) == 0 || !here)
      return std::nullopt;
    if (*here != 0) {
      ++frontier_;
      continue;
    }
    const std::uint64_t slice_end =
        (refcounts_.slice_of(frontier_) + 1) * refcounts_.slice_clusters();
    const std::uint64_t most = std::min({count, slice_end - frontier_, limit() - frontier_});
    std::uint64_t taken = 0;
    while (taken < most && refcounts_.get(frontier_ + taken) == 0) {
      if (core_.metadata.contains(frontier_ + taken)) {
        conflict_ = frontier_ + taken;
        return std::nullopt;
      }
      ++taken;
    }
    const std::uint64_t first = frontier_;
    frontier_ += taken;
    return own(first, taken);
  }
  return std::nullopt;
}

Reservation HostClusters::try_reserve(std::uint64_t count) {
  if (auto taken = take_from_map(count)) return std::move(*taken);
  const std::uint64_t scannable =
      std::min(refcounts_.slice_of(frontier_) + 1, refcounts_.cache().slice_count());
  if (with_free_.empty() && next_scan_ >= scannable && !conflict_) {
    if (auto taken = take_at_frontier(count)) return std::move(*taken);
  }
  return {};
}

// Coroutines -------------------------------------------------------------------------------------

Task<Result<Reservation>> HostClusters::reserve(std::uint64_t count) {
  auto guard = co_await preparing_.lock();
  auto reservation = co_await reserve_locked(count);
  co_return std::move(reservation);
}

Task<Result<Reservation>> HostClusters::reserve_locked(std::uint64_t count) {
  Search search = Search::kHoles;
  TableCache::Pin pin;
  while (true) {
    std::optional<std::uint64_t> conflict;
    {
      MutexLock lock(core_.mutex());
      auto taken = take_from_map(count);
      const std::uint64_t scannable =
          std::min(refcounts_.slice_of(frontier_) + 1, refcounts_.cache().slice_count());
      if (!taken && !conflict_ && with_free_.empty() &&
          (search != Search::kHoles || next_scan_ >= scannable))
        taken = take_at_frontier(count);
      if (taken) co_return std::move(*taken);
      conflict = conflict_;
    }
    if (conflict) {
      auto error = co_await core_.overlap(*conflict);
      co_return std::unexpected<Error>(error);
    }
    auto prepared = co_await prepare(search);
    PLATTER_CO_TRY(prepared);
    pin = std::move(*prepared);
  }
}

Task<Result<TableCache::Pin>> HostClusters::prepare(Search& search) {
  std::uint64_t slice = 0;
  std::uint64_t block = 0;
  enum { kFindFrontier, kLoad, kScan, kMakeBlock, kGrow, kFull } step;
  {
    MutexLock lock(core_.mutex());
    const std::uint64_t scannable =
        std::min(refcounts_.slice_of(frontier_) + 1, refcounts_.cache().slice_count());
    const bool full = frontier_ >= limit();
    block = core_.geometry.reftable_index(frontier_);
    if (!frontier_known_) {
      step = kFindFrontier;
    } else if (!with_free_.empty()) {
      slice = *with_free_.begin();
      step = kLoad;
    } else if (next_scan_ < scannable &&
               (search == Search::kHoles || (search == Search::kKnownHoles && full))) {
      slice = next_scan_;
      step = kScan;
    } else if (full) {
      step = kFull;
    } else if (block >= refcounts_.block_count()) {
      step = kGrow;
    } else if (refcounts_.block(block) == 0) {
      step = kMakeBlock;
    } else {
      slice = refcounts_.slice_of(frontier_);
      step = kLoad;
    }
  }
  Result<void> done;
  switch (step) {
    case kFindFrontier:
      done = co_await find_frontier();
      break;
    case kLoad: {
      auto pin = co_await refcounts_.cache().load(slice);
      if (pin && !*pin) {
        auto error = co_await core_.corruption(
            fmt::format("Refblock offset {:#x} unaligned (reftable index: {:#x})",
                        this->block(slice / refcounts_.slices_per_block()),
                        slice / refcounts_.slices_per_block()),
            true);
        co_return std::unexpected<Error>(error);
      }
      co_return std::move(pin);
    }
    case kScan:
      search = Search::kKnownHoles;
      done = co_await scan(slice);
      break;
    case kMakeBlock:
      done = co_await make_blocks(0);
      break;
    case kGrow:
      done = co_await grow_table(0);
      break;
    case kFull:
      done = fail_errno(ENOSPC);
      break;
  }
  PLATTER_CO_TRY(done);
  co_return TableCache::Pin();
}

Task<Result<void>> HostClusters::find_frontier() {
  const Geometry& g = core_.geometry;
  std::uint64_t end = 0;
  for (std::uint64_t index = block_count(); index-- != 0 && end == 0;) {
    if (block(index) == 0) continue;
    for (std::uint64_t i = refcounts_.slices_per_block(); i-- != 0 && end == 0;) {
      const std::uint64_t slice = index * refcounts_.slices_per_block() + i;
      auto pin = co_await refcounts_.cache().load(slice);
      PLATTER_CO_TRY(pin);
      if (!*pin) continue;
      MutexLock lock(core_.mutex());
      for (std::uint64_t c = refcounts_.slice_clusters(); c-- != 0 && end == 0;) {
        if (refcount_get(g, (*pin)->data.data(), c) != 0)
          end = slice * refcounts_.slice_clusters() + c + 1;
      }
    }
  }
  MutexLock lock(core_.mutex());
  frontier_ = std::max<std::uint64_t>(end, 1);
  frontier_known_ = true;
  co_return {};
}

Task<Result<std::uint64_t>> HostClusters::end() {
  auto guard = co_await preparing_.lock();
  open();
  auto found = co_await find_frontier();
  PLATTER_CO_TRY(found);
  co_return frontier();
}

Task<Result<void>> HostClusters::scan(std::uint64_t slice) {
  const bool counted = block(slice / refcounts_.slices_per_block()) != 0;
  TableCache::Pin pin;
  if (counted) {
    auto loaded = co_await refcounts_.cache().load(slice);
    PLATTER_CO_TRY(loaded);
    pin = std::move(*loaded);
  }
  MutexLock lock(core_.mutex());
  while (regions_.size() <= slice) regions_.push_back(std::make_unique<Region>());
  next_scan_ = slice + 1;
  if (!pin) {
    // Where there is no block, none of its slices has anything to say.
    next_scan_ = (slice / refcounts_.slices_per_block() + 1) * refcounts_.slices_per_block();
    while (regions_.size() < next_scan_) regions_.push_back(std::make_unique<Region>());
    co_return {};
  }
  const std::uint64_t base = slice * refcounts_.slice_clusters();
  for (std::uint64_t i = 0; i < refcounts_.slice_clusters() && base + i < frontier_; ++i) {
    if (refcount_get(core_.geometry, pin->data.data(), i) == 0) mark_free(base + i);
  }
  co_return {};
}

std::uint64_t HostClusters::frontier() {
  MutexLock lock(core_.mutex());
  return frontier_;
}

std::uint64_t HostClusters::block_count() {
  MutexLock lock(core_.mutex());
  return refcounts_.block_count();
}

std::uint64_t HostClusters::block(std::uint64_t index) {
  MutexLock lock(core_.mutex());
  return refcounts_.block(index);
}

Task<Result<Reservation>> HostClusters::reserve_exactly(std::uint64_t count) {
  auto guard = co_await preparing_.lock();
  if (count == 1) {
    auto one = co_await reserve_locked(1);
    co_return std::move(one);
  }
  std::vector<TableCache::Pin> pins;
  while (true) {
    std::uint64_t missing = 0;  // the first cluster of the range that cannot be taken yet
    std::uint64_t first = 0;
    bool known = false;
    std::optional<std::uint64_t> conflict;
    {
      MutexLock lock(core_.mutex());
      conflict = conflict_;
      first = frontier_;
      known = frontier_known_;
      missing = first;
      while (known && missing < first + count && missing < limit()) {
        if (refcounts_.block(core_.geometry.reftable_index(missing)) == 0) break;
        const auto here = refcounts_.get(missing);
        if (!here) break;
        if (*here != 0 || core_.metadata.contains(missing)) {
          // In use behind the frontier: start behind it. What is free before it is in the map.
          frontier_ = missing + 1;
          for (std::uint64_t c = first; c < missing; ++c) mark_free(c);
          break;
        }
        ++missing;
      }
      if (missing == first + count) {
        frontier_ = missing;
        co_return own(first, count);
      }
      if (frontier_ > first) continue;
    }
    if (conflict) {
      auto error = co_await core_.overlap(*conflict);
      co_return std::unexpected<Error>(error);
    }
    if (known && missing >= limit()) co_return fail_errno(ENOSPC);
    if (known && block(core_.geometry.reftable_index(missing)) != 0) {
      auto pin = co_await refcounts_.cache().load(refcounts_.slice_of(missing));
      PLATTER_CO_TRY(pin);
      if (!*pin) co_return fail(EIO, "a refcount block's offset is unaligned");
      pins.push_back(std::move(*pin));
      continue;
    }
    if (!known) {
      auto found = co_await find_frontier();
      PLATTER_CO_TRY(found);
      continue;
    }
    if (missing != first) {
      // The range reaches into a region without a block: the frontier goes there. What is left
      // behind is free and in the map.
      MutexLock lock(core_.mutex());
      const std::uint64_t from = frontier_;
      frontier_ = missing;
      for (std::uint64_t c = from; c < missing; ++c) mark_free(c);
    }
    auto made = co_await make_blocks(count);
    PLATTER_CO_TRY(made);
  }
}

}  // namespace platter::qcow2
