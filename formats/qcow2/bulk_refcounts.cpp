#include "formats/qcow2/bulk_refcounts.h"

#include <algorithm>
#include <set>

#include "block/base/checked.h"
#include "formats/qcow2/storage_io.h"
#include "formats/qcow2/table_stream.h"

namespace platter::qcow2 {
namespace {

// The host clusters that an entry refers to: none, one, or those of packed bytes.
struct Touched {
  std::uint64_t first = 0;
  std::uint64_t count = 0;
};

Touched touched_by(const Geometry& g, std::uint64_t entry) {
  if ((entry & kCompressedBit) == 0) {
    const std::uint64_t host = entry & kOffsetMask;
    return {g.cluster_index(host), host != 0 ? 1u : 0u};
  }
  const ClusterState state = classify(g, entry);
  const auto* packed = std::get_if<CompressedCluster>(&state);
  if (!packed) return {};
  const std::uint64_t first = g.cluster_index(packed->host);
  return {first, g.cluster_index(packed->host + packed->length - 1) - first + 1};
}

std::vector<std::uint64_t> tables_of(std::span<const std::uint64_t> l1) {
  std::vector<std::uint64_t> tables;
  for (const std::uint64_t entry : l1) {
    if (l1_offset(entry) != 0) tables.push_back(l1_offset(entry));
  }
  return tables;
}

}  // namespace

Task<Result<void>> BulkRefcounts::load(std::uint64_t block) {
  const Geometry& g = core_.geometry;
  const std::uint64_t host = refcounts_.block(block);
  if (host == 0 || g.in_cluster(host) != 0) {
    co_return fail(
        kCorrupt, "a table refers to clusters that refcount block {} would count, which is missing",
        block);
  }
  if (blocks_.size() <= block) blocks_.resize(block + 1);
  auto loaded = std::make_unique<Block>();
  loaded->data = Buffer(g.cluster_size());
  auto fetched = co_await core_.file->read(host, loaded->data.iov());
  PLATTER_CO_TRY(fetched);
  blocks_[block] = std::move(loaded);
  co_return {};
}

Task<Result<void>> BulkRefcounts::load_for(std::span<const std::byte> table) {
  const Geometry& g = core_.geometry;
  for (std::size_t at = 0; at < table.size(); at += g.l2_entry_size()) {
    const Touched touched = touched_by(g, load_be<std::uint64_t>(table.data() + at));
    for (std::uint64_t c = touched.first; c < touched.first + touched.count; ++c) {
      if (has(c)) [[likely]]
        continue;
      auto loaded = co_await load(g.reftable_index(c));
      PLATTER_CO_TRY(loaded);
    }
  }
  co_return {};
}

std::uint64_t BulkRefcounts::get(std::uint64_t cluster) const {
  const Geometry& g = core_.geometry;
  return refcount_get(g, blocks_[g.reftable_index(cluster)]->data.data(),
                      g.refblock_index(cluster));
}

Result<void> BulkRefcounts::change_one(std::uint64_t cluster, int delta) {
  const Geometry& g = core_.geometry;
  Block& block = *blocks_[g.reftable_index(cluster)];
  const std::uint64_t index = g.refblock_index(cluster);
  const std::uint64_t old = refcount_get(g, block.data.data(), index);
  if (delta > 0 && old >= g.max_refcount()) {
    return fail(EINVAL, "the refcount of the cluster at offset {:#x} would exceed {}",
                cluster << g.cluster_bits, g.max_refcount());
  }
  if (delta < 0 && old == 0) {
    return fail(kCorrupt, "the cluster at offset {:#x} is in use but has refcount 0",
                cluster << g.cluster_bits);
  }
  refcount_set(g, block.data.data(), index, delta > 0 ? old + 1 : old - 1);
  block.dirty = true;
  if (delta < 0 && old == 1) {
    if (!freed_.empty() && freed_.back().first + freed_.back().count == cluster) {
      ++freed_.back().count;
    } else {
      freed_.push_back({cluster, 1});
    }
  }
  return {};
}

Result<void> BulkRefcounts::change_entry(std::uint64_t entry, int delta) {
  const Touched touched = touched_by(core_.geometry, entry);
  for (std::uint64_t c = touched.first; c < touched.first + touched.count; ++c) {
    const Result<void> changed = change_one(c, delta);
    PLATTER_TRY(changed);
  }
  return {};
}

Task<Result<void>> BulkRefcounts::change(std::uint64_t first, std::uint64_t clusters, int delta) {
  for (std::uint64_t c = first; c < first + clusters; ++c) {
    if (!has(c)) {
      auto loaded = co_await load(core_.geometry.reftable_index(c));
      PLATTER_CO_TRY(loaded);
    }
    const Result<void> changed = change_one(c, delta);
    PLATTER_CO_TRY(changed);
  }
  co_return {};
}

Task<Result<void>> BulkRefcounts::count(std::span<const std::uint64_t> l1, int delta) {
  const Geometry& g = core_.geometry;
  const std::vector<std::uint64_t> offsets = tables_of(l1);
  for (const std::uint64_t offset : offsets) {
    if (g.in_cluster(offset) != 0)
      co_return fail(kCorrupt, "L2 table offset {:#x} unaligned", offset);
  }
  TableStream tables(*core_.file, g.cluster_size(), offsets);
  Result<void> result;
  while (result) {
    auto table = co_await tables.next();
    if (!table.data.data()) break;
    result = table.read;
    if (result) result = co_await load_for(table.data);
    if (result) result = co_await change(g.cluster_index(offsets[table.index]), 1, delta);
    for (std::size_t at = 0; result && at < table.data.size(); at += g.l2_entry_size()) {
      const auto entry = load_be<std::uint64_t>(table.data.data() + at);
      if (entry != 0) result = change_entry(entry, delta);
    }
  }
  auto stopped = tables.stop();
  co_await stopped;
  co_return result;
}

Task<Result<void>> BulkRefcounts::mark_copied(std::span<std::uint64_t> l1) {
  const Geometry& g = core_.geometry;
  const std::vector<std::uint64_t> offsets = tables_of(l1);
  for (std::uint64_t& entry : l1) {
    const std::uint64_t table = l1_offset(entry);
    if (table == 0) continue;
    if (!has(g.cluster_index(table))) {
      auto loaded = co_await load(g.reftable_index(g.cluster_index(table)));
      PLATTER_CO_TRY(loaded);
    }
    entry = l1_entry(table, get(g.cluster_index(table)) == 1);
  }
  TableStream tables(*core_.file, g.cluster_size(), offsets);
  BulkWriter writer(*core_.file);
  Result<void> result;
  std::span<std::byte> piece;  // being filled: tables that lie one after the other
  std::uint64_t piece_offset = 0;
  std::size_t filled = 0;
  while (result) {
    auto table = co_await tables.next();
    if (!table.data.data()) break;
    result = table.read;
    if (result) result = co_await load_for(table.data);
    bool changed = false;
    for (std::size_t at = 0; result && at < table.data.size(); at += g.l2_entry_size()) {
      const auto entry = load_be<std::uint64_t>(table.data.data() + at);
      const std::uint64_t host = entry & kOffsetMask;
      if ((entry & kCompressedBit) != 0 || host == 0) continue;
      const std::uint64_t now =
          (entry & ~kCopied) | (get(g.cluster_index(host)) == 1 ? kCopied : 0);
      if (now == entry) continue;
      store_be(table.data.data() + at, now);
      changed = true;
    }
    if (!result || !changed) continue;
    const std::uint64_t offset = offsets[table.index];
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
      result = co_await core_.file->write(offset, IoVec(table.data));
      continue;
    }
    std::memcpy(piece.data() + filled, table.data.data(), table.data.size());
    filled += table.data.size();
  }
  if (filled != 0) writer.write(piece_offset, filled);
  auto written = co_await writer.finish();
  auto stopped = tables.stop();
  co_await stopped;
  if (result && !written) result = std::move(written);
  co_return result;
}

Task<Result<void>> BulkRefcounts::write() {
  std::vector<Task<Result<void>>> writes;
  Result<void> result;
  std::size_t awaited = 0;
  for (std::size_t i = 0; i < blocks_.size(); ++i) {
    if (!blocks_[i] || !std::exchange(blocks_[i]->dirty, false)) continue;
    if (writes.size() - awaited >= 32) {
      auto one = co_await writes[awaited++];
      if (!one && result) result = std::move(one);
    }
    writes.push_back(core_.file->write(refcounts_.block(i), blocks_[i]->data.iov()));
  }
  for (; awaited < writes.size(); ++awaited) {
    auto one = co_await writes[awaited];
    if (!one && result) result = std::move(one);
  }
  co_return result;
}

}  // namespace platter::qcow2
