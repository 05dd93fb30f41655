// Zeroes and discards: changes of mappings without new data.
#include "block/base/checked.h"
#include "formats/qcow2/cluster_writer.h"

namespace platter::qcow2 {
namespace {

// Entries that are looked at under one hold of the mutex.
constexpr std::uint64_t kZeroStep = 512;

}  // namespace

bool ClusterWriter::changed(ClusterUnits& units, UnitMask which, std::uint64_t guest,
                            Change change) const {
  const bool zero_bits = core_.geometry.version >= 3;
  const UnitMask clear = clear_units(guest);
  if (!units.valid) return false;
  if (change == Change::kHide) {
    units.zero |= which & ~units.allocated;
    return true;
  }
  if (units.compressed) {
    // Packed data stays or goes as a whole.
    if (which != kAllUnits) return false;
    units = {};
    units.allocated = kAllUnits;
  }
  UnitMask zeroes = 0;  // units that need a zero bit to read as they should
  bool drop = true;     // the space, when no unit has data in it
  switch (change) {
    case Change::kDiscardFully:
    case Change::kHide:
      break;
    case Change::kDiscard:
      if (core_.backing()) {
        zeroes = which;
        if (!zero_bits) return (which & (units.allocated | units.zero)) == 0 && clear == kAllUnits;
      } else if (zero_bits) {
        zeroes =
            units.has_host && which == kAllUnits ? which : which & (units.allocated | units.zero);
      }
      break;
    case Change::kZero:
    case Change::kZeroUnmap:
      // Also where nothing shows through: the clusters are then known to be zero.
      zeroes = which;
      // Version 2 has no zero clusters; nothing there reads as zeroes where nothing shows through.
      if (!zero_bits && clear != kAllUnits) return false;
      if (!zero_bits) zeroes = 0;
      drop = change == Change::kZeroUnmap || !zero_bits;
      break;
  }
  units.allocated &= ~which;
  units.zero = (units.zero & ~which) | zeroes;
  if (units.allocated == 0 && drop) {
    units.has_host = units.copied = false;
    units.host = 0;
  }
  return true;
}

std::optional<L2Entry> ClusterWriter::changed_entry(L2Entry entry, std::uint64_t from,
                                                    std::uint64_t end, Change change) const {
  const Geometry& g = core_.geometry;
  const std::uint64_t start = g.cluster_start(from);
  const UnitMask which = units_in(g, from - start, std::min(end - start, g.cluster_size()));
  ClusterUnits units = units_of(g, entry);
  if (change == Change::kHide && units.compressed) return entry;
  if (!changed(units, which, from, change)) return std::nullopt;
  return entry_of(g, units);
}

std::uint64_t ClusterWriter::apply(TableCache::Slice& slice, std::uint64_t offset,
                                   std::uint64_t end, Change change, Discard why) {
  const Geometry& g = core_.geometry;
  while (offset < end) {
    const std::uint64_t index = tables_.entry_of(offset);
    const L2Entry old = tables_.entry(slice, index);
    const std::optional<L2Entry> now = changed_entry(old, offset, end, change);
    if (!now) break;  // the next look says why
    offset = g.cluster_start(offset) + g.cluster_size();
    if (*now == old) continue;
    tables_.set_entry(slice, index, *now);
    // Space that stays as preallocation keeps its reference.
    if (!units_of(g, *now).has_host) unlink_entry(old, why);
  }
  return offset;
}

bool ClusterWriter::passes_on(Change change, Discard why) const {
  if (!core_.geometry.external_data) return false;
  // A raw data file reads as the disk does.
  if (core_.header.data_file_raw()) return true;
  return change != Change::kZero && change != Change::kHide &&
         core_.discard_passes[static_cast<std::size_t>(why)];
}

Task<Result<void>> ClusterWriter::pass_on(std::uint64_t offset, std::uint64_t end, Change change) {
  BlockNode& file = core_.data_node();
  const bool raw = core_.header.data_file_raw();
  end = std::min(end, file.size());
  if (offset >= end) co_return {};
  ZeroFlags flags;
  flags.may_unmap = change != Change::kZero;
  flags.no_fallback = !raw;
  auto zeroed = co_await file.write_zeroes(offset, end - offset, flags);
  if (!zeroed && !raw && zeroed.error().code() == ENOTSUP) co_return {};
  co_return zeroed;
}

std::uint64_t ClusterWriter::step_end(std::uint64_t offset, std::uint64_t end) const {
  const Geometry& g = core_.geometry;
  const std::uint64_t slice = tables_.slice_coverage();
  return std::min({end, align_down(offset, slice) + slice,
                   g.cluster_start(offset) + (kZeroStep << g.cluster_bits)});
}

// Where there is no table, there is nothing to take away, and nothing to hide unless a backing node
// shows through.
bool ClusterWriter::passes_over(std::uint64_t offset, Change change) const {
  const Geometry& g = core_.geometry;
  if (l1_offset(tables_.l1(g.l1_index(offset))) != 0) return false;
  const BlockNode* backing = core_.backing();
  const bool zeroes = change == Change::kZero || change == Change::kZeroUnmap;
  const bool makes_entries = change == Change::kHide || (zeroes && g.version >= 3);
  return !makes_entries && (change == Change::kDiscardFully || !backing ||
                            (change != Change::kDiscard && offset >= backing->size()));
}

Task<Result<bool>> ClusterWriter::would_change(std::uint64_t offset, std::uint64_t end,
                                               Change change) {
  const Geometry& g = core_.geometry;
  auto look = co_await tables_.cache().load(tables_.slice_of(offset));
  PLATTER_CO_TRY(look);
  for (std::uint64_t at = offset; at < end; at = g.cluster_start(at) + g.cluster_size()) {
    const L2Entry entry = *look ? tables_.entry(*look->get(), tables_.entry_of(at)) : L2Entry{0, 0};
    const std::optional<L2Entry> now = changed_entry(entry, at, end, change);
    if (now && *now != entry) co_return true;
    if (now) continue;
    auto mapping = co_await tables_.lookup(at, 1, false);  // says what is wrong, if so
    PLATTER_CO_TRY(mapping);
    co_return fail(ENOTSUP, "{}",
                   mapping->kind == Mapping::Kind::kCompressed
                       ? "part of a compressed cluster cannot be taken away"
                       : "version 2 has no zero clusters");
  }
  co_return false;
}

Task<Result<void>> ClusterWriter::change(std::uint64_t offset, std::uint64_t length, Change change,
                                         Discard why) {
  const Geometry& g = core_.geometry;
  const std::uint64_t end = offset + length;
  while (offset < end) {
    if (core_.poisoned.load()) co_return core_.given_up();
    if (passes_over(offset, change)) {
      offset = std::min(end, (g.l1_index(offset) + 1) * g.l2_coverage());
      continue;
    }
    const std::uint64_t step = step_end(offset, end);
    const std::uint64_t clusters = g.clusters_for(g.in_cluster(offset) + step - offset);
    // Look first: a range that is as it should be needs no table of its own.
    auto changes = co_await would_change(offset, step, change);
    PLATTER_CO_TRY(changes);
    bool claimed_any = false;
    {
      MutexLock lock(core_.mutex());
      claimed_any = claimed(g.cluster_index(offset), clusters) != nullptr;
    }
    if (!*changes && !claimed_any) {
      offset = step;
      continue;
    }
    auto pin = co_await tables_.make_writable(offset);
    PLATTER_CO_TRY(pin);
    UniqueMutexLock lock(core_.mutex());
    if (Claim* other = claimed(g.cluster_index(offset), clusters)) {
      co_await other->waiters.wait(lock);
      continue;
    }
    TableCache::Slice* slice = tables_.writable_slice(offset);
    if (!slice) continue;
    if (!passes_on(change, why)) {
      offset = apply(*slice, offset, step, change, why);
      continue;
    }
    auto made = std::make_unique<Claim>();
    Claim& claim = *made;
    claim.first = g.cluster_index(offset);
    claim.count = clusters;
    claim.slice = TableCache::Pin(slice);
    claims_.emplace(claim.first, std::move(made));
    lock.unlock();
    auto passed = co_await pass_on(offset, step, change);
    lock.lock();
    if (passed) offset = apply(*slice, offset, step, change, why);
    finish(claim);
    lock.unlock();
    PLATTER_CO_TRY(passed);
  }
  co_return {};
}

Task<Result<void>> ClusterWriter::zero(std::uint64_t offset, std::uint64_t length, bool may_unmap) {
  return change(offset, length, may_unmap ? Change::kZeroUnmap : Change::kZero, Discard::kRequest);
}

Task<Result<void>> ClusterWriter::may_zero(std::uint64_t offset, std::uint64_t length,
                                           bool may_unmap) {
  const Change change = may_unmap ? Change::kZeroUnmap : Change::kZero;
  const Geometry& g = core_.geometry;
  const std::uint64_t end = offset + length;
  const std::uint64_t last = g.cluster_start(end - 1);
  while (offset < end) {
    if (passes_over(offset, change)) {
      offset = std::min(end, (g.l1_index(offset) + 1) * g.l2_coverage());
      continue;
    }
    const std::uint64_t next = std::min(end, g.cluster_start(offset) + g.cluster_size());
    auto can = co_await would_change(offset, next, change);
    PLATTER_CO_TRY(can);
    // Whole clusters can always be zero where there are zero bits.
    offset = g.version >= 3 ? std::max(next, last) : next;
  }
  co_return {};
}

Task<Result<void>> ClusterWriter::hide(std::uint64_t offset, std::uint64_t length) {
  return change(offset, length, Change::kHide, Discard::kNever);
}

Task<Result<void>> ClusterWriter::discard(std::uint64_t offset, std::uint64_t length, Discard why,
                                          bool full) {
  return change(offset, length, full ? Change::kDiscardFully : Change::kDiscard, why);
}

}  // namespace platter::qcow2
