// The part of HostClusters that makes room countable: new refcount blocks and larger refcount
// tables.
#include <algorithm>

#include "block/base/checked.h"
#include "block/exec/buffer.h"
#include "formats/qcow2/host_clusters.h"

namespace platter::qcow2 {
namespace {

constexpr std::size_t kZeroesAtOnce = std::size_t{1} << 20;

}  // namespace

// By writes, never by a resize: other requests' data may make the file longer at any moment, and a
// resize would then cut that off.
Task<Result<void>> HostClusters::write_table_zeroes(std::uint64_t first, std::uint64_t count) {
  const unsigned bits = core_.geometry.cluster_bits;
  const std::uint64_t end = (first + count) << bits;
  const Buffer zeroes = Buffer::zeroed(std::min<std::size_t>(count << bits, kZeroesAtOnce));
  for (std::uint64_t at = first << bits; at < end; at += zeroes.size()) {
    const std::size_t length = std::min<std::uint64_t>(zeroes.size(), end - at);
    auto written = co_await core_.file->write(at, IoVec(zeroes.span(0, length)));
    PLATTER_CO_TRY(written);
  }
  co_return {};
}

// The clusters from the frontier on become refcount blocks, from `first_block` on, and what follows
// them; all of it counts as in use.
void HostClusters::place_blocks(std::uint64_t first_block, std::uint64_t blocks,
                                std::uint64_t following) {
  const unsigned bits = core_.geometry.cluster_bits;
  const std::uint64_t first = frontier_;
  const std::uint64_t end = first + blocks + following;
  for (std::uint64_t i = 0; i < blocks; ++i)
    refcounts_.add_block(first_block + i, (first + i) << bits);
  for (std::uint64_t c = first; c < end; ++c) {
    const std::uint64_t slice = refcounts_.slice_of(c);
    if (refcounts_.cache().peek(slice)) continue;
    const std::uint64_t block_host = refcounts_.block(slice / refcounts_.slices_per_block());
    TableCache::Slice* added =
        refcounts_.cache().add_zeroed(slice, block_host + (slice % refcounts_.slices_per_block()) *
                                                              refcounts_.cache().slice_bytes());
    // Dirty at once, so that a small cache does not give it up for the next one.
    refcounts_.cache().mark_dirty(*added, 0, 1);
  }
  for (std::uint64_t c = first; c < end; ++c) {
    Reservation one = own(c, 1);
    one.link();
  }
  core_.metadata.add(first << bits, (end - first) << bits);
  frontier_ = end;
}

// Moves the frontier to the first block that there is among these: what it counts may be in use.
bool HostClusters::go_on_in_block(std::uint64_t first_block, std::uint64_t end_block) {
  MutexLock lock(core_.mutex());
  for (std::uint64_t i = first_block; i < end_block; ++i) {
    if (refcounts_.block(i) == 0) continue;
    frontier_ = i << core_.geometry.refblock_bits();
    return true;
  }
  return false;
}

// Blocks for the region of the frontier, which has none, and for `following` clusters behind the
// new blocks. One by one they would never leave a range between them that is longer than what one
// counts.
Task<Result<void>> HostClusters::make_blocks(std::uint64_t following) {
  const Geometry& g = core_.geometry;
  const std::uint64_t first = frontier();
  const std::uint64_t first_block = g.reftable_index(first);
  std::uint64_t blocks = 0;
  std::uint64_t end_block = first_block + 1;
  for (; end_block - first_block != blocks;
       end_block = g.reftable_index(first + blocks + following - 1) + 1)
    blocks = end_block - first_block;
  if (first + blocks + following > limit()) co_return fail_errno(ENOSPC);
  PLATTER_FAULT(*core_.file, FaultEvent::kRefblockAlloc);
  if (end_block > block_count()) {
    auto grown = co_await grow_table(end_block);
    co_return grown;
  }
  if (go_on_in_block(first_block, end_block)) co_return {};
  auto written = co_await write_table_zeroes(first, blocks);
  PLATTER_CO_TRY(written);
  MutexLock lock(core_.mutex());
  if (core_.metadata.overlaps(first << g.cluster_bits, blocks << g.cluster_bits)) {
    conflict_ = first;
    co_return {};
  }
  place_blocks(first_block, blocks, 0);
  co_return {};
}

Task<Result<void>> HostClusters::grow_table(std::uint64_t least_entries) {
  const Geometry& g = core_.geometry;
  const std::uint64_t first = frontier();
  const std::uint64_t first_block = g.reftable_index(first);
  PLATTER_FAULT(*core_.file, FaultEvent::kReftableGrow);
  // New blocks, then the table; the blocks must count both.
  std::uint64_t entries =
      std::max({first_block + 1, least_entries,
                std::min(block_count() * 3 / 2, std::uint64_t{kMaxRefTableBytes / 8})});
  std::uint64_t blocks = 1;
  std::uint64_t table_clusters = 0;
  while (true) {
    entries = align_up(entries, g.reftable_entries_per_cluster());
    if (entries * 8 > kMaxRefTableBytes) {
      co_return fail(EFBIG, "the refcount table would be larger than {} bytes", kMaxRefTableBytes);
    }
    table_clusters = g.clusters_for(entries * 8);
    const std::uint64_t last_block = g.reftable_index(first + blocks + table_clusters - 1);
    if (last_block >= entries) {
      entries = last_block + 1;
    } else if (last_block - first_block + 1 > blocks) {
      ++blocks;
    } else {
      break;
    }
  }
  if (go_on_in_block(first_block, first_block + blocks)) co_return {};
  if (first + blocks + table_clusters > limit()) co_return fail_errno(ENOSPC);
  auto written = co_await write_table_zeroes(first, blocks + table_clusters);
  PLATTER_CO_TRY(written);
  MutexLock lock(core_.mutex());
  const unsigned bits = g.cluster_bits;
  if (core_.metadata.overlaps(first << bits, (blocks + table_clusters) << bits)) {
    conflict_ = first;
    co_return {};
  }
  const Refcounts::Place old = refcounts_.move_table((first + blocks) << bits, entries);
  place_blocks(first_block, blocks, table_clusters);
  core_.metadata.remove(old.offset, old.clusters << bits);
  unlink(g.cluster_index(old.offset), old.clusters, Discard::kOther);
  co_return {};
}

}  // namespace platter::qcow2
