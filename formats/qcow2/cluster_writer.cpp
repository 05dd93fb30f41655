#include "formats/qcow2/cluster_writer.h"

#include "block/base/checked.h"

namespace platter::qcow2 {

// Claims -----------------------------------------------------------------------------------------

ClusterWriter::Claim* ClusterWriter::claimed(std::uint64_t first, std::uint64_t count) {
  auto after = claims_.lower_bound(first + count);
  if (after == claims_.begin()) return nullptr;
  Claim& last = *std::prev(after)->second;
  return last.first + last.count > first ? &last : nullptr;
}

void ClusterWriter::finish(Claim& claim) {
  claim.waiters.notify_all();
  claims_.erase(claim.first);
}

void ClusterWriter::unlink_entry(std::uint64_t entry, Discard why) {
  const Geometry& g = core_.geometry;
  const ClusterState state = classify(g, entry);
  if (const auto* data = std::get_if<DataCluster>(&state)) {
    if (!g.external_data) clusters_.unlink(g.cluster_index(data->host), 1, why);
  } else if (const auto* zero = std::get_if<ZeroCluster>(&state)) {
    if (zero->host != 0 && !g.external_data) clusters_.unlink(g.cluster_index(zero->host), 1, why);
  } else if (const auto* packed = std::get_if<CompressedCluster>(&state)) {
    clusters_.unlink_bytes(packed->host, packed->length, why);
  }
}

// Plans ------------------------------------------------------------------------------------------

bool ClusterWriter::shows_zeroes(std::uint64_t entry, std::uint64_t guest) const {
  const ClusterState state = classify(core_.geometry, entry);
  if (std::holds_alternative<ZeroCluster>(state)) return true;
  if (!std::holds_alternative<Unallocated>(state)) return false;
  const BlockNode* backing = core_.backing();
  return !backing || guest >= backing->size();
}

std::uint64_t ClusterWriter::replaceable(const TableCache::Slice& slice, std::uint64_t entry,
                                         std::uint64_t most) const {
  std::uint64_t count = 0;
  for (; count < most; ++count) {
    const ClusterState state = classify(core_.geometry, slice.word(entry + count));
    if (const auto* data = std::get_if<DataCluster>(&state); data && data->copied) break;
    if (const auto* zero = std::get_if<ZeroCluster>(&state);
        zero && zero->host != 0 && zero->copied)
      break;
    if (std::holds_alternative<InvalidEntry>(state)) break;
  }
  return count;
}

std::uint64_t ClusterWriter::left_behind(std::uint64_t end) const {
  const std::uint64_t size = core_.size.load();
  return end < size ? size - end : 0;
}

Task<Result<WritePlan>> ClusterWriter::plan(std::uint64_t offset, std::uint64_t length) {
  const Geometry& g = core_.geometry;
  const std::uint64_t first = g.cluster_index(offset);
  const std::uint64_t in_cluster = g.in_cluster(offset);
  Reservation reservation;
  TableCache::Pin pin;
  PLATTER_FAULT(*core_.file, FaultEvent::kClusterAlloc);
  while (true) {
    if (core_.poisoned.load())
      co_return fail(EIO, "the image is corrupt and is not written to any more");
    std::uint64_t need = 0;
    TableCache::Slice* slice = nullptr;
    {
      std::unique_lock lock(core_.mutex);
      if (Claim* other = claimed(first, 1)) {
        if (reservation) reservation.give_back();
        co_await other->waiters.wait(lock);
        continue;
      }
      slice = tables_.writable_slice(offset);
      if (slice) {
        const std::uint64_t entry_index = tables_.entry_of(offset);
        const std::uint64_t entry = slice->word(entry_index);
        // Clusters that the request touches in this slice.
        std::uint64_t most = g.clusters_for(in_cluster + length);
        most = std::min(most, tables_.slice_entries() - entry_index);
        const ClusterState state = classify(g, entry);
        WritePlan plan{.offset = offset, .length = length, .node = &core_.data_node()};
        std::uint64_t host = 0;
        if (const auto* data = std::get_if<DataCluster>(&state); data && data->copied) {
          plan.in_place = true;
          host = data->host;
        } else if (const auto* zero = std::get_if<ZeroCluster>(&state);
                   zero && zero->host != 0 && zero->copied) {
          host = zero->host;
        }
        if (host != 0) {
          // One cluster at a time: this is what is left behind by zeroes, or by another writer.
          if (core_.metadata.contains(g.cluster_index(host))) {
            lock.unlock();
            auto error = co_await core_.corruption(
                "Preventing invalid write on metadata (overlaps with metadata)", true);
            co_return std::unexpected<Error>(error);
          }
          plan.length = std::min(length, g.cluster_size() - in_cluster);
          plan.host_offset = host + in_cluster;
          if (reservation) reservation.give_back();
          if (plan.in_place) co_return plan;
          plan.head = in_cluster;
          plan.tail = g.cluster_size() - in_cluster - plan.length;
          auto claim = std::make_unique<Claim>();
          claim->first = first;
          claim->count = 1;
          claim->host = host;
          claim->slice = TableCache::Pin(slice);
          plan.token = claim.get();
          claims_.emplace(first, std::move(claim));
          plan.tail = std::min(plan.tail, left_behind(offset + plan.length));
          co_return plan;
        }
        need = replaceable(*slice, entry_index, most);
        if (need == 0) {
          lock.unlock();
          auto mapping = co_await tables_.lookup(offset, 1, true);  // says what is wrong
          PLATTER_CO_TRY(mapping);
          continue;
        }
        if (Claim* other = claimed(first, need)) need = other->first - first;
        if (!reservation) reservation = clusters_.try_reserve(need);
        if (reservation) {
          const std::uint64_t count = std::min(need, reservation.count());
          plan.length = std::min(length, (count << g.cluster_bits) - in_cluster);
          plan.host_offset = reservation.host() + in_cluster;
          plan.head = in_cluster;
          plan.tail = (count << g.cluster_bits) - in_cluster - plan.length;
          const std::uint64_t end = offset + plan.length;
          plan.tail = std::min(plan.tail, left_behind(end));
          if (reservation.reads_zero()) {
            // What the edges show is there already.
            if (shows_zeroes(entry, offset - in_cluster)) plan.head = 0;
            if (plan.tail != 0 && shows_zeroes(slice->word(entry_index + count - 1), end))
              plan.tail = 0;
          }
          auto claim = std::make_unique<Claim>();
          claim->first = first;
          claim->count = count;
          claim->host = reservation.host();
          claim->slice = TableCache::Pin(slice);
          claim->reservation = reservation.first_part(count);
          plan.token = claim.get();
          claims_.emplace(first, std::move(claim));
          co_return plan;
        }
      }
    }
    if (!slice) {
      auto loaded = co_await tables_.make_writable(offset);
      PLATTER_CO_TRY(loaded);
      pin = std::move(*loaded);
    } else {
      auto reserved = co_await clusters_.reserve(need);
      PLATTER_CO_TRY(reserved);
      reservation = std::move(*reserved);
    }
  }
}

void ClusterWriter::publish(WritePlan& plan) {
  const Geometry& g = core_.geometry;
  std::unique_ptr<Claim> done;
  std::lock_guard lock(core_.mutex);
  Claim& claim = *static_cast<Claim*>(plan.token);
  const std::uint64_t entry_index = tables_.entry_of(plan.offset);
  for (std::uint64_t i = 0; i < claim.count; ++i) {
    const std::uint64_t old = claim.slice->word(entry_index + i);
    tables_.set_entry(*claim.slice.get(), entry_index + i,
                      data_entry(claim.host + (i << g.cluster_bits), true));
    if (claim.reservation) unlink_entry(old, Discard::kNever);
  }
  if (claim.reservation) claim.reservation.link();
  finish(claim);
}

void ClusterWriter::abandon(WritePlan& plan) {
  std::lock_guard lock(core_.mutex);
  Claim& claim = *static_cast<Claim*>(plan.token);
  if (claim.reservation) claim.reservation.give_back();
  finish(claim);
}

// Zeroes and discards ----------------------------------------------------------------------------

bool ClusterWriter::changed_entry(std::uint64_t entry, std::uint64_t guest, Change change,
                                  std::uint64_t& result) const {
  const Geometry& g = core_.geometry;
  const ClusterState state = classify(g, entry);
  result = entry;
  if (std::holds_alternative<InvalidEntry>(state)) return false;
  const bool unallocated = std::holds_alternative<Unallocated>(state);
  const bool plain_zero =
      std::holds_alternative<ZeroCluster>(state) && std::get<ZeroCluster>(state).host == 0;
  switch (change) {
    case Change::kDiscardFully:
      result = 0;
      return true;
    case Change::kDiscard:
      if (plain_zero || (unallocated && !core_.backing())) return true;
      result = g.version >= 3 ? kZeroBit : 0;
      return g.version >= 3 || !core_.backing();
    case Change::kZero:
    case Change::kZeroUnmap:
      if (plain_zero || (unallocated && shows_zeroes(entry, guest))) return true;
      if (g.version < 3) {
        // Version 2 has no zero clusters; nothing there reads as zeroes where nothing shows
        // through.
        result = 0;
        return shows_zeroes(0, guest);
      }
      if (const auto* data = std::get_if<DataCluster>(&state); data && change == Change::kZero) {
        result = entry | kZeroBit;
      } else if (std::holds_alternative<ZeroCluster>(state) && change == Change::kZero) {
        result = entry;
      } else {
        result = kZeroBit;
      }
      return true;
  }
  return false;
}

Task<Result<void>> ClusterWriter::change(std::uint64_t offset, std::uint64_t length, Change change,
                                         Discard why) {
  const Geometry& g = core_.geometry;
  // Entries that are looked at under one hold of the mutex.
  constexpr std::uint64_t kStep = 512;
  const std::uint64_t end = offset + length;
  while (offset < end) {
    if (core_.poisoned.load())
      co_return fail(EIO, "the image is corrupt and is not written to any more");
    const std::uint64_t l1_index = g.l1_index(offset);
    const std::uint64_t slice_end =
        align_down(offset, tables_.slice_coverage()) + tables_.slice_coverage();
    const std::uint64_t step_end = std::min({end, slice_end, offset + (kStep << g.cluster_bits)});
    // Where there is no table, there is nothing to take away, and nothing to hide unless a backing
    // node shows through.
    const BlockNode* backing = core_.backing();
    if (l1_offset(tables_.l1(l1_index)) == 0 &&
        (change == Change::kDiscardFully || !backing ||
         (change != Change::kDiscard && offset >= backing->size()))) {
      offset = std::min(end, (l1_index + 1) * g.l2_coverage());
      continue;
    }
    // Look first: a range that is as it should be needs no table of its own.
    auto look = co_await tables_.cache().load(tables_.slice_of(offset));
    PLATTER_CO_TRY(look);
    bool changes = !*look;
    if (*look) {
      for (std::uint64_t at = offset; at < step_end && !changes; at += g.cluster_size()) {
        const std::uint64_t entry = (*look)->word(tables_.entry_of(at));
        std::uint64_t now = entry;
        if (!changed_entry(entry, at, change, now)) {
          auto mapping = co_await tables_.lookup(at, 1, false);  // says what is wrong, if so
          PLATTER_CO_TRY(mapping);
          co_return fail(ENOTSUP, "version 2 has no zero clusters");
        }
        changes = now != entry;
      }
    }
    bool claimed_any = false;
    {
      std::lock_guard lock(core_.mutex);
      claimed_any = claimed(g.cluster_index(offset), g.clusters_for(step_end - offset)) != nullptr;
    }
    if (!changes && !claimed_any) {
      offset = step_end;
      continue;
    }
    auto pin = co_await tables_.make_writable(offset);
    PLATTER_CO_TRY(pin);
    std::unique_lock lock(core_.mutex);
    if (Claim* other = claimed(g.cluster_index(offset), g.clusters_for(step_end - offset))) {
      co_await other->waiters.wait(lock);
      continue;
    }
    TableCache::Slice* slice = tables_.writable_slice(offset);
    if (!slice) continue;
    for (; offset < step_end; offset += g.cluster_size()) {
      const std::uint64_t index = tables_.entry_of(offset);
      const std::uint64_t entry = slice->word(index);
      std::uint64_t now = entry;
      if (!changed_entry(entry, offset, change, now)) break;  // the next look says why
      if (now == entry) continue;
      tables_.set_entry(*slice, index, now);
      // Space that stays as preallocation keeps its reference.
      if ((now & kOffsetMask) == 0) unlink_entry(entry, why);
    }
  }
  co_return {};
}

Task<Result<void>> ClusterWriter::zero(std::uint64_t offset, std::uint64_t length, bool may_unmap) {
  return change(offset, length, may_unmap ? Change::kZeroUnmap : Change::kZero, Discard::kRequest);
}

Task<Result<void>> ClusterWriter::discard(std::uint64_t offset, std::uint64_t length, Discard why,
                                          bool full) {
  return change(offset, length, full ? Change::kDiscardFully : Change::kDiscard, why);
}

}  // namespace platter::qcow2
