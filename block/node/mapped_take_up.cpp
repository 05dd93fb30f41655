// The request engine: making data of the backing node the node's own, while others write.
//
// A plan holds back everybody else who wants to change the mapping of its units. So the order is:
// plan, look again whether the units still show the backing node, read what they show, write that,
// publish. Whoever was faster has data of his own there, and that stays.
#include <algorithm>

#include "block/base/checked.h"
#include "block/node/mapped_driver.h"

namespace platter {
namespace {

// What is read and written at a time, at most.
constexpr std::uint64_t kStep = std::uint64_t{1} << 20;

}  // namespace

Task<Result<void>> MappedDriver::hide_units(std::uint64_t, std::uint64_t) {
  co_return fail_errno(ENOTSUP);
}

Task<Result<void>> MappedDriver::do_take_up(std::uint64_t offset, std::uint64_t length,
                                            TakeUpFlags flags) {
  auto ticket = co_await admit();
  // The disk may have become smaller since the caller looked.
  const std::uint64_t end = std::min(offset + length, align_up(size(), limits().request_alignment));
  while (offset < end) {
    auto taken = co_await take_up_some(offset, end - offset, flags);
    PLATTER_CO_TRY(taken);
    offset += *taken;
  }
  co_return {};
}

// Deals with a piece at `offset`; gives its length, 0 when it must be looked at again.
Task<Result<std::uint64_t>> MappedDriver::take_up_some(std::uint64_t offset, std::uint64_t length,
                                                       TakeUpFlags flags) {
  Piece piece;
  WalkTo walk(*this, offset, length, piece);
  auto known = co_await walk;
  PLATTER_CO_TRY(known);
  std::uint64_t there = piece.mapping.length;
  const bool zero = piece.mapping.kind == Mapping::Kind::kZero;
  const bool own = piece.owner == this && piece.ask == nullptr;
  if (own && !zero) co_return there;
  if (zero && !flags.hide_zeroes) co_return there;
  const std::uint64_t unit = zero_unit();
  // Whether the zeroes are the node's own already makes no difference here.
  if (zero && can_hide_units() && offset % unit == 0) {
    const std::uint64_t whole = offset + there >= size() ? there : align_down(there, unit);
    if (whole != 0) {
      auto hidden = co_await hide_units(offset, whole);
      PLATTER_CO_TRY(hidden);
      co_return whole;
    }
  }
  // A piece that ends amid a unit makes the whole unit one to be copied.
  if (there < unit) there = std::min(length, align_down(offset, unit) + unit - offset);
  // What the walk has found is asked for again below: its hold on the chain is not needed.
  piece.below.release();

  auto plan = co_await plan_write(offset, std::min(there, kStep));
  PLATTER_CO_TRY(plan);
  const std::uint64_t planned = plan->length;
  if (plan->in_place) co_return planned;
  Mapping now;
  if (!try_map(offset, planned, false, now)) {
    auto loaded = co_await map(offset, planned, false);
    if (!loaded) abandon(*plan);
    PLATTER_CO_TRY(loaded);
    now = *loaded;
  }
  if (now.kind != Mapping::Kind::kBacking) {
    abandon(*plan);
    co_return std::min(now.length, planned);
  }
  if (now.length < planned) {
    abandon(*plan);
    co_return 0;
  }
  auto taken = co_await take_up_planned(*plan, flags);
  PLATTER_CO_TRY(taken);
  co_return planned;
}

Task<Result<void>> MappedDriver::take_up_planned(WritePlan plan, TakeUpFlags flags) {
  const std::uint64_t start = plan.offset - plan.head;
  const Buffer data(plan.head + plan.length + plan.tail);
  PLATTER_FAULT(*plan.node, FaultEvent::kCowRead);
  auto result = co_await read_to_keep(start, data.iov());
  if (result && is_zero(data.span()) && (!flags.hide_zeroes || can_hide_units())) {
    abandon(plan);
    if (!flags.hide_zeroes) co_return {};
    // From here on others may write, to what is then not hidden.
    const std::uint64_t from = align_down(plan.offset, zero_unit());
    const std::uint64_t to = std::min(align_up(plan.offset + plan.length, zero_unit()), size());
    auto hidden = co_await hide_units(from, to - from);
    co_return hidden;
  }
  if (result) {
    PLATTER_FAULT(*plan.node, FaultEvent::kCowWrite);
    result = co_await write_data(*plan.node, plan.host_offset - plan.head, start, data.iov());
  }
  if (result) {
    PLATTER_FAULT(*plan.node, FaultEvent::kL2Update);
    publish(plan);
  } else {
    abandon(plan);
  }
  co_return result;
}

}  // namespace platter
