#include "block/base/checked.h"
#include "block/exec/buffer.h"
#include "block/node/nesting.h"
#include "block/node/node.h"
#include "block/node/registry.h"

namespace platter {
namespace {

// Unaligned requests up to this size are padded and read as one; above, only their edges are.
constexpr std::uint64_t kPadWhole = 128 << 10;

}  // namespace

bool BlockNode::takes_as_is(std::uint64_t offset, const IoVec& iov) const {
  return ((offset | iov.size()) & (limits_.request_alignment - 1)) == 0 && !iov.empty() &&
         iov.size() <= limits_.max_transfer && limits_.memory_fits(iov);
}

Task<Result<void>> BlockNode::read(std::uint64_t offset, IoVec iov, ReadFlags flags) {
  // (Judged inside: a reopen may change the limits until then.)
  if (!detail::nested_too_deep() && gate_.enter()) [[likely]] {
    if (takes_as_is(offset, iov) && range_within(offset, iov.size(), driver_->size())) [[likely]] {
      const detail::Nesting nested;
      Task<Result<void>> task = driver_->do_read(offset, iov, flags);
      if (!task.done()) return leave_after(std::move(task));
      gate_.leave();
      return task;
    }
    gate_.leave();
  }
  return read_slow(offset, iov, flags);
}

Task<Result<void>> BlockNode::call_read(std::uint64_t offset, IoVec iov, ReadFlags flags) {
  const detail::Nesting nested;
  return driver_->do_read(offset, iov, flags);
}

Task<Result<void>> BlockNode::read_slow(std::uint64_t offset, IoVec iov, ReadFlags flags) {
  co_await detail::YieldIf{detail::nested_too_deep()};
  auto entered = co_await enter();
  PLATTER_CO_TRY(entered);
  const std::uint64_t end = size();
  Result<void> result;
  if (can_grow_ || type_.protocol) {
    // Behind the end of a file are zeroes: a format's last cluster need not be complete.
    const std::uint64_t inside =
        std::min<std::uint64_t>(offset < end ? end - offset : 0, iov.size());
    iov.from(inside).fill(std::byte{0});
    iov = iov.first(inside);
  } else {
    result = check_range(offset, iov.size());
  }
  if (result && !iov.empty()) {
    auto done =
        takes_as_is(offset, iov) ? call_read(offset, iov, flags) : read_any(offset, iov, flags);
    result = co_await done;
  }
  gate_.leave();
  co_return result;
}

Task<Result<void>> BlockNode::read_any(std::uint64_t offset, IoVec iov, ReadFlags flags) {
  const std::uint64_t align = limits_.request_alignment;
  const std::uint64_t start = align_down(offset, align);
  const std::uint64_t end = align_up(offset + iov.size(), align);
  if (start == offset && end == offset + iov.size()) {
    auto whole = co_await read_aligned(offset, iov, flags);
    co_return whole;
  }
  if (end - start <= std::max(kPadWhole, align)) {
    const Buffer buffer(end - start);
    auto padded = co_await read_aligned(start, buffer.iov(), flags);
    PLATTER_CO_TRY(padded);
    iov.copy_from(buffer.data() + (offset - start));
    co_return {};
  }
  // The edges through a buffer, the middle directly.
  const Buffer block(align);
  std::uint64_t done = 0;
  if (start != offset) {
    auto head = co_await read_aligned(start, block.iov(), flags);
    PLATTER_CO_TRY(head);
    done = start + align - offset;
    iov.first(done).copy_from(block.data() + (offset - start));
  }
  const std::uint64_t tail = (offset + iov.size()) & (align - 1);
  auto middle =
      co_await read_aligned(offset + done, iov.slice(done, iov.size() - done - tail), flags);
  PLATTER_CO_TRY(middle);
  if (tail != 0) {
    auto last = co_await read_aligned(end - align, block.iov(), flags);
    PLATTER_CO_TRY(last);
    iov.from(iov.size() - tail).copy_from(block.data());
  }
  co_return {};
}

Task<Result<void>> BlockNode::read_aligned(std::uint64_t offset, IoVec iov, ReadFlags flags) {
  for (std::uint64_t done = 0; done < iov.size();) {
    std::uint64_t length = std::min<std::uint64_t>(iov.size() - done, limits_.max_transfer);
    IoVec piece = iov.slice(done, length);
    if (limits_.memory_fits(piece)) {
      auto direct = co_await call_read(offset + done, piece, flags);
      PLATTER_CO_TRY(direct);
    } else {
      length = std::min(length, std::max<std::uint64_t>(kBounce, limits_.request_alignment));
      piece = piece.first(length);
      const Buffer buffer(length);
      auto bounced = co_await call_read(offset + done, buffer.iov(), flags);
      PLATTER_CO_TRY(bounced);
      piece.copy_from(buffer.data());
    }
    done += length;
  }
  co_return {};
}

Task<Result<Extent>> BlockNode::extent(std::uint64_t offset, std::uint64_t length) {
  co_await detail::YieldIf{detail::nested_too_deep()};
  auto entered = co_await enter();
  PLATTER_CO_TRY(entered);
  const std::uint64_t end = size();
  if (offset >= end || length == 0) {
    gate_.leave();
    co_return fail(EINVAL, "no extent at offset {}: the end is at {}", offset, end);
  }
  length = std::min(length, end - offset);
  auto asked = ask_extent(offset, length);
  Result<Extent> extent = co_await asked;
  gate_.leave();
  PLATTER_CO_TRY(extent);
  if (extent->offset != offset || extent->length == 0) {
    co_return fail(EIO, "driver '{}' gave a wrong extent for offset {}", type_.name, offset);
  }
  extent->length = std::min(extent->length, length);
  if (extent->has_host_offset() && !extent->node) extent->node = this;
  co_return extent;
}

Task<Result<Extent>> BlockNode::ask_extent(std::uint64_t offset, std::uint64_t length) {
  const detail::Nesting nested;
  return driver_->do_extent(offset, length);
}

}  // namespace platter
