#include "block/base/checked.h"
#include "block/node/nesting.h"
#include "block/node/node.h"

namespace platter {

Task<Result<void>> BlockNode::resize(ResizeRequest request) {
  co_await detail::YieldIf{detail::nested_too_deep()};
  auto entered = co_await enter();
  PLATTER_CO_TRY(entered);
  const std::uint64_t old_size = size();
  Result<void> result;
  if (flags_.read_only) {
    result = fail(EACCES, "Image is read-only");
  } else if (request.size > static_cast<std::uint64_t>(INT64_MAX)) {
    result = fail(EFBIG, "Required too big image size, it must be not greater than {}", INT64_MAX);
  } else {
    mark_dirty();
    auto resized = driver_->do_resize(request);
    result = co_await resized;
  }
  gate_.leave();
  if (size() != old_size && on_resize_) on_resize_(size());
  co_return result;
}

Task<Result<void>> BlockNode::copy_from(BlockNode& source, std::uint64_t source_offset,
                                        std::uint64_t offset, std::uint64_t length,
                                        CopyFlags flags) {
  co_await detail::YieldIf{detail::nested_too_deep()};
  auto entered = co_await enter();
  PLATTER_CO_TRY(entered);
  auto source_entered = co_await source.enter();
  if (!source_entered) {
    gate_.leave();
    co_return source_entered;
  }
  Result<void> result = source.check_range(source_offset, length);
  if (result) result = check_write(offset, length);
  const std::uint64_t align = std::max(limits_.request_alignment, source.limits_.request_alignment);
  if (result && (guard_head_ || ((source_offset | offset | length) & (align - 1)) != 0)) {
    result = fail_errno(ENOTSUP);
  }
  if (result && length != 0) {
    mark_dirty();
    bool fua = false;
    const bool flush_after = flush_instead_of_fua(fua) || fua;
    RangeLock::Hold hold(ranges_, offset, length, RangeLock::Mode::kShared);
    if (align > 1) co_await hold.acquire();
    auto copied = driver_->do_copy_from(source, source_offset, offset, length, flags);
    result = co_await copied;
    if (result && flush_after) {
      auto flushed = flush_below();
      result = co_await flushed;
    }
  }
  source.gate_.leave();
  gate_.leave();
  co_return result;
}

Task<Result<void>> BlockNode::take_up(std::uint64_t offset, std::uint64_t length,
                                      TakeUpFlags flags) {
  co_await detail::YieldIf{detail::nested_too_deep()};
  auto entered = co_await enter();
  PLATTER_CO_TRY(entered);
  // The size may have changed since the caller looked.
  const std::uint64_t end = std::min(size(), offset + length);
  Result<void> result;
  if (flags_.read_only) {
    result = fail(EROFS, "node '{}' is read-only", node_name_);
  } else if (offset < end) {
    mark_dirty();
    const std::uint64_t align = limits_.request_alignment;
    const std::uint64_t start = align_down(offset, align);
    auto taken = driver_->do_take_up(start, align_up(end, align) - start, flags);
    result = co_await taken;
  }
  gate_.leave();
  co_return result;
}

}  // namespace platter
