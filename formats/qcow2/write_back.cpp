#include "formats/qcow2/write_back.h"

namespace platter::qcow2 {

Task<Result<void>> WriteBack::barrier() {
  if (core_.data_file) {
    auto data = co_await core_.data_file->flush();
    PLATTER_CO_TRY(data);
  }
  auto flushed = co_await core_.file->flush();
  if (!flushed) barrier_error_ = flushed.error();
  co_return flushed;
}

Task<Result<void>> WriteBack::commit(bool flush_always) {
  const std::uint64_t number = asked_.fetch_add(1) + 1;
  auto guard = co_await running_.lock();
  if (flush_always && covered_ >= number) {
    // Somebody's write-back began after this one was asked for.
    if (last_error_) co_return std::unexpected<Error>(*last_error_);
    co_return {};
  }
  const std::uint64_t covers = asked_.load();
  auto result = co_await write_all(flush_always);
  if (flush_always) {
    if (result && owed_error_) result = std::unexpected<Error>(*owed_error_);
    owed_error_ = std::exchange(barrier_error_, std::nullopt);
  }
  if (flush_always) {
    covered_ = covers;
    last_error_.reset();
    if (!result) last_error_ = result.error();
  }
  co_return result;
}

Task<Result<void>> WriteBack::clean() {
  auto guard = co_await running_.lock();
  auto result = co_await write_all(false);
  if (!result) owed_error_ = result.error();
  co_return result;
}

Task<Result<void>> WriteBack::write_all(bool flush_always) {
  std::vector<TableCache::WriteBack> counts;
  std::vector<TableCache::WriteBack> slices;
  std::vector<Refcounts::TableWrite> table;
  std::vector<L2Tables::L1Piece> l1;
  std::vector<ClusterRun> unlinked;
  bool moved = false;
  const bool lazy = lazy_.load();
  std::uint64_t l1_offset = 0;
  std::uint64_t end = 0;
  Refcounts::Place place;
  if (core_.poisoned.load())
    co_return fail(EIO, "the image is corrupt and is not written to any more");
  {
    MutexLock lock(core_.mutex());
    if (!lazy) {
      counts = refcounts_.cache().take_dirty();
      table = refcounts_.take_dirty_table(moved);
    }
    place = refcounts_.place();
    slices = tables_.cache().take_dirty();
    l1 = tables_.take_dirty_l1();
    l1_offset = tables_.l1_table_offset();
    unlinked = clusters_.take_unlinked();
    end = clusters_.unwritten_end();
  }
  const bool references = !slices.empty() || !l1.empty();
  Result<void> result;
  if (core_.header_unsure.load()) {
    result = co_await barrier();
    auto guard = co_await core_.header_mutex.lock();
    if (result) result = co_await core_.publish_header();
  }
  // With lazy refcounts the counts on disk are about to become too low.
  if (result && lazy && (references || !unlinked.empty()))
    result = co_await core_.set_incompatible(incompatible::kDirty, true);
  if (result && std::exchange(clear_autoclear_, false)) {
    auto guard = co_await core_.header_mutex.lock();
    if ((core_.header.autoclear_features & ~autoclear::kKnown) != 0 ||
        core_.header.extensions.stale_bitmaps) {
      core_.header.autoclear_features &= autoclear::kKnown;
      result = co_await core_.write_header();
    }
  }
  if (result && end > core_.file->size()) {
    // By a write, never by a resize: other requests' data may make the file longer than `end` at
    // any moment, and a resize would then cut that off. Nobody else writes to this place, it is the
    // end of a table, which only a write-back touches.
    const Buffer zeroes = Buffer::zeroed(kSector);
    result = co_await core_.file->write(end - zeroes.size(), zeroes.iov());
  }
  if (result && !counts.empty()) {
    PLATTER_FAULT(*core_.file, FaultEvent::kRefblockUpdatePart);
    if (!table.empty()) {
      // New blocks are among them.
      PLATTER_FAULT(*core_.file, FaultEvent::kRefblockAllocWrite);
      if (moved) PLATTER_FAULT(*core_.file, FaultEvent::kRefblockAllocWriteBlocks);
    }
    result = co_await refcounts_.cache().write(std::move(counts));
    counts.clear();
  }
  if (result && (references || !table.empty())) result = co_await barrier();
  if (result && !table.empty()) {
    PLATTER_FAULT(*core_.file, FaultEvent::kReftableUpdate);
    if (!moved) PLATTER_FAULT(*core_.file, FaultEvent::kRefblockAllocHookup);
    for (const Refcounts::TableWrite& one : table) {
      if (!result) break;
      result = co_await core_.file->write(one.offset, one.bytes.iov());
    }
    if (result) result = co_await barrier();
    if (result && moved) {
      PLATTER_FAULT(*core_.file, FaultEvent::kRefblockAllocSwitchTable);
      auto guard = co_await core_.header_mutex.lock();
      const Header before = core_.header;
      core_.header.refcount_table_offset = place.offset;
      core_.header.refcount_table_clusters = static_cast<std::uint32_t>(place.clusters);
      result = co_await core_.write_header();
      if (result) result = co_await barrier();
      if (result) core_.header_unsure.store(false);
      if (!result) core_.header = before;
    }
    if (result) {
      table.clear();
      moved = false;
    }
  }
  if (result && !slices.empty()) {
    result = co_await tables_.cache().write(std::move(slices));
    slices.clear();
  }
  if (result && !l1.empty()) {
    PLATTER_FAULT(*core_.file, FaultEvent::kL1Update);
    for (const L2Tables::L1Piece& piece : l1) {
      if (!result) break;
      result = co_await core_.file->write(l1_offset + piece.first * 8, piece.bytes.iov());
    }
  }
  if (result && (references || flush_always || !unlinked.empty())) result = co_await barrier();

  MutexLock lock(core_.mutex());
  if (result) {
    clusters_.settled(std::move(unlinked));
    clusters_.written_to(end);
  } else {
    refcounts_.cache().put_back(std::move(counts));
    refcounts_.put_back_table(table, moved);
    tables_.cache().put_back(std::move(slices));
    tables_.put_back(l1);
    clusters_.not_settled(std::move(unlinked));
  }
  co_return result;
}

}  // namespace platter::qcow2
