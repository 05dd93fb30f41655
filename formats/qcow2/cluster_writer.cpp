#include "formats/qcow2/cluster_writer.h"

#include <bit>

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

void ClusterWriter::unlink_entry(L2Entry entry, Discard why) {
  const Geometry& g = core_.geometry;
  if (g.external_data) return;
  const ClusterState state = classify(g, entry.word, entry.bitmap);
  if (const auto* packed = std::get_if<CompressedCluster>(&state)) {
    clusters_.unlink_bytes(packed->host, packed->length, why);
  } else if (const ClusterUnits units = units_of(g, entry); units.has_host) {
    clusters_.unlink(g.cluster_index(units.host), 1, why);
  }
}

// Plans ------------------------------------------------------------------------------------------

UnitMask ClusterWriter::clear_units(std::uint64_t guest) const {
  const BlockNode* backing = core_.backing();
  return !backing || guest >= backing->size() ? kAllUnits : 0;
}

bool ClusterWriter::shows_zeroes(const ClusterUnits& units, std::uint64_t guest, std::uint64_t from,
                                 std::uint64_t to) const {
  const UnitMask which = units_in(core_.geometry, from, to);
  return (which & units.data()) == 0 && (which & ~(units.zero | clear_units(guest))) == 0;
}

std::uint64_t ClusterWriter::replaceable(const TableCache::Slice& slice, std::uint64_t entry,
                                         std::uint64_t most) const {
  std::uint64_t count = 0;
  for (; count < most; ++count) {
    const ClusterUnits units = units_of(core_.geometry, tables_.entry(slice, entry + count));
    if (!units.valid || units.own()) break;
  }
  return count;
}

std::uint64_t ClusterWriter::left_behind(std::uint64_t end) const {
  const std::uint64_t size = core_.size.load();
  const std::uint64_t left = end < size ? size - end : 0;
  // Ciphers take whole sectors.
  return core_.encrypted ? align_up(left, std::uint64_t{DataTransform::kUnit}) : left;
}

// One cluster at a time: units that are left behind by zeroes, by another writer, or that have
// space and no data yet.
void ClusterWriter::plan_own(WritePlan& plan, const ClusterUnits& units, TableCache::Slice* slice) {
  const Geometry& g = core_.geometry;
  const std::uint64_t unit = unit_size(g);
  const std::uint64_t from = g.in_cluster(plan.offset);
  plan.length = std::min(plan.length, g.cluster_size() - from);
  const std::uint64_t to = from + plan.length;
  plan.host_offset = units.host + from;
  plan.in_place = (units_in(g, from, to) & ~units.allocated) == 0;
  if (plan.in_place) return;
  // Units that have their data keep what is beside the range.
  if ((units_in(g, from, from + 1) & units.allocated) == 0) plan.head = from % unit;
  if ((units_in(g, to - 1, to) & units.allocated) == 0) plan.tail = align_up(to, unit) - to;
  // Nothing is written behind the disk's end to a data file, which is no longer than the disk.
  if (g.external_data) plan.tail = std::min(plan.tail, left_behind(plan.offset + plan.length));
  auto claim = std::make_unique<Claim>();
  claim->first = g.cluster_index(plan.offset);
  claim->count = 1;
  claim->host = units.host;
  claim->slice = TableCache::Pin(slice);
  plan.token = claim.get();
  claims_.emplace(claim->first, std::move(claim));
}

void ClusterWriter::plan_fresh(WritePlan& plan, std::uint64_t count, TableCache::Slice* slice,
                               Reservation reservation) {
  const Geometry& g = core_.geometry;
  const std::uint64_t unit = unit_size(g);
  const std::uint64_t from = g.in_cluster(plan.offset);
  const std::uint64_t start = plan.offset - from;
  const std::uint64_t place = g.external_data ? start : reservation.host();
  plan.length = std::min(plan.length, (count << g.cluster_bits) - from);
  plan.host_offset = place + from;
  const std::uint64_t end = plan.offset + plan.length;
  const std::uint64_t last = start + ((count - 1) << g.cluster_bits);
  const std::uint64_t to = end - last;
  const std::uint64_t index = tables_.entry_of(plan.offset);
  const ClusterUnits before = units_of(g, tables_.entry(*slice, index));
  const ClusterUnits behind = units_of(g, tables_.entry(*slice, index + count - 1));
  // The whole of the first and last unit, and the data that the clusters have elsewhere.
  std::uint64_t head_from = align_down(from, unit);
  std::uint64_t tail_to = align_up(to, unit);
  if (before.data() != 0 && g.extended_l2) {
    head_from =
        std::min(head_from, static_cast<std::uint64_t>(std::countr_zero(before.data())) * unit);
  }
  if (behind.data() != 0 && g.extended_l2) {
    tail_to = std::max(tail_to, static_cast<std::uint64_t>(std::bit_width(behind.data())) * unit);
  }
  plan.head = from - head_from;
  plan.tail = tail_to - to;
  const bool reads_zero = !g.external_data && !core_.encrypted && reservation.reads_zero();
  // What lies in the last cluster behind the disk's end is written as zeroes, unless there are some
  // already: whoever makes the disk longer finds it there, and it was another range's before. (A
  // data file is no longer than the disk.)
  const bool on_disk = plan.offset < core_.size.load();  // and not VM state
  if (g.external_data || (reads_zero && on_disk)) plan.tail = std::min(plan.tail, left_behind(end));
  if (reads_zero) {
    // What the edges show is there already.
    if (plan.head != 0 && shows_zeroes(before, start, head_from, from)) plan.head = 0;
    if (plan.tail != 0 && shows_zeroes(behind, end, to, to + plan.tail)) plan.tail = 0;
  }
  auto claim = std::make_unique<Claim>();
  claim->first = g.cluster_index(plan.offset);
  claim->count = count;
  claim->fresh = true;
  claim->host = place;
  claim->slice = TableCache::Pin(slice);
  if (reservation) claim->reservation = reservation.first_part(count);
  plan.token = claim.get();
  claims_.emplace(claim->first, std::move(claim));
}

