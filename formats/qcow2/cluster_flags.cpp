// Giving back the flags "refcount is one" after a snapshot has gone, while requests run.
#include <algorithm>

#include "formats/qcow2/cluster_writer.h"

namespace platter::qcow2 {
namespace {

// Entries that are looked at under one hold of the mutex.
constexpr std::uint64_t kFlagStep = 512;

}  // namespace

// The count of what an entry without the flag refers to cannot rise as long as the entry refers to
// it: only snapshots and packed neighbours raise counts. So what was single still is.
ClusterWriter::Claim* ClusterWriter::regain_entries(TableCache::Slice& slice, std::uint64_t offset,
                                                    std::uint64_t count, bool ours,
                                                    const RefcountMap& single) {
  const Geometry& g = core_.geometry;
  const std::uint64_t first = tables_.entry_of(offset);
  const std::uint64_t words = g.l2_entry_size() / 8;
  for (std::uint64_t i = 0; i < count; ++i) {
    const std::uint64_t word = slice.word((first + i) * words);
    const std::uint64_t host = word & kOffsetMask;
    if (host == 0 || (word & kCompressedBit) != 0 || g.in_cluster(host) != 0) continue;
    const bool copied = (word & kCopied) != 0;
    // In a table that was shared the flags in memory mean nothing yet, and the file has none; in
    // ours they are true.
    const bool now = (ours && copied) || single.get(g.cluster_index(host)) != 0;
    if (now == copied && (ours || !now)) continue;
    // Who is about to give the cluster a new place must be the only one who writes to it.
    if (Claim* claim = claimed(g.cluster_index(offset) + i, 1)) return claim;
    tables_.set_copied(slice, first + i, now);
  }
  return nullptr;
}

Task<Result<bool>> ClusterWriter::regain_table(std::uint64_t i, const RefcountMap& single) {
  const Geometry& g = core_.geometry;
  const std::uint64_t before = tables_.l1(i);
  const std::uint64_t table = l1_offset(before);
  const bool ours = l1_copied(before);
  if (table == 0 || g.in_cluster(table) != 0) co_return true;
  if (!ours && single.get(g.cluster_index(table)) == 0) co_return true;
  const std::uint64_t step = std::min(kFlagStep, tables_.slice_entries());
  std::uint64_t at = i * g.l2_coverage();
  for (const std::uint64_t end = at + g.l2_coverage(); at < end;) {
    auto pin = co_await tables_.cache().load(tables_.slice_of(at));
    PLATTER_CO_TRY(pin);
    UniqueMutexLock lock(core_.mutex());
    if (tables_.being_made(i)) {
      co_await tables_.made().wait(lock);
      co_return false;
    }
    if (tables_.l1(i) != before) co_return false;
    if (!*pin) co_return true;
    if (Claim* other = regain_entries(*pin->get(), at, step, ours, single)) {
      co_await other->waiters.wait(lock);
      continue;
    }
    at += step << g.cluster_bits;
    // Last: before, the table's flags count for nobody.
    if (at == end && !ours) tables_.set_l1(i, l1_entry(table, true));
  }
  co_return true;
}

Task<Result<void>> ClusterWriter::regain(const RefcountMap& single, std::uint64_t first,
                                         std::uint64_t end) {
  for (std::uint64_t i = first; i < std::min(end, tables_.l1_size()); ++i) {
    while (true) {
      auto done = co_await regain_table(i, single);
      PLATTER_CO_TRY(done);
      if (*done) break;
    }
  }
  co_return {};
}

}  // namespace platter::qcow2
