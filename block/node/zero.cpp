#include "block/base/checked.h"
#include "block/exec/buffer.h"
#include "block/node/nesting.h"
#include "block/node/node.h"
#include "block/node/registry.h"

namespace platter {
namespace {

// A source of zeroes for writes; untouched, so that it costs no memory but the kernel's zero page.
constexpr std::size_t kZeroes = std::size_t{1} << 20;
alignas(Buffer::kAlignment) constinit std::byte zeroes[kZeroes]{};

}  // namespace

Task<Result<void>> BlockNode::write_zeroes(std::uint64_t offset, std::uint64_t length,
                                           ZeroFlags flags) {
  co_await detail::YieldIf{detail::nested_too_deep()};
  auto entered = co_await enter();
  PLATTER_CO_TRY(entered);
  Result<void> result = check_write(offset, length);
  if (result && length != 0) {
    mark_dirty();
    const bool flush_after = flush_instead_of_fua(flags.fua);
    auto zeroed = zero_locked(offset, length, flags);
    result = co_await zeroed;
    if (result && flush_after) {
      auto flushed = flush_below();
      result = co_await flushed;
    }
  }
  gate_.leave();
  co_return result;
}

Task<Result<void>> BlockNode::zero_locked(std::uint64_t offset, std::uint64_t length,
                                          ZeroFlags flags) {
  if (limits_.request_alignment == 1 && !guard_head_) {
    auto zeroed = co_await zero_any(offset, length, flags);
    co_return zeroed;
  }
  const std::uint64_t align =
      std::max<std::uint64_t>(limits_.request_alignment, guard_head_ ? kProbeSize : 1);
  const std::uint64_t start = align_down(offset, align);
  const std::uint64_t end = align_up(offset + length, align);
  const bool head = guard_head_ && start == 0;
  const bool aligned = ((offset | length) & (limits_.request_alignment - 1)) == 0;
  RangeLock::Hold hold(ranges_, start, end - start,
                       aligned && !head ? RangeLock::Mode::kShared : RangeLock::Mode::kExclusive);
  co_await hold.acquire();
  // The disk may have become shorter meanwhile.
  const Result<void> inside = check_write(offset, length);
  PLATTER_CO_TRY(inside);
  if (head) {
    auto judged = co_await check_head(offset, length, nullptr);
    PLATTER_CO_TRY(judged);
  }
  auto zeroed = co_await zero_any(offset, length, flags);
  co_return zeroed;
}

// Cuts at zeroes_alignment, so that a driver that cannot zero the edges can still do the middle.
Task<Result<void>> BlockNode::zero_any(std::uint64_t offset, std::uint64_t length,
                                       ZeroFlags flags) {
  const std::uint64_t unit = limits_.zeroes_alignment;
  const std::uint64_t end = offset + length;
  // Parts of blocks are written: a refusal comes before anything has been zeroed.
  if (flags.no_fallback && ((offset | end) & (limits_.request_alignment - 1)) != 0)
    co_return fail_errno(ENOTSUP);
  while (offset < end) {
    // Not align_up: a zeroes_alignment need not be a power of two (a stripe).
    const std::uint64_t into = offset % unit;
    std::uint64_t piece = std::min(into != 0 ? unit - into : limits_.max_zeroes, end - offset);
    if (into == 0 && piece > unit) piece -= piece % unit;
    auto zeroed = co_await zero_aligned(offset, piece, flags);
    PLATTER_CO_TRY(zeroed);
    offset += piece;
  }
  co_return {};
}

Task<Result<void>> BlockNode::zero_aligned(std::uint64_t offset, std::uint64_t length,
                                           ZeroFlags flags) {
  if (((offset | length) & (limits_.request_alignment - 1)) == 0) {
    auto zeroed = co_await call_zeroes(offset, length, flags);
    if (zeroed || zeroed.error().code() != ENOTSUP || flags.no_fallback) co_return zeroed;
  }
  auto written = co_await zero_by_buffer(offset, length, flags);
  co_return written;
}

Task<Result<void>> BlockNode::call_zeroes(std::uint64_t offset, std::uint64_t length,
                                          ZeroFlags flags) {
  const detail::Nesting nested;
  return driver_->do_write_zeroes(offset, length, flags);
}

Task<Result<void>> BlockNode::zero_by_buffer(std::uint64_t offset, std::uint64_t length,
                                             ZeroFlags flags) {
  const std::uint64_t align = limits_.request_alignment;
  const WriteFlags write_flags{.fua = flags.fua};
  const std::uint64_t end = offset + length;
  while (offset < end) {
    const std::uint64_t block = align_down(offset, align);
    std::uint64_t piece = end - offset;
    if (block != offset || piece < align) {
      piece = std::min(piece, block + align - offset);
      auto padded = co_await write_block(
          block, offset, IoVec::of_const(std::span(zeroes).first(piece)), write_flags);
      PLATTER_CO_TRY(padded);
    } else {
      piece = align_down(std::min<std::uint64_t>({piece, kZeroes, limits_.max_transfer}), align);
      auto written =
          co_await call_write(offset, IoVec::of_const(std::span(zeroes).first(piece)), write_flags);
      PLATTER_CO_TRY(written);
    }
    offset += piece;
  }
  co_return {};
}

Task<Result<void>> BlockNode::discard(std::uint64_t offset, std::uint64_t length) {
  co_await detail::YieldIf{detail::nested_too_deep()};
  auto entered = co_await enter();
  PLATTER_CO_TRY(entered);
  Result<void> result = check_range(offset, length);
  if (result && flags_.read_only) result = fail(EROFS, "node '{}' is read-only", node_name_);
  if (result && length != 0 && flags_.discard_unmap) {
    mark_dirty();
    auto discarded = discard_pieces(offset, length);
    result = co_await discarded;
  }
  gate_.leave();
  co_return result;
}

Task<Result<void>> BlockNode::discard_pieces(std::uint64_t offset, std::uint64_t length) {
  // Advice: the parts of blocks at the edges are left alone. The end of an image is a block's end.
  const std::uint64_t align = limits_.request_alignment;
  std::uint64_t end = offset + length;
  end = end == size() ? align_up(end, align) : align_down(end, align);
  offset = align_up(offset, align);
  if (offset >= end) co_return {};
  // Against padded writes, which would bring back what they read before.
  RangeLock::Hold hold(ranges_, offset, end - offset, RangeLock::Mode::kShared);
  if (align > 1) co_await hold.acquire();
  const std::uint64_t unit = limits_.discard_alignment;
  while (offset < end) {
    const std::uint64_t into = offset % unit;
    std::uint64_t piece = std::min(into != 0 ? unit - into : limits_.max_discard, end - offset);
    if (into == 0 && piece > unit) piece -= piece % unit;
    auto discarded = co_await call_discard(offset, piece);
    if (!discarded && discarded.error().code() != ENOTSUP) co_return discarded;
    offset += piece;
  }
  co_return {};
}

Task<Result<void>> BlockNode::call_discard(std::uint64_t offset, std::uint64_t length) {
  const detail::Nesting nested;
  return driver_->do_discard(offset, length);
}

}  // namespace platter
