// The part of HostClusters that changes the counts of very many clusters while requests run: slice
// by slice, each piece at once under the mutex.
#include <algorithm>

#include "block/base/bytes.h"
#include "block/base/checked.h"
#include "formats/qcow2/host_clusters.h"

namespace platter::qcow2 {
namespace {

// Clusters that share a slice and a chunk of the map, some of them referred to.
struct Piece {
  std::uint64_t first = 0;
  std::uint64_t end = 0;
};

std::optional<Piece> next_piece(const Refcounts& refcounts, const RefcountMap& map,
                                std::uint64_t from) {
  constexpr std::uint64_t kChunk = RefcountMap::kChunk;
  // The map ends somewhere in its last chunk.
  while (from < align_up(map.clusters(), kChunk)) {
    const std::uint64_t chunk_end = (from / kChunk + 1) * kChunk;
    const RefcountMap::Chunk& chunk = map.chunk(from / kChunk);
    if (chunk.empty()) {
      from = chunk_end;
      continue;
    }
    const std::uint64_t slice_end = (refcounts.slice_of(from) + 1) * refcounts.slice_clusters();
    const std::uint64_t end = std::min(chunk_end, slice_end);
    const std::uint64_t start = from;
    for (; from < end; ++from) {
      if (chunk.get(from % kChunk) != 0) return Piece{start, end};
    }
  }
  return std::nullopt;
}

// The counts of a slice, and what the map says of the same clusters.
class Counts {
 public:
  Counts(const Geometry& g, TableCache::Slice& slice, const Refcounts& refcounts, Piece piece,
         const RefcountMap& map)
      : g_(g),
        data_(slice.data.data()),
        first_(piece.first),
        index_(piece.first & (refcounts.slice_clusters() - 1)),
        map_(map) {}

  std::uint64_t get(std::uint64_t cluster) const {
    const std::uint64_t i = index_ + (cluster - first_);
    if (g_.refcount_order == 4) [[likely]]
      return load_be<std::uint16_t>(data_ + i * 2);
    return refcount_get(g_, data_, i);
  }
  void set(std::uint64_t cluster, std::uint64_t count) {
    const std::uint64_t i = index_ + (cluster - first_);
    if (g_.refcount_order == 4) [[likely]] {
      store_be(data_ + i * 2, static_cast<std::uint16_t>(count));
    } else {
      refcount_set(g_, data_, i, count);
    }
  }
  std::uint64_t times(std::uint64_t cluster) const { return map_.get(cluster); }

 private:
  const Geometry& g_;
  std::byte* const data_;
  const std::uint64_t first_;
  const std::uint64_t index_;
  const RefcountMap& map_;
};

}  // namespace

Task<Result<TableCache::Pin>> HostClusters::load_counts(std::uint64_t cluster) {
  PLATTER_FAULT(*core_.file, FaultEvent::kRefblockUpdate);
  auto pin = co_await refcounts_.cache().load(refcounts_.slice_of(cluster));
  PLATTER_CO_TRY(pin);
  if (!*pin) {
    co_return fail(
        kCorrupt, "a table refers to clusters that refcount block {} would count, which is missing",
        core_.geometry.reftable_index(cluster));
  }
  co_return std::move(*pin);
}

Task<Result<void>> HostClusters::raise(const RefcountMap& more) {
  const Geometry& g = core_.geometry;
  Result<void> result;
  std::uint64_t done = 0;
  while (const auto piece = next_piece(refcounts_, more, done)) {
    auto pin = co_await load_counts(piece->first);
    if (!pin) result = forward_error(pin);
    if (!result) break;
    MutexLock lock(core_.mutex());
    Counts counts(g, *pin->get(), refcounts_, *piece, more);
    for (std::uint64_t c = piece->first; c < piece->end && result; ++c) {
      if (counts.times(c) > g.max_refcount() - counts.get(c)) {
        result = fail(EINVAL, "the refcount of the cluster at offset {:#x} would exceed {}",
                      c << g.cluster_bits, g.max_refcount());
      } else if (counts.times(c) != 0 && counts.get(c) == 0) {
        result = fail(kCorrupt, "the cluster at offset {:#x} is in use but has refcount 0",
                      c << g.cluster_bits);
      }
    }
    if (!result) break;
    for (std::uint64_t c = piece->first; c < piece->end; ++c)
      counts.set(c, counts.get(c) + counts.times(c));
    refcounts_.mark_changed(*pin->get(), piece->first, piece->end);
    done = piece->end;
  }
  if (result) co_return result;
  // What cannot be taken back stays too high: a leak.
  auto taken_back = co_await lower_below(done, more, Discard::kNever);
  static_cast<void>(taken_back);
  co_return result;
}

Task<Result<void>> HostClusters::may_lower(const RefcountMap& less) {
  std::uint64_t done = 0;
  while (const auto piece = next_piece(refcounts_, less, done)) {
    auto pin = co_await load_counts(piece->first);
    PLATTER_CO_TRY(pin);
    MutexLock lock(core_.mutex());
    const Counts counts(core_.geometry, *pin->get(), refcounts_, *piece, less);
    for (std::uint64_t c = piece->first; c < piece->end; ++c) {
      if (counts.get(c) >= counts.times(c)) continue;
      co_return fail(kCorrupt, "the cluster at offset {:#x} is in use {} times but has refcount {}",
                     c << core_.geometry.cluster_bits, counts.times(c), counts.get(c));
    }
    done = piece->end;
  }
  co_return {};
}

Task<Result<void>> HostClusters::lower(const RefcountMap& less, Discard why) {
  return lower_below(~std::uint64_t{0}, less, why);
}

Task<Result<void>> HostClusters::lower_below(std::uint64_t end, const RefcountMap& less,
                                             Discard why) {
  Result<void> result;
  std::uint64_t done = 0;
  while (const auto piece = next_piece(refcounts_, less, done)) {
    if (piece->first >= end) break;
    done = piece->end;
    auto pin = co_await load_counts(piece->first);
    if (!pin) {
      // These stay counted: a leak.
      if (result) result = forward_error(pin);
      continue;
    }
    std::vector<ClusterRun> last;
    {
      MutexLock lock(core_.mutex());
      Counts counts(core_.geometry, *pin->get(), refcounts_, *piece, less);
      for (std::uint64_t c = piece->first; c < piece->end; ++c) {
        const std::uint64_t times = counts.times(c);
        const std::uint64_t count = counts.get(c);
        if (times == 0 || count == 0) continue;
        if (count > times) {
          counts.set(c, count - times);
        } else {
          counts.set(c, 1);
          note_last(last, c);
        }
      }
      refcounts_.mark_changed(*pin->get(), piece->first, piece->end);
    }
    if (last.empty()) continue;
    auto freeing = free_last(std::move(last), why);
    co_await freeing;
  }
  co_return result;
}

Task<Result<void>> HostClusters::keep_single(RefcountMap& map) {
  std::uint64_t done = 0;
  while (const auto piece = next_piece(refcounts_, map, done)) {
    auto pin = co_await load_counts(piece->first);
    PLATTER_CO_TRY(pin);
    MutexLock lock(core_.mutex());
    const Counts counts(core_.geometry, *pin->get(), refcounts_, *piece, map);
    for (std::uint64_t c = piece->first; c < piece->end; ++c) {
      const std::uint64_t single = counts.times(c) != 0 && counts.get(c) == 1 ? 1 : 0;
      if (counts.times(c) != single) map.set(c, single);
    }
    done = piece->end;
  }
  co_return {};
}

}  // namespace platter::qcow2
