// A snapshot table with entries that lack what version 3 demands (old programs wrote such ones) is
// written anew to another place; one header write makes it valid, with refcounts that count it.
#include <algorithm>

#include "block/base/checked.h"
#include "formats/qcow2/checker.h"
#include "formats/qcow2/complete_snapshots.h"
#include "formats/qcow2/storage_io.h"

namespace platter::qcow2 {

bool Checker::snapshots_incomplete() const {
  return std::ranges::any_of(snapshots_, [](const Snapshot& s) { return s.incomplete; });
}

// Into clusters that nobody refers to; counted in memory, and named by `header_` in memory.
Task<Result<void>> Checker::renew_snapshot_table() {
  if (!snapshots_incomplete()) co_return Result<void>{};
  auto table = co_await read_snapshot_table(file_, header_, true, TableBounds::kAnywhere);
  PLATTER_CO_TRY(table);
  for (Snapshot& s : table->snapshots) s.disk_size = s.disk_size.value_or(header_.size);
  const auto bytes = encode_snapshot_table(table->snapshots);
  PLATTER_CO_TRY(bytes);
  const std::uint64_t clusters = g_.clusters_for(bytes->size());
  const std::uint64_t start = find_free(clusters);
  if (start == 0) co_return fail(ENOSPC, "no {} free clusters in a row", clusters);
  std::vector<std::byte> whole(clusters << g_.cluster_bits);
  std::ranges::copy(*bytes, whole.begin());
  auto written = co_await write_table(start << g_.cluster_bits, whole);
  PLATTER_CO_TRY(written);
  for (std::uint64_t i = 0; i < clusters; ++i) counts_.set(start + i, 1);
  header_.snapshots_offset = start << g_.cluster_bits;
  snapshot_table_bytes_ = bytes->size();
  for (Snapshot& s : snapshots_) s.incomplete = false;
  co_return Result<void>{};
}

Task<Result<void>> Checker::complete(std::uint32_t version) {
  auto step = co_await count_for_change("its snapshot table is rewritten");
  PLATTER_CO_TRY(step);
  for (Snapshot& s : snapshots_) s.incomplete = !s.disk_size;
  const Header before = header_;
  header_.version = version;
  step = co_await renew_snapshot_table();
  if (step) step = co_await rebuild();
  if (!step) {
    // (Not when the header may have been written.)
    if (header_.refcount_table_offset == before.refcount_table_offset) header_ = before;
    co_return forward_error(step, "could not write the new snapshot table");
  }
  step = co_await free_old_structure();
  co_return step;
}

Task<Result<void>> complete_snapshots(BlockNode& file, Header& header, std::uint32_t version,
                                      const std::atomic<bool>* cancelled) {
  CheckRequest request{};
  request.cancelled = cancelled;
  Checker checker(file, header, request);
  auto completed = co_await checker.complete(version);
  co_return completed;
}

}  // namespace platter::qcow2
