// Growing and shrinking the disk, with requests held back.
#include <algorithm>

#include "block/base/checked.h"
#include "formats/qcow2/driver.h"

namespace platter::qcow2 {
namespace {

constexpr std::uint64_t kLeastTakenAway = std::uint64_t{1} << 30;  // bytes of the disk

}  // namespace

Task<Result<void>> Qcow2Driver::do_resize(ResizeRequest request) {
  if (request.size % kSector != 0)
    co_return fail(EINVAL, "The new size must be a multiple of {}", kSector);
  if (request.size < size() && request.preallocation != Preallocation::kOff) {
    co_return fail(EINVAL, "Preallocation can't be used for shrinking an image");
  }
  const auto work = [this, &request] { return resize_now(request); };
  const std::function<Task<Result<void>>()> named(work);
  auto done = co_await exclusively(named, false);
  PLATTER_CO_TRY(done);
  co_return {};
}

Task<Result<void>> Qcow2Driver::resize_now(const ResizeRequest& request) {
  const Geometry& g = core_.geometry;
  if (!snapshots_.table().empty() && g.version < 3)
    co_return fail(ENOTSUP, "Can't resize a v2 image which has snapshots");
  const std::uint64_t old_size = size();
  const std::uint64_t needed = g.l1_entries_for(request.size);
  if (shown_between(old_size, request.size) && notes_changes()) {
    // What is hidden there is marked once the bitmaps are long enough.
    auto prepared = co_await prepare_change();
    PLATTER_CO_TRY(prepared);
  }
  Bitmaps::Change bitmaps;
  auto staged = co_await bitmaps_.begin_resize(request.size, bitmaps);
  PLATTER_CO_TRY(staged);
  auto dropped = co_await drop_vm_state();
  PLATTER_CO_TRY(dropped);
  if (request.size < old_size) {
    // Should it end half-way, this range has changed.
    auto announced = co_await announce_change(request.size, old_size - request.size);
    PLATTER_CO_TRY(announced);
    auto taken = co_await take_away(request);
    PLATTER_CO_TRY(taken);
    if (needed < tables_.l1_size()) {
      PLATTER_FAULT(*core_.file, FaultEvent::kL1ShrinkWriteTable);
      shrink_l1(needed);
      auto cleared = co_await write_back_.commit(WriteBack::Flush::kOwn);
      PLATTER_CO_TRY(cleared);
      PLATTER_FAULT(*core_.file, FaultEvent::kL1ShrinkFreeL2Clusters);
    }
    auto settled = co_await settle();
    PLATTER_CO_TRY(settled);
    auto sized = co_await set_size(request.size, bitmaps);
    PLATTER_CO_TRY(sized);
    settled = co_await settle(WriteBack::Flush::kOwn, Requests::kHeld);
    PLATTER_CO_TRY(settled);
    auto data_cut = co_await cut_data_file(request);
    PLATTER_CO_TRY(data_cut);
    auto cut = co_await cut_file();
    co_return cut;
  }
  if (needed > tables_.l1_size()) {
    auto longer = co_await grow_l1(needed);
    if (!longer) co_return forward_error(longer, "Failed to grow the L1 table");
  }
  auto grown = co_await grow_to(request, bitmaps);
  if (!grown) {
    auto undone = co_await take_back_space(old_size, request.size);
    // What is left over then is only space.
    static_cast<void>(undone);
  }
  co_return grown;
}

// Pieces, so that there is something to count, and a point at which it can end. What a piece has
// unlinked is freed before there is too much of it.
Task<Result<void>> Qcow2Driver::take_away(const ResizeRequest& request) {
  constexpr std::uint64_t kPieces = 256;
  const Geometry& g = core_.geometry;
  const std::uint64_t first = align_up(request.size, g.cluster_size());
  const std::uint64_t end = align_up(size(), g.cluster_size());
  const std::uint64_t piece =
      align_up(std::max((end - std::min(first, end)) / kPieces, kLeastTakenAway), g.cluster_size());
  for (std::uint64_t at = first; at < end;) {
    if (is_set(request.cancelled)) co_return fail(ECANCELED, "cancelled");
    const std::uint64_t length = std::min(piece, end - at);
    auto discarded = co_await writer_.discard(at, length, Discard::kAlways, true);
    PLATTER_CO_TRY(discarded);
    if (too_much_unsettled()) {
      auto settled = co_await settle();
      PLATTER_CO_TRY(settled);
    }
    at += length;
    if (request.progress) (*request.progress)(at - first, end - first);
  }
  co_return {};
}

Task<Result<void>> Qcow2Driver::grow_to(const ResizeRequest& request, Bitmaps::Change& bitmaps) {
  const std::uint64_t old_size = size();
  auto cleared = co_await clear_tail(old_size);
  PLATTER_CO_TRY(cleared);
  auto data_grown = co_await resize_data_file(request);
  PLATTER_CO_TRY(data_grown);
  // Of a raw data file the disk shows all that is in it, now and later: all of it is referred to.
  const Preallocation mode =
      request.preallocation == Preallocation::kOff && core_.header.data_file_raw()
          ? Preallocation::kMetadata
          : request.preallocation;
  if (mode != Preallocation::kOff) {
    auto preallocated = co_await preallocate(request, mode);
    PLATTER_CO_TRY(preallocated);
  }
  const std::uint64_t shown = shown_between(old_size, request.size);
  auto hidden = co_await hide_backing(old_size, old_size + shown, request.cancelled);
  if (!hidden) co_return forward_error(hidden, "Failed to zero out new clusters");
  auto settled = co_await settle();
  PLATTER_CO_TRY(settled);
  auto sized = co_await set_size(request.size, bitmaps);
  if (!sized || shown == 0 || !notes_changes()) co_return sized;
  auto announced = co_await announce_change(old_size, shown);
  co_return announced;
}

// How many bytes behind `from` the backing node would show in a disk that ends at `to`.
std::uint64_t Qcow2Driver::shown_between(std::uint64_t from, std::uint64_t to) const {
  const BlockNode* const below = core_.backing();
  const std::uint64_t end = below ? std::min(below->size(), to) : 0;
  return end > from ? end - from : 0;
}

// The disk's old last cluster is clear_tail()'s.
Task<Result<void>> Qcow2Driver::hide_backing(std::uint64_t from, std::uint64_t to,
                                             const std::atomic<bool>* cancelled) {
  constexpr std::uint64_t kPiece = std::uint64_t{1} << 20;
  const std::uint64_t cluster = core_.geometry.cluster_size();
  from = align_up(from, cluster);
  to = align_up(to, cluster);
  if (from >= to) co_return {};
  if (can_hide_units()) {
    auto hidden = co_await writer_.zero(from, to - from, false);
    co_return hidden;
  }
  const Buffer zeroes = Buffer::zeroed(std::max(kPiece, cluster));
  while (from < to) {
    if (is_set(cancelled)) co_return fail(ECANCELED, "cancelled");
    auto mapping = co_await map(from, std::min<std::uint64_t>(to - from, zeroes.size()), false);
    PLATTER_CO_TRY(mapping);
    if (mapping->kind == Mapping::Kind::kBacking) {
      auto written = co_await write_inside(from, zeroes.iov().first(mapping->length));
      PLATTER_CO_TRY(written);
    }
    from += mapping->length;
  }
  co_return {};
}

// VM state that a snapshot has left in the active tables: where it lies depends on the disk's size.
// It would be a part of a longer disk.
Task<Result<void>> Qcow2Driver::drop_vm_state() {
  const std::uint64_t first = core_.geometry.l1_entries_for(size());
  const std::uint64_t last = tables_.l1_size();
  bool any = false;
  for (std::uint64_t i = first; i < last; ++i) any = any || l1_offset(tables_.l1(i)) != 0;
  if (!any) co_return {};
  const std::uint64_t covered = core_.geometry.cluster_size() * core_.geometry.l2_entries();
  auto discarded =
      co_await writer_.discard(first * covered, (last - first) * covered, Discard::kAlways, true);
  co_return discarded;
}

// Gives back what lies behind the disk's end.
Task<Result<void>> Qcow2Driver::take_back_space(std::uint64_t from, std::uint64_t to) {
  const std::uint64_t first = align_up(from, core_.geometry.cluster_size());
  const std::uint64_t end = align_up(to, core_.geometry.cluster_size());
  if (first < end) {
    auto discarded = co_await writer_.discard(first, end - first, Discard::kAlways, true);
    PLATTER_CO_TRY(discarded);
  }
  auto settled = co_await settle(WriteBack::Flush::kOwn, Requests::kHeld);
  PLATTER_CO_TRY(settled);
  auto cut = co_await cut_file();
  co_return cut;
}

Task<Result<void>> Qcow2Driver::set_size(std::uint64_t size, Bitmaps::Change& bitmaps) {
  auto guard = co_await core_.header_mutex.lock();
  const Header before = core_.header;
  core_.header.size = size;
  bitmaps_.put_into(core_.header, bitmaps);
  auto written = co_await core_.publish_header();
  if (!written) {
    core_.header = before;
    bitmaps_.give_up(bitmaps);
    co_return forward_error(written, "Failed to update the image size");
  }
  core_.size.store(size);
  bitmaps_.take_over(bitmaps);
  co_return {};
}

Task<Result<void>> Qcow2Driver::grow_l1(std::uint64_t entries) {
  const Geometry& g = core_.geometry;
  if (entries * 8 > kMaxL1Bytes) co_return fail_errno(EFBIG);
  PLATTER_FAULT(*core_.file, FaultEvent::kL1GrowAllocTable);
  auto place = co_await clusters_.reserve_exactly(g.clusters_for(entries * 8));
  PLATTER_CO_TRY(place);
  // (Durable with the table, before the header names it.)
  auto counted = co_await write_back_.commit(WriteBack::Flush::kIfNeeded);
  PLATTER_CO_TRY(counted);
  std::vector<std::uint64_t> table(entries, 0);
  for (std::uint64_t i = 0; i < tables_.l1_size(); ++i) table[i] = tables_.l1(i);
  const Buffer bytes(align_up(entries * 8, g.cluster_size()));
  std::memset(bytes.data(), 0, bytes.size());
  for (std::uint64_t i = 0; i < entries; ++i) store_be(bytes.data() + i * 8, table[i]);
  PLATTER_FAULT(*core_.file, FaultEvent::kL1GrowWriteTable);
  auto written = co_await core_.file->write(place->host(), bytes.iov());
  PLATTER_CO_TRY(written);
  auto flushed = co_await core_.file->flush();
  PLATTER_CO_TRY(flushed);
  PLATTER_FAULT(*core_.file, FaultEvent::kL1GrowActivateTable);
  const std::uint64_t old_offset = core_.header.l1_table_offset;
  const std::uint64_t old_bytes = core_.header.l1_table_bytes();
  {
    auto guard = co_await core_.header_mutex.lock();
    const Header before = core_.header;
    core_.header.l1_table_offset = place->host();
    core_.header.l1_size = static_cast<std::uint32_t>(entries);
    auto switched = co_await core_.publish_header();
    if (!switched) {
      // The header may have reached the disk: both tables must stay.
      core_.header = before;
      MutexLock lock(core_.mutex());
      place->link();
      co_return switched;
    }
  }
  MutexLock lock(core_.mutex());
  core_.metadata.remove(old_offset, old_bytes);
  core_.metadata.add(place->host(), entries * 8);
  tables_.replace_l1(place->host(), table);
  tables_.cache().resize(entries * tables_.slices_per_table());
  place->link();
  if (old_bytes != 0)
    clusters_.unlink(g.cluster_index(old_offset), g.clusters_for(old_bytes), Discard::kOther);
  co_return {};
}

void Qcow2Driver::shrink_l1(std::uint64_t entries) {
  const Geometry& g = core_.geometry;
  MutexLock lock(core_.mutex());
  for (std::uint64_t i = entries; i < tables_.l1_size(); ++i) {
    const std::uint64_t table = l1_offset(tables_.l1(i));
    if (table == 0) continue;
    tables_.cache().drop(i * tables_.slices_per_table(), tables_.slices_per_table());
    tables_.set_l1(i, 0);
    core_.metadata.remove(table, g.cluster_size());
    clusters_.unlink(g.cluster_index(table), 1, Discard::kAlways);
  }
}

// What the disk held behind its new end, which the header on disk tells by now, does not stay.
Task<Result<void>> Qcow2Driver::cut_data_file(const ResizeRequest& request) {
  if (!core_.data_file || core_.header.data_file_raw()) {
    auto raw = co_await resize_data_file(request);
    co_return raw;
  }
  // (No snapshot is ever taken with a data file; one that is there all the same may show it.)
  if (core_.data_file->size() <= request.size || !snapshots_.table().empty()) co_return {};
  const ResizeRequest cut{.size = request.size, .exact = false};
  auto resized = co_await core_.data_file->resize(cut);
  if (!resized) co_return forward_error(resized, "Could not resize the external data file");
  co_return {};
}

// A raw data file is as long as the disk; another one at least that long.
Task<Result<void>> Qcow2Driver::resize_data_file(const ResizeRequest& request) {
  if (!core_.data_file) co_return {};
  const std::uint64_t before = core_.data_file->size();
  if (before == request.size || (before > request.size && !core_.header.data_file_raw())) {
    co_return {};
  }
  ResizeRequest exactly{.size = request.size, .exact = true, .cancelled = request.cancelled};
  if (request.preallocation != Preallocation::kMetadata) {
    exactly.preallocation = request.preallocation;
    exactly.progress = request.progress;
  }
  auto resized = co_await core_.data_file->resize(exactly);
  if (!resized) co_return forward_error(resized, "Could not resize the external data file");
  co_return {};
}

// What the disk's last cluster holds, or shows of the backing node, behind the old end must not
// appear.
Task<Result<void>> Qcow2Driver::clear_tail(std::uint64_t from) {
  const std::uint64_t length = align_up(from, core_.geometry.cluster_size()) - from;
  if (length == 0) co_return {};
  const std::uint64_t end = from + length;
  while (from < end) {
    auto mapping = co_await map(from, end - from, false);
    PLATTER_CO_TRY(mapping);
    const bool stored =
        mapping->kind == Mapping::Kind::kData || mapping->kind == Mapping::Kind::kCompressed;
    const bool shown = mapping->kind == Mapping::Kind::kBacking && shown_between(from, end) != 0;
    if (stored || shown) {
      const Buffer zeroes = Buffer::zeroed(mapping->length);
      auto written = co_await write_inside(from, zeroes.iov());
      PLATTER_CO_TRY(written);
    }
    from += mapping->length;
  }
  co_return {};
}

Task<Result<void>> Qcow2Driver::preallocate(const ResizeRequest& request, Preallocation mode) {
  const Geometry& g = core_.geometry;
  std::uint64_t offset = size();
  std::uint64_t end = request.size;
  const std::atomic<bool>* const cancelled = request.cancelled;
  BlockNode& data = core_.data_node();
  // The cluster at the disk's old end keeps what it holds.
  if (const std::uint64_t whole = align_up(offset, g.cluster_size()); whole != offset) {
    const Buffer zeroes = Buffer::zeroed(whole - offset);
    auto written = co_await write_inside(offset, zeroes.iov());
    PLATTER_CO_TRY(written);
    offset = whole;
  }
  end = align_up(end, g.cluster_size());
  const std::uint64_t first = offset;
  while (offset < end) {
    if (is_set(cancelled)) co_return fail(ECANCELED, "cancelled");
    auto plan = co_await plan_write(offset, end - offset);
    PLATTER_CO_TRY(plan);
    // One plan may be most of the disk.
    const std::uint64_t planned = offset - first;
    const std::uint64_t length = plan->length;
    const ResizeProgress part = [&](std::uint64_t done, std::uint64_t total) {
      const double share = static_cast<double>(done) / static_cast<double>(total);
      (*request.progress)(planned + static_cast<std::uint64_t>(share * static_cast<double>(length)),
                          end - first);
    };
    offset += plan->length;
    if (plan->in_place) continue;
    const std::uint64_t host = plan->host_offset;
    // Behind the end of the file are zeroes, elsewhere they are written; a raw data file is the
    // disk, and has grown with it.
    if (host < data.size() && !core_.header.data_file_raw()) {
      const ZeroFlags flags{.may_unmap = mode == Preallocation::kMetadata};
      auto zeroed =
          co_await data.write_zeroes(host, std::min(plan->length, data.size() - host), flags);
      if (!zeroed) {
        abandon(*plan);
        co_return zeroed;
      }
    }
    // The space is there before anything refers to it. An external data file has its size already.
    if (!g.external_data && host + plan->length > data.size()) {
      ResizeRequest extend{
          .size = host + plan->length,
          .preallocation = mode == Preallocation::kMetadata ? Preallocation::kOff : mode,
          .cancelled = cancelled,
          .progress = request.progress ? &part : nullptr};
      auto extended = co_await data.resize(extend);
      if (!extended) {
        abandon(*plan);
        co_return forward_error(extended, "Could not preallocate space");
      }
    }
    writer_.publish_space(*plan);
    if (request.progress) (*request.progress)(offset - first, end - first);
  }
  if (transforms() && first < end) {
    // What lies there does not decrypt to zeroes.
    auto zeroed = co_await zero_units(first, end - first, false);
    if (!zeroed) co_return forward_error(zeroed, "Could not preallocate encrypted space");
  }
  co_return {};
}

Task<Result<void>> Qcow2Driver::cut_file() {
  if (!core_.file->driver().can_grow()) co_return {};
  auto end = co_await clusters_.end();
  PLATTER_CO_TRY(end);
  const std::uint64_t bytes = *end << core_.geometry.cluster_bits;
  if (bytes >= core_.file->size()) co_return {};
  ResizeRequest cut{.size = bytes};
  auto resized = co_await core_.file->resize(cut);
  // Space at the end is only space.
  static_cast<void>(resized);
  clusters_.open();
  co_return {};
}

}  // namespace platter::qcow2
