// The writing half of the request engine: in-place writes, plans and their publication, zeroes.
#include <vector>

#include "block/base/checked.h"
#include "block/exec/task_window.h"
#include "block/node/mapped_driver.h"

namespace platter {
Task<Result<void>> MappedDriver::do_write(std::uint64_t offset, IoVec iov, WriteFlags flags) {
  // The usual case, as for reads.
  InFlight::Ticket ticket(in_flight_);
  Mapping mapping;
  if (!flags.compressed && !held_.load() &&
      (!notes_changes() || flags.unchanged || note_change(offset, iov.size())) &&
      try_map(offset, iov.size(), true, mapping) && mapping.kind == Mapping::Kind::kData &&
      mapping.in_place && mapping.length == iov.size()) [[likely]] {
    Task<Result<void>> task = write_data(*mapping.node, mapping.host_offset, offset, iov);
    if (task.done()) return task;
    return finish(std::move(ticket), InFlight::Ticket(), std::move(task));
  }
  ticket.release();
  return write_task(offset, iov, flags);
}

// What has been written of a request that finds no space is written once more, where it is by now.
Task<Result<void>> MappedDriver::write_task(std::uint64_t offset, IoVec iov, WriteFlags flags) {
  auto result = co_await write_once(offset, iov, flags);
  if (result || result.error().code() != ENOSPC) [[likely]]
    co_return result;
  const bool again = co_await regain_space();
  if (again) result = co_await write_once(offset, iov, flags);
  co_return result;
}

Task<bool> MappedDriver::regain_space() { co_return false; }

Task<Result<void>> MappedDriver::write_once(std::uint64_t offset, IoVec iov, WriteFlags flags) {
  InFlight::Ticket ticket(in_flight_);
  if (held_.load()) [[unlikely]] {
    ticket.release();
    ticket = co_await admit_slowly();
  }
  // The disk may have become smaller since the caller looked.
  const Result<void> still_there = check_inside(offset, iov.size());
  PLATTER_CO_TRY(still_there);
  if (notes_changes() && !flags.unchanged) {
    auto announced = co_await announce_change(offset, iov.size());
    PLATTER_CO_TRY(announced);
  }
  if (flags.compressed) {
    auto packed = co_await write_packed(offset, iov);
    co_return packed;
  }
  auto result = co_await write_inside(offset, iov);
  co_return result;
}

Result<void> MappedDriver::check_inside(std::uint64_t offset, std::uint64_t length) const {
  if (range_within(offset, length, size())) [[likely]]
    return {};
  if (range_within(offset, length, align_up(size(), limits().request_alignment))) return {};
  return fail(EINVAL, "request of {} bytes at offset {} reaches beyond the end at {}", length,
              offset, size());
}

Task<Result<void>> MappedDriver::write_packed(std::uint64_t, IoVec) {
  return
      [] -> Task<Result<void>> { co_return fail(ENOTSUP, "the format has no compressed data"); }();
}

Task<Result<void>> MappedDriver::write_at(BlockNode& node, std::uint64_t host_offset, IoVec iov) {
  if (!node.listens_to_events()) return node.write(host_offset, iov);
  return [](BlockNode& below, std::uint64_t host, IoVec from) -> Task<Result<void>> {
    PLATTER_FAULT(below, FaultEvent::kMapped);
    PLATTER_FAULT(below, FaultEvent::kWriteAio);
    auto result = co_await below.write(host, from);
    co_return result;
  }(node, host_offset, iov);
}

Task<Result<void>> MappedDriver::write_inside(std::uint64_t offset, IoVec iov) {
  TaskWindow window(kMaxRunning);
  while (!iov.empty() && window.good()) {
    Mapping mapping;
    if (!try_map(offset, iov.size(), true, mapping)) {
      auto loaded = co_await map(offset, iov.size(), true);
      if (!loaded) {
        window.note(forward_error(loaded));
        break;
      }
      mapping = *loaded;
    }
    const bool straight = mapping.kind == Mapping::Kind::kData && mapping.in_place;
    const IoVec part = iov.first(mapping.length);
    if (window.full()) co_await window.oldest();
    auto writing = straight ? write_data(*mapping.node, mapping.host_offset, offset, part)
                            : write_new(offset, part);
    if (mapping.length == iov.size() && window.unused()) {
      auto only = co_await writing;
      co_return only;
    }
    window.add(std::move(writing));
    offset += mapping.length;
    iov = iov.from(mapping.length);
  }
  while (window.busy()) co_await window.oldest();
  co_return window.take();
}

Task<Result<void>> MappedDriver::write_new(std::uint64_t offset, IoVec iov) {
  while (!iov.empty()) {
    auto plan = co_await plan_write(offset, iov.size());
    PLATTER_CO_TRY(plan);
    const IoVec part = iov.first(plan->length);
    auto writing = plan->in_place ? write_data(*plan->node, plan->host_offset, offset, part)
                                  : write_planned(*plan, part);
    auto written = co_await writing;
    PLATTER_CO_TRY(written);
    offset += part.size();
    iov = iov.from(part.size());
  }
  co_return {};
}

Task<Result<void>> MappedDriver::write_planned(WritePlan plan, IoVec iov) {
  Result<void> result;
  if (plan.head == 0 && plan.tail == 0) {
    result = co_await write_data(*plan.node, plan.host_offset, plan.offset, iov);
  } else {
    const Buffer edges(plan.head + plan.tail);
    const IoVec head = edges.iov().first(plan.head);
    const IoVec tail = edges.iov().from(plan.head);
    PLATTER_FAULT(*plan.node, FaultEvent::kCowRead);
    auto reading_head = read_inside(plan.offset - plan.head, head);
    auto reading_tail = read_to_keep(plan.offset + plan.length, tail);
    auto head_read = co_await reading_head;
    auto tail_read = co_await reading_tail;
    if (!head_read) {
      result = std::move(head_read);
    } else if (!tail_read) {
      result = std::move(tail_read);
    } else {
      std::vector<iovec> segments;
      segments.reserve(iov.pieces() + 2);
      const auto add = [&](std::span<std::byte> piece) {
        segments.push_back({piece.data(), piece.size()});
      };
      head.for_each(add);
      iov.for_each(add);
      tail.for_each(add);
      PLATTER_FAULT(*plan.node, FaultEvent::kCowWrite);
      result = co_await write_data(*plan.node, plan.host_offset - plan.head,
                                   plan.offset - plan.head, IoVec(segments));
    }
  }
  if (result) {
    PLATTER_FAULT(*plan.node, FaultEvent::kL2Update);
    publish(plan);
  } else {
    abandon(plan);
  }
  co_return result;
}

// Changes that the format keeps account of -------------------------------------------------------

bool MappedDriver::note_change(std::uint64_t, std::uint64_t) { return true; }

Task<Result<void>> MappedDriver::prepare_change() { co_return {}; }

Task<Result<void>> MappedDriver::announce_change(std::uint64_t offset, std::uint64_t length) {
  if (!notes_changes() || note_change(offset, length)) co_return {};
  auto prepared = co_await prepare_change();
  co_return prepared;
}

// Zeroes -----------------------------------------------------------------------------------------

Task<Result<void>> MappedDriver::do_write_zeroes(std::uint64_t offset, std::uint64_t length,
                                                 ZeroFlags flags) {
  return zero_task(offset, length, flags);
}

Task<Result<void>> MappedDriver::zero_task(std::uint64_t offset, std::uint64_t length,
                                           ZeroFlags flags) {
  auto result = co_await zero_once(offset, length, flags);
  if (result || result.error().code() != ENOSPC) co_return result;
  const bool again = co_await regain_space();
  if (again) result = co_await zero_once(offset, length, flags);
  co_return result;
}

Task<Result<void>> MappedDriver::zero_once(std::uint64_t offset, std::uint64_t length,
                                           ZeroFlags flags) {
  auto ticket = co_await admit();
  const Result<void> still_there = check_inside(offset, length);
  PLATTER_CO_TRY(still_there);
  if (notes_changes()) {
    auto announced = co_await announce_change(offset, length);
    PLATTER_CO_TRY(announced);
  }
  const std::uint64_t unit = zero_unit();
  const std::uint64_t end = offset + length;
  const std::uint64_t first = align_up(offset, unit);
  // The disk's last unit is whole when the range reaches the disk's end.
  const std::uint64_t last = end >= size() ? end : align_down(end, unit);
  const bool may_write = !flags.no_fallback;
  if (first >= last) {
    Result<void> done;
    if (!may_write) done = co_await may_zero_part(offset, length);
    if (done) done = co_await zero_part(offset, length, may_write);
    co_return done;
  }
  const std::uint64_t middle = last - first;
  Result<void> done;
  if (!may_write) {
    // Who is refused finds everything as it was, unless somebody else writes there meanwhile.
    if (offset < first) done = co_await may_zero_part(offset, first - offset);
    if (done && last < end) done = co_await may_zero_part(last, end - last);
    if (done) done = co_await may_zero_units(first, middle, flags.may_unmap);
  }
  // The middle first: where it fails with ENOTSUP nothing has been written.
  if (done) done = co_await zero_units(first, middle, flags.may_unmap);
  if (done && offset < first) done = co_await zero_part(offset, first - offset, may_write);
  if (done && last < end) done = co_await zero_part(last, end - last, may_write);
  co_return done;
}

Task<Result<void>> MappedDriver::may_zero_units(std::uint64_t, std::uint64_t, bool) {
  co_return {};
}

// Whether no node of the chain has anything but zeroes there, as far as maps tell.
Task<Result<bool>> MappedDriver::not_data(std::uint64_t offset, std::uint64_t length) {
  while (length != 0) {
    Piece piece;
    WalkTo walk(*this, offset, length, piece);
    auto known = co_await walk;
    PLATTER_CO_TRY(known);
    std::uint64_t there = piece.mapping.length;
    bool zero = piece.mapping.kind == Mapping::Kind::kZero;
    if (piece.mapping.kind == Mapping::Kind::kBacking && piece.ask != nullptr) {
      auto extent = co_await chain_extent(*piece.ask, nullptr, offset, there);
      PLATTER_CO_TRY(extent);
      zero = extent->zero;
      there = std::min(there, extent->length);
    }
    if (!zero) co_return false;
    offset += there;
    length -= there;
  }
  co_return true;
}

// Where a part of a unit that has no data is to be zero and the rest is already, the whole unit
// becomes one that is known to be zero, which costs no space.
Task<Result<void>> MappedDriver::hide_around(std::uint64_t offset, std::uint64_t length) {
  const std::uint64_t unit = zero_unit();
  const std::uint64_t end = offset + length;
  for (std::uint64_t at = align_down(offset, unit); at < end; at += unit) {
    const std::uint64_t unit_end = std::min(at + unit, size());
    auto can = co_await can_hide_around(std::max(at, offset), std::min(unit_end, end));
    PLATTER_CO_TRY(can);
    if (!*can) continue;
    // Should somebody have written to the unit meanwhile, it stays as it is.
    auto hidden = co_await hide_units(at, unit_end - at);
    PLATTER_CO_TRY(hidden);
  }
  co_return {};
}

Task<Result<bool>> MappedDriver::can_hide_around(std::uint64_t from, std::uint64_t to) {
  if (!can_hide_units()) co_return false;
  const std::uint64_t unit = zero_unit();
  const std::uint64_t start = align_down(from, unit);
  auto rest = co_await not_data(start, from - start);
  if (rest && *rest) {
    const std::uint64_t unit_end = std::max(to, std::min(start + unit, size()));
    rest = co_await not_data(to, unit_end - to);
  }
  co_return rest;
}

std::unexpected<Error> MappedDriver::refuse_part() {
  return fail(ENOTSUP, "cannot zero part of a cluster without writing it");
}

// What zero_part() would say that may not write.
Task<Result<void>> MappedDriver::may_zero_part(std::uint64_t offset, std::uint64_t length) {
  const std::uint64_t unit = zero_unit();
  const std::uint64_t end = offset + length;
  while (offset < end) {
    const std::uint64_t unit_end = std::min(align_down(offset, unit) + unit, end);
    auto hides = co_await can_hide_around(offset, unit_end);
    PLATTER_CO_TRY(hides);
    while (offset < unit_end) {
      Piece piece;
      Walk walk{this, unit_end - offset, {}};
      if (!walk_on(walk, offset, piece)) {
        auto loaded = co_await walk_slowly(std::move(walk), offset, &piece);
        PLATTER_CO_TRY(loaded);
      }
      const bool zero = piece.mapping.kind == Mapping::Kind::kZero &&
                        (!transforms() || piece.mapping.length % DataTransform::kUnit == 0 ||
                         offset + piece.mapping.length == end);
      const bool from_below = piece.mapping.kind == Mapping::Kind::kBacking || piece.owner != this;
      if (!zero && !(*hides && from_below)) co_return refuse_part();
      offset += piece.mapping.length;
    }
  }
  co_return {};
}

// Part of a unit, or of two: nothing where it reads as zeroes already, otherwise zeroes are
// written.
Task<Result<void>> MappedDriver::zero_part(std::uint64_t offset, std::uint64_t length,
                                           bool may_write) {
  auto hidden = co_await hide_around(offset, length);
  PLATTER_CO_TRY(hidden);
  while (length != 0) {
    Piece piece;
    WalkTo walk(*this, offset, length, piece);
    auto known = co_await walk;
    PLATTER_CO_TRY(known);
    // Pieces may end where a backing node does: amid what the transform needs whole.
    const bool all_zero = piece.mapping.kind == Mapping::Kind::kZero;
    const std::uint64_t step =
        transforms() && !(all_zero && piece.mapping.length % DataTransform::kUnit == 0)
            ? length
            : piece.mapping.length;
    if (!all_zero || step != piece.mapping.length) {
      if (!may_write) co_return refuse_part();
      const Buffer zeroes = Buffer::zeroed(step);
      auto written = co_await write_inside(offset, zeroes.iov());
      PLATTER_CO_TRY(written);
    }
    offset += step;
    length -= step;
  }
  co_return {};
}

}  // namespace platter
