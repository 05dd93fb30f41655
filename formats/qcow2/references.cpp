#include "formats/qcow2/references.h"

#include <algorithm>
#include <cstring>

#include "block/base/bytes.h"
#include "block/base/checked.h"
#include "block/base/mutex.h"
#include "formats/qcow2/storage_io.h"
#include "formats/qcow2/table_stream.h"

namespace platter::qcow2 {
namespace {

// Where the tables of `l1` lie, in order, each once; and how often `l1` names it.
struct Tables {
  std::vector<std::uint64_t> offsets;
  std::vector<std::uint64_t> times;
};

Result<Tables> tables_of(const Geometry& g, std::span<const std::uint64_t> l1) {
  std::vector<std::uint64_t> all;
  for (const std::uint64_t entry : l1) {
    const std::uint64_t offset = l1_offset(entry);
    if (g.in_cluster(offset) != 0) return fail(kCorrupt, "L2 table offset {:#x} unaligned", offset);
    if (offset != 0) all.push_back(offset);
  }
  std::sort(all.begin(), all.end());
  Tables tables;
  for (const std::uint64_t offset : all) {
    if (tables.offsets.empty() || tables.offsets.back() != offset) {
      tables.offsets.push_back(offset);
      tables.times.push_back(0);
    }
    ++tables.times.back();
  }
  return tables;
}

// Counts into a map what the file has and a refcount block counts.
class Counter {
 public:
  Counter(Core& core, const Refcounts& refcounts, RefcountMap& map)
      : g_(core.geometry), map_(map), end_(g_.clusters_for(core.file->size())) {
    MutexLock lock(core.mutex());
    counted_.resize(refcounts.block_count());
    for (std::uint64_t i = 0; i < counted_.size(); ++i) counted_[i] = refcounts.block(i) != 0;
  }

  Result<void> clusters(std::uint64_t first, std::uint64_t last, std::uint64_t times) {
    if (last >= end_) {
      return fail(kCorrupt, "a table refers to offset {:#x}, behind the end of the file",
                  last << g_.cluster_bits);
    }
    bool overflow = false;
    for (std::uint64_t c = first; c <= last && !overflow; ++c) {
      const std::uint64_t block = g_.reftable_index(c);
      if (block >= counted_.size() || !counted_[block]) {
        return fail(
            kCorrupt,
            "a table refers to clusters that refcount block {} would count, which is missing",
            block);
      }
      map_.add(c, times, g_.max_refcount(), overflow);
    }
    if (overflow) {
      return fail(EINVAL, "the refcount of the cluster at offset {:#x} would exceed {}",
                  last << g_.cluster_bits, g_.max_refcount());
    }
    return {};
  }

  Result<void> table(std::span<const std::byte> bytes, std::uint64_t times) {
    const std::size_t step = g_.l2_entry_size();
    for (std::size_t at = 0; at < bytes.size(); at += step) {
      const auto entry = load_be<std::uint64_t>(bytes.data() + at);
      if ((entry & kCompressedBit) == 0) {
        const std::uint64_t host = entry & kOffsetMask;
        if (host == 0) continue;
        const std::uint64_t cluster = g_.cluster_index(host);
        const Result<void> counted = clusters(cluster, cluster, times);
        PLATTER_TRY(counted);
        continue;
      }
      const ClusterState state = classify(g_, entry);
      const auto* packed = std::get_if<CompressedCluster>(&state);
      if (!packed) continue;
      const std::uint64_t last = packed->host + packed->length - 1;
      const Result<void> counted =
          clusters(g_.cluster_index(packed->host), g_.cluster_index(last), times);
      PLATTER_TRY(counted);
    }
    return {};
  }

 private:
  const Geometry& g_;
  RefcountMap& map_;
  const std::uint64_t end_;    // of the file, in clusters
  std::vector<bool> counted_;  // by refcount block
};

}  // namespace

Task<Result<void>> count_references(Core& core, const Refcounts& refcounts,
                                    std::span<const std::uint64_t> l1, RefcountMap& map) {
  const Geometry& g = core.geometry;
  const Result<Tables> tables = tables_of(g, l1);
  PLATTER_CO_TRY(tables);
  Counter counter(core, refcounts, map);
  TableStream stream(*core.file, g.cluster_size(), tables->offsets);
  Result<void> result;
  while (result) {
    auto table = co_await stream.next();
    if (!table.data.data()) break;
    result = std::move(table.read);
    const std::uint64_t times = tables->times[table.index];
    const std::uint64_t cluster = g.cluster_index(tables->offsets[table.index]);
    if (result) result = counter.clusters(cluster, cluster, times);
    if (result) result = counter.table(table.data, times);
  }
  auto stopped = stream.stop();
  co_await stopped;
  co_return result;
}

Result<void> count_clusters(Core& core, const Refcounts& refcounts, RefcountMap& map,
                            std::uint64_t first, std::uint64_t clusters) {
  if (clusters == 0) return {};
  Counter counter(core, refcounts, map);
  return counter.clusters(first, first + clusters - 1, 1);
}

bool clear_copied(const Geometry& g, std::span<std::byte> table) {
  bool changed = false;
  const std::size_t step = g.l2_entry_size();
  for (std::size_t at = 0; at < table.size(); at += step) {
    const auto entry = load_be<std::uint64_t>(table.data() + at);
    if ((entry & kCopied) == 0 || (entry & kCompressedBit) != 0) continue;
    store_be(table.data() + at, entry & ~kCopied);
    changed = true;
  }
  return changed;
}

Task<Result<void>> clear_copied_in_file(Core& core, std::span<const std::uint64_t> l1) {
  const Geometry& g = core.geometry;
  const Result<Tables> tables = tables_of(g, l1);
  PLATTER_CO_TRY(tables);
  TableStream stream(*core.file, g.cluster_size(), tables->offsets);
  BulkWriter writer(*core.file);
  Result<void> result;
  std::span<std::byte> piece;  // being filled: tables that lie one after the other
  std::uint64_t piece_offset = 0;
  std::size_t filled = 0;
  while (result) {
    auto table = co_await stream.next();
    if (!table.data.data()) break;
    result = std::move(table.read);
    if (!result || !clear_copied(g, table.data)) continue;
    const std::uint64_t offset = tables->offsets[table.index];
    const bool joins = filled != 0 && offset == piece_offset + filled &&
                       filled + table.data.size() <= piece.size();
    if (!joins) {
      if (filled != 0) writer.write(piece_offset, filled);
      filled = 0;
      piece = co_await writer.buffer();
      piece_offset = offset;
    }
    if (table.data.size() > piece.size()) {
      // A table of the largest clusters: its own request.
      result = co_await core.file->write(offset, IoVec(table.data));
      continue;
    }
    std::memcpy(piece.data() + filled, table.data.data(), table.data.size());
    filled += table.data.size();
  }
  if (filled != 0) writer.write(piece_offset, filled);
  auto written = co_await writer.finish();
  auto stopped = stream.stop();
  co_await stopped;
  if (result && !written) result = std::move(written);
  co_return result;
}

}  // namespace platter::qcow2
