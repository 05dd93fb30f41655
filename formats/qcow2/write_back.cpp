#include "formats/qcow2/write_back.h"

namespace platter::qcow2 {

Task<Result<void>> WriteBack::barrier() {
  if (core_.data_file) {
    auto data = co_await core_.data_file->flush();
    PLATTER_CO_TRY(data);
  }
  auto flushed = co_await core_.file->flush();
  if (flushed) {
    counts_unsure_ = false;
  } else {
    barrier_error_ = flushed.error();
  }
  co_return flushed;
}

Result<void> WriteBack::owed() {
  last_told_ = std::exchange(owed_error_, std::nullopt);
  if (last_told_) return std::unexpected<Error>(*last_told_);
  return {};
}

Task<Result<void>> WriteBack::commit(Flush flush) {
  const bool always = flush != Flush::kIfNeeded;
  const std::uint64_t number = asked_.fetch_add(1) + 1;
  auto guard = co_await running_.lock();
  if (always && covered_ >= number) {
    // Somebody's write-back began after this one was asked for.
    if (last_error_) co_return std::unexpected<Error>(*last_error_);
    if (flush == Flush::kOwn) co_return {};
    if (last_told_) co_return std::unexpected<Error>(*last_told_);
    co_return owed();
  }
  const std::uint64_t covers = asked_.load();
  auto result = co_await write_all(always);
  if (always) {
    covered_ = covers;
    last_error_.reset();
    last_told_.reset();
    if (!result) last_error_ = result.error();
  }
  if (flush == Flush::kAsked) {
    if (result) result = owed();
    owed_error_.reset();
  }
  if (barrier_error_) owed_error_ = std::exchange(barrier_error_, std::nullopt);
  co_return result;
}

Task<Result<void>> WriteBack::clean() {
  auto guard = co_await running_.lock();
  auto result = co_await write_all(false);
  barrier_error_.reset();
  if (!result) owed_error_ = result.error();
  co_return result;
}

struct WriteBack::Batch {
  std::vector<TableCache::WriteBack> counts;
  std::vector<TableCache::WriteBack> slices;
  std::vector<Refcounts::TableWrite> table;
  std::vector<L2Tables::L1Piece> l1;
  std::vector<ClusterRun> unlinked;
  bool moved = false;       // the refcount table lies elsewhere now
  bool references = false;  // there were slices or pieces of L1
  bool lazy = false;
  std::uint64_t l1_offset = 0;
  Refcounts::Place place;
};

WriteBack::Batch WriteBack::take() {
  Batch batch;
  MutexLock lock(core_.mutex());
  // A table that has moved is named by the header before the place of the old one, which is among
  // what was unlinked, is used for anything else.
  batch.lazy = lazy_.load() && !refcounts_.table_moved();
  if (!batch.lazy) {
    batch.counts = refcounts_.cache().take_dirty();
    batch.table = refcounts_.take_dirty_table(batch.moved);
  }
  batch.place = refcounts_.place();
  batch.slices = tables_.cache().take_dirty();
  batch.l1 = tables_.take_dirty_l1();
  batch.references = !batch.slices.empty() || !batch.l1.empty();
  batch.l1_offset = tables_.l1_table_offset();
  batch.unlinked = clusters_.take_unlinked();
  return batch;
}

void WriteBack::end(Batch batch, bool written) {
  MutexLock lock(core_.mutex());
  unwritten_ = {};
  if (written) {
    clusters_.settled(std::move(batch.unlinked));
    return;
  }
  const bool undone = barrier_error_.has_value();
  unwritten_ = {
      .tables = batch.references || undone,
      .counts = !batch.counts.empty() || !batch.table.empty() || counts_unsure_ || undone};
  refcounts_.cache().put_back(std::move(batch.counts));
  refcounts_.put_back_table(batch.table, batch.moved);
  tables_.cache().put_back(std::move(batch.slices));
  tables_.put_back(batch.l1);
  clusters_.not_settled(std::move(batch.unlinked));
}

Task<Result<void>> WriteBack::write_all(bool flush_always) {
  if (core_.poisoned.load()) co_return core_.given_up();
  Batch batch = take();
  auto result = co_await prepare_header(batch);
  if (result) result = co_await write_counts(batch);
  if (result && (batch.references || !batch.table.empty())) result = co_await barrier();
  if (result) result = co_await write_count_table(batch);
  if (result) result = co_await write_references(batch);
  if (result && (batch.references || flush_always || !batch.unlinked.empty()))
    result = co_await barrier();
  end(std::move(batch), result.has_value());
  co_return result;
}

Task<Result<void>> WriteBack::prepare_header(const Batch& batch) {
  Result<void> result;
  if (core_.header_unsure.load()) {
    result = co_await barrier();
    auto guard = co_await core_.header_mutex.lock();
    if (result) result = co_await core_.publish_header();
  }
  // With lazy refcounts the counts on disk are about to become too low.
  if (result && batch.lazy && batch.references)
    result = co_await core_.set_incompatible(incompatible::kDirty, true);
  if (result && std::exchange(clear_autoclear_, false)) {
    auto guard = co_await core_.header_mutex.lock();
    if ((core_.header.autoclear_features & ~autoclear::kKnown) != 0 ||
        core_.header.extensions.stale_bitmaps) {
      core_.header.autoclear_features &= autoclear::kKnown;
      result = co_await core_.write_header();
    }
  }
  co_return result;
}

Task<Result<void>> WriteBack::write_counts(Batch& batch) {
  if (batch.counts.empty()) co_return {};
  PLATTER_FAULT(*core_.file, FaultEvent::kRefblockUpdatePart);
  if (!batch.table.empty()) {
    // New blocks are among them.
    PLATTER_FAULT(*core_.file, FaultEvent::kRefblockAllocWrite);
    if (batch.moved) PLATTER_FAULT(*core_.file, FaultEvent::kRefblockAllocWriteBlocks);
  }
  counts_unsure_ = true;
  auto written = co_await refcounts_.cache().write(std::move(batch.counts));
  batch.counts.clear();
  co_return written;
}

Task<Result<void>> WriteBack::write_count_table(Batch& batch) {
  if (batch.table.empty()) co_return {};
  PLATTER_FAULT(*core_.file, FaultEvent::kReftableUpdate);
  PLATTER_FAULT(*core_.file, batch.moved ? FaultEvent::kRefblockAllocWriteTable
                                         : FaultEvent::kRefblockAllocHookup);
  for (const Refcounts::TableWrite& one : batch.table) {
    auto written = co_await core_.file->write(one.offset, one.bytes.iov());
    PLATTER_CO_TRY(written);
  }
  auto flushed = co_await barrier();
  PLATTER_CO_TRY(flushed);
  if (batch.moved) {
    auto switched = co_await move_count_table(batch);
    PLATTER_CO_TRY(switched);
  }
  batch.table.clear();
  batch.moved = false;
  co_return {};
}

Task<Result<void>> WriteBack::move_count_table(const Batch& batch) {
  PLATTER_FAULT(*core_.file, FaultEvent::kRefblockAllocSwitchTable);
  auto guard = co_await core_.header_mutex.lock();
  const std::uint64_t old_offset = core_.header.refcount_table_offset;
  const std::uint32_t old_clusters = core_.header.refcount_table_clusters;
  core_.header.refcount_table_offset = batch.place.offset;
  core_.header.refcount_table_clusters = static_cast<std::uint32_t>(batch.place.clusters);
  auto result = co_await core_.write_header();
  if (result) result = co_await barrier();
  if (result) {
    core_.header_unsure.store(false);
  } else {
    core_.header.refcount_table_offset = old_offset;
    core_.header.refcount_table_clusters = old_clusters;
  }
  co_return result;
}

Task<Result<void>> WriteBack::write_references(Batch& batch) {
  if (!batch.slices.empty()) {
    auto written = co_await tables_.cache().write(std::move(batch.slices));
    batch.slices.clear();
    PLATTER_CO_TRY(written);
  }
  if (batch.l1.empty()) co_return {};
  PLATTER_FAULT(*core_.file, FaultEvent::kL1Update);
  for (const L2Tables::L1Piece& piece : batch.l1) {
    auto written = co_await core_.file->write(batch.l1_offset + piece.first * 8, piece.bytes.iov());
    PLATTER_CO_TRY(written);
  }
  co_return {};
}

}  // namespace platter::qcow2
