// Making L2 tables that may be changed: new ones, and private copies of tables shared with
// snapshots.
#include "block/base/checked.h"
#include "formats/qcow2/host_clusters.h"
#include "formats/qcow2/l2_tables.h"
#include "formats/qcow2/references.h"

namespace platter::qcow2 {

Task<Result<TableCache::Pin>> L2Tables::make_writable(std::uint64_t offset) {
  const std::uint64_t i = core_.geometry.l1_index(offset);
  if (i >= l1_.size()) co_return fail(EIO, "offset {} is outside the L1 table", offset);
  while (true) {
    std::uint64_t entry = 0;
    {
      UniqueMutexLock lock(core_.mutex());
      entry = l1(i);
      const bool ours = l1_offset(entry) != 0 && l1_copied(entry);
      if (!ours) {
        if (making_.contains(i)) {
          co_await made_.wait(lock);
          continue;
        }
        making_.insert(i);
      } else {
        entry = 0;
      }
      if (ours) {
        lock.unlock();
        auto pin = co_await cache_.load(slice_of(offset));
        PLATTER_CO_TRY(pin);
        if (*pin) co_return std::move(pin);
        auto error = co_await complain(offset, nullptr, true);
        co_return std::unexpected<Error>(error);
      }
    }
    auto made = co_await make_table(i, entry);
    {
      MutexLock lock(core_.mutex());
      making_.erase(i);
      made_.notify_all();
    }
    PLATTER_CO_TRY(made);
  }
}

Task<Result<void>> L2Tables::written_back(std::uint64_t i) {
  while (true) {
    {
      MutexLock lock(core_.mutex());
      if (!cache_.unwritten(i * slices_per_table(), slices_per_table())) co_return {};
    }
    auto cleaning = cache_.clean();
    auto cleaned = co_await cleaning;
    PLATTER_CO_TRY(cleaned);
  }
}

void L2Tables::disown(TableCache::Slice& slice) {
  const std::uint64_t step = core_.geometry.l2_entry_size() / 8;
  for (std::uint64_t i = 0; i < slice_entries_ * step; i += step) {
    const std::uint64_t word = slice.word(i);
    if ((word & kCopied) != 0 && (word & kCompressedBit) == 0)
      slice.set_word_quietly(i, word & ~kCopied);
  }
}

Task<Result<void>> L2Tables::make_table(std::uint64_t i, std::uint64_t old_entry) {
  const Geometry& g = core_.geometry;
  const std::uint64_t old_table = l1_offset(old_entry);
  if (g.in_cluster(old_table) != 0) {
    auto error = co_await complain(i * g.l2_coverage(), nullptr, true);
    co_return std::unexpected<Error>(error);
  }
  auto room = cache_.make_room();
  co_await room;
  auto reservation = co_await clusters_.reserve(1);
  PLATTER_CO_TRY(reservation);
  const std::uint64_t host = reservation->host();
  PLATTER_FAULT(*core_.file, FaultEvent::kL2AllocWrite);
  if (old_table != 0) {
    // Nobody changes a shared table, but it may have changed before it was shared.
    auto written = co_await written_back(i);
    PLATTER_CO_TRY(written);
    const Buffer table(g.cluster_size());
    PLATTER_FAULT(*core_.file, FaultEvent::kL2AllocCowRead);
    auto fetched = co_await core_.file->read(old_table, table.iov());
    PLATTER_CO_TRY(fetched);
    if (!g.external_data) clear_copied(g, table.span());
    auto copied = co_await core_.file->write(host, table.iov());
    PLATTER_CO_TRY(copied);
  } else {
    auto zeroed = co_await clusters_.write_table_zeroes(g.cluster_index(host), 1);
    PLATTER_CO_TRY(zeroed);
  }
  MutexLock lock(core_.mutex());
  reservation->link();
  core_.metadata.add(host, g.cluster_size());
  const std::uint64_t first_slice = i * slices_per_table();
  if (old_table != 0) {
    for (std::uint64_t s = first_slice; s < first_slice + slices_per_table(); ++s) {
      if (TableCache::Slice* slice = cache_.peek(s); slice && !g.external_data) disown(*slice);
    }
    cache_.relocate(first_slice, slices_per_table(), host);
    core_.metadata.remove(old_table, g.cluster_size());
    clusters_.unlink(g.cluster_index(old_table), 1, Discard::kOther);
  } else if (slices_per_table() == 1) {
    cache_.add_zeroed(first_slice, host);
  }
  // Last: whoever finds that the table is ours finds no flag of the old one's in a slice.
  set_l1(i, l1_entry(host, true));
  co_return {};
}

}  // namespace platter::qcow2
