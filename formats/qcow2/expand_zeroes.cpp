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

struct Qcow2Driver::Expansion {
  // Tables with zero clusters, and how many L1 entries refer to each: whatever it refers to is
  // counted so often.
  std::map<std::uint64_t, std::uint64_t> tables;
  bool fill = false;         // a backing file would show through
  std::uint64_t wanted = 0;  // new clusters, if `fill`
  std::vector<Reservation> places;
  std::vector<std::pair<std::uint64_t, Buffer>> changed;  // tables, by offset
  RefcountMap more{0};  // references to new clusters beyond the first
  RefcountMap lost{0};  // to old ones
  // The next new cluster.
  std::uint64_t next_host(unsigned cluster_bits) {
    if (used == places[place].count()) ++place, used = 0;
    return places[place].host() + (used++ << cluster_bits);
  }
  std::size_t place = 0;
  std::uint64_t used = 0;
};

Task<Result<void>> Qcow2Driver::expand_zeroes() {
  Expansion expansion;
  expansion.fill = core_.backing() != nullptr || !core_.header.backing_file.empty();
  auto step = co_await find_zero_clusters(expansion);
  PLATTER_CO_TRY(step);
  if (expansion.tables.empty()) co_return {};
  if (expansion.fill && core_.encrypted) {
    co_return fail(ENOTSUP,
                   "version 2 has no zero clusters, and those of an encrypted image with a "
                   "backing file are not replaced");
  }
  step = co_await place_zero_clusters(expansion);
  PLATTER_CO_TRY(step);
  step = co_await replace_zero_clusters(expansion);
  PLATTER_CO_TRY(step);
  step = co_await publish_expansion(expansion);
  co_return step;
}

Task<Result<void>> Qcow2Driver::find_zero_clusters(Expansion& expansion) {
  auto& tables = expansion.tables;
  const auto add = [&tables](std::uint64_t entry) {
    if (const std::uint64_t table = l1_offset(entry); table != 0) ++tables[table];
  };
  for (std::uint64_t i = 0; i < tables_.l1_size(); ++i) add(tables_.l1(i));
  for (const Snapshot& snapshot : snapshots_.table()) {
    auto l1 = co_await tables_.read_l1(snapshot.l1_table_offset, snapshot.l1_size);
    PLATTER_CO_TRY(l1);
    for (const std::uint64_t entry : *l1) add(entry);
  }
  const Buffer table(core_.geometry.cluster_size());
  for (auto it = tables.begin(); it != tables.end();) {
    if (is_set(cancelled_)) co_return fail(ECANCELED, "cancelled");
    auto found = co_await count_zero_clusters(*core_.file, table, it->first);
    PLATTER_CO_TRY(found);
    expansion.wanted += *found;
    it = *found == 0 ? tables.erase(it) : std::next(it);
  }
  co_return {};
}

// New clusters, counted once each on disk and full of zeroes, before anything refers to them.
Task<Result<void>> Qcow2Driver::place_zero_clusters(Expansion& expansion) {
  const unsigned bits = core_.geometry.cluster_bits;
  for (std::uint64_t have = 0; expansion.fill && have < expansion.wanted;) {
    if (is_set(cancelled_)) co_return fail(ECANCELED, "cancelled");
    auto place = co_await clusters_.reserve(expansion.wanted - have);
    PLATTER_CO_TRY(place);
    have += place->count();
    auto zeroed = co_await core_.file->write_zeroes(place->host(), place->count() << bits);
    PLATTER_CO_TRY(zeroed);
    expansion.places.push_back(std::move(*place));
  }
  auto counted = co_await write_back_.commit(WriteBack::Flush::kOwn);
  co_return counted;
}

// In memory.
Task<Result<void>> Qcow2Driver::replace_zero_clusters(Expansion& expansion) {
  const Geometry& g = core_.geometry;
  bool overflow = false;
  for (const auto& [offset, times] : expansion.tables) {
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
        expansion.lost.add(cluster, times, ~std::uint64_t{0}, overflow);
      }
      std::uint64_t now = 0;
      if (expansion.fill) {
        const std::uint64_t host = expansion.next_host(g.cluster_bits);
        now = data_entry(host, times == 1);
        if (times > 1) expansion.more.set(g.cluster_index(host), times - 1);
      }
      store_be(bytes.data() + at, now);
    }
    expansion.changed.emplace_back(offset, std::move(bytes));
  }
  co_return {};
}

Task<Result<void>> Qcow2Driver::publish_expansion(Expansion& expansion) {
  auto began = co_await begin_changing_counts();
  PLATTER_CO_TRY(began);
  auto written = co_await clusters_.raise(expansion.more);
  if (written) written = co_await write_back_.commit(WriteBack::Flush::kOwn);
  for (const auto& [offset, bytes] : expansion.changed) {
    if (written) written = co_await core_.file->write(offset, bytes.iov());
  }
  if (written) written = co_await core_.file->flush();
  PLATTER_CO_TRY(written);
  {
    MutexLock lock(core_.mutex());
    for (Reservation& one : expansion.places) one.link();
  }
  auto lowered = co_await clusters_.lower(expansion.lost, Discard::kOther);
  if (lowered) lowered = co_await write_back_.commit(WriteBack::Flush::kOwn);
  co_return lowered;
}

}  // namespace platter::qcow2
