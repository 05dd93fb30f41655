// Replacing zero clusters by what version 2 has for them: nothing, where nothing shows through, and
// otherwise clusters full of zeroes. In all tables, those of snapshots too.
#include <algorithm>
#include <map>

#include "block/base/bytes.h"
#include "formats/qcow2/driver.h"
#include "formats/qcow2/refcount_map.h"

namespace platter::qcow2 {
namespace {

bool is_zero_cluster(std::uint64_t word) {
  return (word & kCompressedBit) == 0 && (word & kZeroBit) != 0;
}

Task<Result<std::uint64_t>> count_zero_clusters(BlockNode& file, const Buffer& table,
                                                std::uint64_t offset) {
  auto fetched = co_await file.read(offset, table.iov());
  PLATTER_CO_TRY(fetched);
  std::uint64_t count = 0;
  for (std::size_t at = 0; at < table.size(); at += 8) {
    if (is_zero_cluster(load_be<std::uint64_t>(table.data() + at))) ++count;
  }
  co_return count;
}

}  // namespace

Task<Result<void>> Qcow2Driver::expand_zeroes() {
  const Geometry& g = core_.geometry;
  // Tables, and how many L1 entries refer to each: whatever it refers to is counted so often.
  std::map<std::uint64_t, std::uint64_t> references;
  const auto add = [&](std::uint64_t entry) {
    if (const std::uint64_t table = l1_offset(entry); table != 0) ++references[table];
  };
  for (std::uint64_t i = 0; i < tables_.l1_size(); ++i) add(tables_.l1(i));
  for (const Snapshot& snapshot : snapshots_.table()) {
    auto l1 = co_await tables_.read_l1(snapshot.l1_table_offset, snapshot.l1_size);
    PLATTER_CO_TRY(l1);
    for (const std::uint64_t entry : *l1) add(entry);
  }
  const Buffer table(g.cluster_size());
  const bool fill = core_.backing() != nullptr || !core_.header.backing_file.empty();
  std::uint64_t wanted = 0;
  for (auto it = references.begin(); it != references.end();) {
    if (is_set(cancelled_)) co_return fail(ECANCELED, "cancelled");
    auto found = co_await count_zero_clusters(*core_.file, table, it->first);
    PLATTER_CO_TRY(found);
    wanted += *found;
    it = *found == 0 ? references.erase(it) : std::next(it);
  }
  if (references.empty()) co_return {};
  if (fill && core_.encrypted) {
    co_return fail(ENOTSUP,
                   "version 2 has no zero clusters, and those of an encrypted image with a "
                   "backing file are not replaced");
  }

  // New clusters, counted once each on disk and full of zeroes, before anything refers to them.
  std::vector<Reservation> places;
  for (std::uint64_t have = 0; fill && have < wanted;) {
    if (is_set(cancelled_)) co_return fail(ECANCELED, "cancelled");
    auto place = co_await clusters_.reserve(wanted - have);
    PLATTER_CO_TRY(place);
    have += place->count();
    auto zeroed =
        co_await core_.file->write_zeroes(place->host(), place->count() << g.cluster_bits);
    PLATTER_CO_TRY(zeroed);
    places.push_back(std::move(*place));
  }
  auto counted = co_await write_back_.commit(true);
  PLATTER_CO_TRY(counted);

  RefcountMap more(0);  // references to new clusters beyond the first
  RefcountMap lost(0);  // to old ones
  bool overflow = false;
  std::size_t place = 0;
  std::uint64_t used = 0;
  const auto next_host = [&] {
    if (used == places[place].count()) ++place, used = 0;
    return places[place].host() + (used++ << g.cluster_bits);
  };
  std::vector<std::pair<std::uint64_t, Buffer>> changed;
  for (const auto& [offset, times] : references) {
    if (is_set(cancelled_)) co_return fail(ECANCELED, "cancelled");
    Buffer bytes(g.cluster_size());
    auto fetched = co_await core_.file->read(offset, bytes.iov());
    PLATTER_CO_TRY(fetched);
    for (std::size_t at = 0; at < bytes.size(); at += 8) {
      const auto word = load_be<std::uint64_t>(bytes.data() + at);
      if (!is_zero_cluster(word)) continue;
      if (const std::uint64_t host = word & kOffsetMask; host != 0) {
        const std::uint64_t cluster = g.cluster_index(host);
        MutexLock lock(core_.mutex());
        if (host >= core_.file->size() || refcounts_.block(g.reftable_index(cluster)) == 0)
          co_return fail(kCorrupt, "a table refers to offset {:#x}, which nothing counts", host);
        lost.add(cluster, times, ~std::uint64_t{0}, overflow);
      }
      std::uint64_t now = 0;
      if (fill) {
        const std::uint64_t host = next_host();
        now = data_entry(host, times == 1);
        if (times > 1) more.set(g.cluster_index(host), times - 1);
      }
      store_be(bytes.data() + at, now);
    }
    changed.emplace_back(offset, std::move(bytes));
  }
  auto began = co_await begin_changing_counts();
  PLATTER_CO_TRY(began);
  auto written = co_await clusters_.raise(more);
  if (written) written = co_await write_back_.commit(true);
  for (const auto& [offset, bytes] : changed) {
    if (written) written = co_await core_.file->write(offset, bytes.iov());
  }
  if (written) written = co_await core_.file->flush();
  PLATTER_CO_TRY(written);
  {
    MutexLock lock(core_.mutex());
    for (Reservation& one : places) one.link();
  }
  auto lowered = co_await clusters_.lower(lost, Discard::kOther);
  if (lowered) lowered = co_await write_back_.commit(true);
  co_return lowered;
}

}  // namespace platter::qcow2
