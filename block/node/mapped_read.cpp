// The reading half of the request engine: walks, reads, extents, and how requests are let in.
#include "block/base/checked.h"
#include "block/exec/task_window.h"
#include "block/exec/workers.h"
#include "block/node/mapped_driver.h"

namespace platter {
namespace {

// Look-ups that one extent answer may merge.
constexpr unsigned kMaxMerged = 1u << 16;

}  // namespace

// Letting in --------------------------------------------------------------------------------------

Task<InFlight::Ticket> MappedDriver::admit_slowly() {
  while (true) {
    InFlight::Ticket ticket(in_flight_);
    if (!held_.load()) co_return std::move(ticket);
    ticket.release();
    UniqueMutexLock lock(held_mutex_);
    if (holders_ == 0) continue;
    co_await released_.wait(lock);
  }
}

Task<void> MappedDriver::hold() {
  {
    MutexLock lock(held_mutex_);
    ++holders_;
    held_.store(true);
  }
  auto ended = in_flight_.wait();
  co_await ended;
}

void MappedDriver::release() {
  MutexLock lock(held_mutex_);
  if (--holders_ != 0) return;
  held_.store(false);
  released_.notify_all();
}

// Walking a chain --------------------------------------------------------------------------------

bool MappedDriver::take_answer(Walk& walk, std::uint64_t offset, Mapping& mapping, Piece& piece) {
  walk.length = std::min(walk.length, mapping.length);
  mapping.length = walk.length;
  if (mapping.kind == Mapping::Kind::kBacking) {
    BlockNode* below = walk.driver->backing();
    // It shows within the disk only: what lies behind that, as VM state, is nobody's but its own.
    const std::uint64_t size = below ? std::min(below->size(), walk.driver->size()) : 0;
    if (offset < size) {
      walk.length = std::min(walk.length, size - offset);
      mapping.length = walk.length;
      MappedDriver* next = below->driver().mapped();
      if (next) {
        InFlight::Ticket ticket(next->in_flight_);
        if (!next->held_.load()) {
          walk.driver = next;
          walk.below = std::move(ticket);
          return false;
        }
      }
      piece.ask = below;
    } else {
      mapping.kind = Mapping::Kind::kZero;
      mapping.has_host = false;
    }
  }
  piece.mapping = mapping;
  piece.owner = walk.driver;
  piece.below = std::move(walk.below);
  return true;
}

bool MappedDriver::walk_on(Walk& walk, std::uint64_t offset, Piece& piece) {
  Mapping mapping;
  do {
    if (!walk.driver->try_map(offset, walk.length, false, mapping)) return false;
  } while (!take_answer(walk, offset, mapping, piece));
  return true;
}

Task<Result<void>> MappedDriver::walk_slowly(Walk walk, std::uint64_t offset, Piece* piece) {
  while (true) {
    auto mapping = co_await walk.driver->map(offset, walk.length, false);
    PLATTER_CO_TRY(mapping);
    if (take_answer(walk, offset, *mapping, *piece)) co_return {};
    if (walk_on(walk, offset, *piece)) co_return {};
  }
}

// Reading ----------------------------------------------------------------------------------------

Task<Result<void>> MappedDriver::finish(InFlight::Ticket ticket, InFlight::Ticket below,
                                        Task<Result<void>> task) {
  auto result = co_await task;
  below.release();
  ticket.release();
  co_return result;
}

Task<Result<void>> MappedDriver::do_read(std::uint64_t offset, IoVec iov, ReadFlags) {
  // The usual case, one cached piece of stored bytes, without a coroutine for looking it up.
  InFlight::Ticket ticket(in_flight_);
  if (!held_.load()) [[likely]] {
    Piece piece;
    Walk walk{this, iov.size(), {}};
    if (walk_on(walk, offset, piece) && piece.mapping.kind == Mapping::Kind::kData &&
        piece.mapping.length == iov.size()) {
      Task<Result<void>> task =
          piece.owner->read_data(*piece.mapping.node, piece.mapping.host_offset, offset, iov);
      if (task.done()) return task;
      return finish(std::move(ticket), std::move(piece.below), std::move(task));
    }
  }
  ticket.release();
  return read_task(offset, iov);
}

Task<Result<void>> MappedDriver::read_task(std::uint64_t offset, IoVec iov) {
  InFlight::Ticket ticket(in_flight_);
  if (held_.load()) [[unlikely]] {
    ticket.release();
    ticket = co_await admit_slowly();
  }
  auto result = co_await read_inside(offset, iov);
  co_return result;
}

Task<Result<void>> MappedDriver::read_at(BlockNode& node, std::uint64_t host_offset, IoVec iov) {
  if (!node.listens_to_events()) return node.read(host_offset, iov);
  return [](BlockNode& below, std::uint64_t host, IoVec to) -> Task<Result<void>> {
    PLATTER_FAULT(below, FaultEvent::kMapped);
    PLATTER_FAULT(below, FaultEvent::kReadAio);
    auto result = co_await below.read(host, to);
    co_return result;
  }(node, host_offset, iov);
}

Task<Result<void>> MappedDriver::read_inside(std::uint64_t offset, IoVec iov) {
  TaskWindow window(kMaxRunning);
  while (!iov.empty() && window.good()) {
    Piece piece;
    WalkTo walk(*this, offset, iov.size(), piece);
    auto known = co_await walk;
    if (!known) {
      window.note(known);
      break;
    }
    const std::uint64_t length = piece.mapping.length;
    IoVec part = iov.first(length);
    if (piece.mapping.kind == Mapping::Kind::kZero) {
      part.fill(std::byte{0});
    } else if (length == iov.size() && window.unused()) {
      // The last or only piece: no list to keep.
      if (piece.mapping.kind == Mapping::Kind::kData) {
        auto only = co_await piece.owner->read_data(*piece.mapping.node, piece.mapping.host_offset,
                                                    offset, part);
        co_return only;
      }
      auto only = co_await read_piece(std::move(piece), offset, part);
      co_return only;
    } else {
      if (window.full()) co_await window.oldest();
      window.add(read_piece(std::move(piece), offset, part));
    }
    offset += length;
    iov = iov.from(length);
  }
  while (window.busy()) co_await window.oldest();
  co_return window.take();
}

Task<Result<void>> MappedDriver::read_to_keep(std::uint64_t offset, IoVec iov) {
  // Further behind lies what the format keeps there, such as VM state.
  if (offset > size()) return read_inside(offset, iov);
  std::uint64_t inside = size() - offset;
  // Ciphers take whole sectors.
  if (transforms()) inside = align_up(inside, std::uint64_t{DataTransform::kUnit});
  inside = std::min<std::uint64_t>(inside, iov.size());
  iov.from(inside).fill(std::byte{0});
  return read_inside(offset, iov.first(inside));
}

Task<Result<void>> MappedDriver::read_piece(Piece piece, std::uint64_t offset, IoVec iov) {
  switch (piece.mapping.kind) {
    case Mapping::Kind::kData: {
      auto data = co_await piece.owner->read_data(*piece.mapping.node, piece.mapping.host_offset,
                                                  offset, iov);
      co_return data;
    }
    case Mapping::Kind::kCompressed: {
      auto packed = co_await piece.owner->read_packed(piece.mapping, offset, iov);
      co_return packed;
    }
    case Mapping::Kind::kBacking: {
      PLATTER_FAULT(*piece.ask, FaultEvent::kReadBackingAio);
      auto backing = co_await piece.ask->read(offset, iov);
      co_return backing;
    }
    case Mapping::Kind::kZero:
      break;
  }
  iov.fill(std::byte{0});
  co_return {};
}

Task<Result<void>> MappedDriver::read_packed(Mapping mapping, std::uint64_t offset, IoVec iov) {
  const Buffer packed(mapping.packed_length);
  PLATTER_FAULT(*mapping.node, FaultEvent::kReadCompressed);
  auto fetched = co_await read_at(*mapping.node, mapping.host_offset, packed.iov());
  PLATTER_CO_TRY(fetched);
  const bool whole = offset == mapping.unit_offset && iov.size() == mapping.unit_length;
  const std::span<std::byte> straight = whole ? iov.contiguous() : std::span<std::byte>{};
  const Buffer unit = straight.empty() ? Buffer(mapping.unit_length) : Buffer();
  const std::span<std::byte> out = straight.empty() ? unit.span() : straight;
  auto work = [this, &packed, out] { return unpack(packed.span(), out); };
  auto unpacked = co_await run_on(WorkerPool::codecs(), work);
  PLATTER_CO_TRY(unpacked);
  if (straight.empty()) iov.copy_from(unit.data() + (offset - mapping.unit_offset));
  co_return {};
}

Result<void> MappedDriver::unpack(std::span<const std::byte>, std::span<std::byte>) {
  return fail(ENOTSUP, "the format has no compressed data");
}

// Extents ----------------------------------------------------------------------------------------

Task<Result<Extent>> MappedDriver::do_extent(std::uint64_t offset, std::uint64_t length) {
  return extent_task(offset, length);
}

namespace {

// Where stored bytes are not the disk's, their place is not told.
Extent extent_of(const Mapping& mapping, std::uint64_t offset, bool transformed) {
  Extent extent{.offset = offset, .length = mapping.length};
  switch (mapping.kind) {
    case Mapping::Kind::kData:
      extent.kind = ExtentKind::kData;
      break;
    case Mapping::Kind::kZero:
      extent.kind = ExtentKind::kZero;
      break;
    case Mapping::Kind::kCompressed:
      extent.kind = ExtentKind::kCompressed;
      break;
    case Mapping::Kind::kBacking:
      extent.kind = ExtentKind::kUnallocated;
      break;
  }
  const bool stored =
      mapping.kind == Mapping::Kind::kData || mapping.kind == Mapping::Kind::kCompressed;
  if (!stored && !mapping.has_host) return extent;
  if (transformed && mapping.kind != Mapping::Kind::kCompressed) return extent;
  extent.node = mapping.node;
  extent.host_offset = mapping.host_offset;
  return extent;
}

bool continues(const Extent& extent, const Extent& next) {
  if (extent.kind != next.kind || extent.node != next.node) return false;
  if (extent.kind == ExtentKind::kCompressed) return false;
  return extent.has_host_offset() ? next.host_offset == extent.host_offset + extent.length
                                  : !next.has_host_offset();
}

}  // namespace

Task<Result<Extent>> MappedDriver::extent_task(std::uint64_t offset, std::uint64_t length) {
  auto ticket = co_await admit();
  std::optional<Extent> extent;
  for (unsigned merged = 0; merged < kMaxMerged; ++merged) {
    const std::uint64_t at = extent ? extent->end() : offset;
    const std::uint64_t left = offset + length - at;
    if (left == 0) break;
    Mapping mapping;
    if (!try_map(at, left, false, mapping)) {
      // Tables that this answer has passed need not be kept for it.
      if (merged != 0) {
        ticket.release();
        ticket = co_await admit();
      }
      auto loaded = co_await map(at, left, false);
      if (!loaded && extent) break;  // what is known first; the next question meets the error
      PLATTER_CO_TRY(loaded);
      mapping = *loaded;
    }
    const Extent next = extent_of(mapping, at, transforms());
    if (!extent) {
      extent = next;
    } else if (continues(*extent, next)) {
      extent->length += next.length;
    } else {
      break;
    }
  }
  if (extent->kind == ExtentKind::kData) extent->maybe_hole = !transforms() && may_have_holes();
  co_return *extent;
}

}  // namespace platter