Task<Result<WritePlan>> ClusterWriter::plan(std::uint64_t offset, std::uint64_t length) {
  const Geometry& g = core_.geometry;
  const std::uint64_t first = g.cluster_index(offset);
  const std::uint64_t in_cluster = g.in_cluster(offset);
  Reservation reservation;
  TableCache::Pin pin;
  PLATTER_FAULT(*core_.file, FaultEvent::kClusterAlloc);
  while (true) {
    if (core_.poisoned.load()) co_return core_.given_up();
    std::uint64_t need = 0;
    TableCache::Slice* slice = nullptr;
    {
      UniqueMutexLock lock(core_.mutex());
      if (Claim* other = claimed(first, 1)) {
        if (reservation) reservation.give_back();
        co_await other->waiters.wait(lock);
        continue;
      }
      slice = tables_.writable_slice(offset);
      if (slice) {
        const std::uint64_t entry_index = tables_.entry_of(offset);
        // Clusters that the request touches in this slice.
        std::uint64_t most = g.clusters_for(in_cluster + length);
        most = std::min(most, tables_.slice_entries() - entry_index);
        const ClusterUnits units = units_of(g, tables_.entry(*slice, entry_index));
        WritePlan plan{.offset = offset, .length = length, .node = &core_.data_node()};
        if (units.own()) {
          if (!g.external_data && core_.metadata.contains(g.cluster_index(units.host))) {
            lock.unlock();
            auto error = co_await core_.overlap(g.cluster_index(units.host));
            co_return std::unexpected<Error>(error);
          }
          if (reservation) reservation.give_back();
          plan_own(plan, units, slice);
          co_return plan;
        }
        need = replaceable(*slice, entry_index, most);
        if (need == 0) {
          lock.unlock();
          auto mapping = co_await tables_.lookup(offset, 1, true);  // says what is wrong
          PLATTER_CO_TRY(mapping);
          continue;
        }
        // (The last of them is found first.)
        while (Claim* other = claimed(first, need)) need = other->first - first;
        if (!reservation && !g.external_data) reservation = clusters_.try_reserve(need);
        if (g.external_data || reservation) {
          const std::uint64_t count = g.external_data ? need : std::min(need, reservation.count());
          plan_fresh(plan, count, slice, std::move(reservation));
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

void ClusterWriter::show(WritePlan& plan, bool data) {
  const Geometry& g = core_.geometry;
  MutexLock lock(core_.mutex());
  Claim& claim = *static_cast<Claim*>(plan.token);
  const std::uint64_t entry_index = tables_.entry_of(plan.offset);
  const std::uint64_t from = plan.offset - plan.head;
  const std::uint64_t to = plan.offset + plan.length + plan.tail;
  for (std::uint64_t i = 0; i < claim.count; ++i) {
    const std::uint64_t start = (claim.first + i) << g.cluster_bits;
    const UnitMask written =
        units_in(g, from > start ? from - start : 0, std::min(to - start, g.cluster_size()));
    const L2Entry old = tables_.entry(*claim.slice.get(), entry_index + i);
    ClusterUnits units = units_of(g, old);
    if (claim.fresh) {
      units.compressed = false;
      units.has_host = units.copied = true;
      units.host = claim.host + (i << g.cluster_bits);
      units.allocated = 0;
    }
    if (data || !g.extended_l2) {
      units.allocated |= written;
      units.zero &= ~written;
    }
    tables_.set_entry(*claim.slice.get(), entry_index + i, entry_of(g, units));
    if (claim.fresh) unlink_entry(old, Discard::kNever);
  }
  if (claim.reservation) claim.reservation.link();
  finish(claim);
}

void ClusterWriter::publish(WritePlan& plan) { show(plan, true); }

void ClusterWriter::publish_space(WritePlan& plan) { show(plan, false); }

void ClusterWriter::abandon(WritePlan& plan) {
  MutexLock lock(core_.mutex());
  Claim& claim = *static_cast<Claim*>(plan.token);
  if (claim.reservation) claim.reservation.give_back();
  finish(claim);
}

}  // namespace platter::qcow2
