#include "block/base/checked.h"
#include "block/exec/buffer.h"
#include "block/node/nesting.h"
#include "block/node/node.h"
#include "block/node/registry.h"

namespace platter {
Task<Result<void>> BlockNode::write(std::uint64_t offset, IoVec iov, WriteFlags flags) {
  // (Judged inside: a reopen may change the mode and the limits until then.)
  if (!flags.fua && !detail::nested_too_deep() && gate_.enter()) [[likely]] {
    if (plain_writes_ && takes_as_is(offset, iov) &&
        range_within(offset, iov.size(), driver_->size())) [[likely]] {
      mark_dirty();
      const detail::Nesting nested;
      Task<Result<void>> task = driver_->do_write(offset, iov, flags);
      if (!task.done()) return leave_after(std::move(task));
      gate_.leave();
      return task;
    }
    gate_.leave();
  }
  return write_slow(offset, iov, flags);
}

Task<Result<void>> BlockNode::call_write(std::uint64_t offset, IoVec iov, WriteFlags flags) {
  const detail::Nesting nested;
  return driver_->do_write(offset, iov, flags);
}

bool BlockNode::flush_instead_of_fua(bool& fua) const {
  fua = fua || flags_.writethrough;
  if (!fua) return false;
  if (flags_.no_flush) {
    fua = false;
    return false;
  }
  if (limits_.native_fua) return false;
  fua = false;
  return true;
}

Task<Result<void>> BlockNode::write_slow(std::uint64_t offset, IoVec iov, WriteFlags flags) {
  co_await detail::YieldIf{detail::nested_too_deep()};
  auto entered = co_await enter();
  PLATTER_CO_TRY(entered);
  Result<void> result = check_write(offset, iov.size());
  if (result && !iov.empty()) {
    mark_dirty();
    const bool flush_after = flush_instead_of_fua(flags.fua);
    if (limits_.request_alignment == 1 && !guard_head_) {
      auto written = write_any(offset, iov, flags);
      result = co_await written;
    } else {
      // An unaligned write reads and writes back its neighbours' bytes: nobody else may write there
      // meanwhile. The probed start of a raw image is judged with what is there: one at a time.
      const std::uint64_t align =
          std::max<std::uint64_t>(limits_.request_alignment, guard_head_ ? kProbeSize : 1);
      const std::uint64_t start = align_down(offset, align);
      const std::uint64_t end = align_up(offset + iov.size(), align);
      const bool head = guard_head_ && start == 0;
      const bool aligned = ((offset | iov.size()) & (limits_.request_alignment - 1)) == 0;
      RangeLock::Hold hold(
          ranges_, start, end - start,
          aligned && !head ? RangeLock::Mode::kShared : RangeLock::Mode::kExclusive);
      co_await hold.acquire();
      // The disk may have become shorter meanwhile.
      result = check_write(offset, iov.size());
      // The buffer may be a guest's memory, which changes at any time: of a probed image's start,
      // what is written is the copy that was judged. The rest follows as it is.
      Buffer start_copy;
      IoVec rest;
      std::uint64_t rest_offset = 0;
      if (result && head) {
        const std::uint64_t length = iov.size();
        const std::uint64_t copied = std::min<std::uint64_t>(length, align - offset);
        start_copy = Buffer(copied);
        iov.first(copied).copy_to(start_copy.data());
        rest = iov.from(copied);
        rest_offset = offset + copied;
        iov = start_copy.iov();
        auto judged = check_head(offset, length, &iov);
        result = co_await judged;
      }
      if (result) {
        auto written = aligned && takes_as_is(offset, iov) &&
                               flags_.detect_zeroes == OpenFlags::DetectZeroes::kOff
                           ? call_write(offset, iov, flags)
                           : write_any(offset, iov, flags);
        result = co_await written;
      }
      if (result && !rest.empty()) {
        auto written = write_any(rest_offset, rest, flags);
        result = co_await written;
      }
    }
    if (result && flush_after) {
      auto flushed = flush_below();
      result = co_await flushed;
    }
  }
  gate_.leave();
  co_return result;
}

Task<Result<void>> BlockNode::write_any(std::uint64_t offset, IoVec iov, WriteFlags flags) {
  if (flags_.detect_zeroes != OpenFlags::DetectZeroes::kOff && iov.is_zero()) {
    const ZeroFlags zero{.fua = flags.fua,
                         .may_unmap = flags_.detect_zeroes == OpenFlags::DetectZeroes::kUnmap,
                         .no_fallback = false};
    auto zeroed = co_await zero_any(offset, iov.size(), zero);
    co_return zeroed;
  }
  const std::uint64_t align = limits_.request_alignment;
  const std::uint64_t end = offset + iov.size();
  if (flags.compressed && end == size() && is_aligned(offset, align) && !is_aligned(end, align)) {
    // A cluster is stored compressed as one: the disk's last one goes with what pads it.
    const std::uint64_t unit = std::max<std::uint64_t>(limits_.optimal_transfer, align);
    const std::uint64_t last = std::max(offset, end - end % unit);
    const Buffer padded = Buffer::zeroed(align_up(end, align) - last);
    auto before = co_await write_aligned(offset, iov.first(last - offset), flags);
    PLATTER_CO_TRY(before);
    iov.from(last - offset).copy_to(padded.data());
    auto written = co_await call_write(last, padded.iov(), flags);
    co_return written;
  }
  std::uint64_t done = 0;
  if (!is_aligned(offset, align)) {
    const std::uint64_t block = align_down(offset, align);
    done = std::min<std::uint64_t>(block + align - offset, iov.size());
    auto head = co_await write_block(block, offset, iov.first(done), flags);
    PLATTER_CO_TRY(head);
  }
  const std::uint64_t tail_block = align_down(end, align);
  if (tail_block > offset + done) {
    const std::uint64_t middle = tail_block - (offset + done);
    auto written = co_await write_aligned(offset + done, iov.slice(done, middle), flags);
    PLATTER_CO_TRY(written);
    done += middle;
  }
  if (done < iov.size()) {
    auto tail = co_await write_block(tail_block, tail_block, iov.from(done), flags);
    PLATTER_CO_TRY(tail);
  }
  co_return {};
}

// Writes `iov` at `offset` within the one block that starts at `block`, keeping its other bytes.
Task<Result<void>> BlockNode::write_block(std::uint64_t block, std::uint64_t offset, IoVec iov,
                                          WriteFlags flags) {
  const Buffer buffer(limits_.request_alignment);
  PLATTER_FAULT(*this, block == offset ? FaultEvent::kPwritevRmwTail : FaultEvent::kPwritevRmwHead);
  if (block < size()) {
    auto old = co_await call_read(block, buffer.iov(), ReadFlags{});
    PLATTER_CO_TRY(old);
  } else {
    std::memset(buffer.data(), 0, buffer.size());
  }
  PLATTER_FAULT(
      *this, block == offset ? FaultEvent::kPwritevRmwAfterTail : FaultEvent::kPwritevRmwAfterHead);
  iov.copy_to(buffer.data() + (offset - block));
  auto written = co_await call_write(block, buffer.iov(), flags);
  co_return written;
}

Task<Result<void>> BlockNode::write_aligned(std::uint64_t offset, IoVec iov, WriteFlags flags) {
  // Compressed are whole clusters, however long they are.
  const std::uint64_t bounce = std::max<std::uint64_t>(
      {kBounce, limits_.request_alignment, flags.compressed ? limits_.optimal_transfer : 0U});
  for (std::uint64_t done = 0; done < iov.size();) {
    std::uint64_t length = std::min<std::uint64_t>(iov.size() - done, limits_.max_transfer);
    IoVec piece = iov.slice(done, length);
    if (limits_.memory_fits(piece)) {
      auto direct = co_await call_write(offset + done, piece, flags);
      PLATTER_CO_TRY(direct);
    } else {
      length = std::min(length, bounce);
      const Buffer buffer(length);
      piece.first(length).copy_to(buffer.data());
      auto bounced = co_await call_write(offset + done, buffer.iov(), flags);
      PLATTER_CO_TRY(bounced);
    }
    done += length;
  }
  co_return {};
}

// With cache.no-flush the disk is not asked, but a format still hands down what it holds back.
Task<Result<void>> BlockNode::flush_below() {
  if (type_.protocol && flags_.no_flush) co_return {};
  // Only when this flush is alone does it cover all that was written; a write that enters from here
  // on finds the flag cleared and sets it again.
  if (gate_.inside() <= 1) {
    dirty_.store(false, std::memory_order_seq_cst);
    std::atomic_thread_fence(std::memory_order_seq_cst);
    if (gate_.inside() > 1) dirty_.store(true, std::memory_order_relaxed);
  }
  if (BlockNode* const below = storage(); below && below->listens_to_events()) [[unlikely]] {
    PLATTER_FAULT(*below, FaultEvent::kFlushToOs);
    if (!flags_.no_flush) PLATTER_FAULT(*below, FaultEvent::kFlushToDisk);
  }
  auto flushed = co_await driver_->do_flush();
  if (!flushed) dirty_.store(true, std::memory_order_relaxed);
  co_return flushed;
}

Task<Result<void>> BlockNode::flush() {
  co_await detail::YieldIf{detail::nested_too_deep()};
  auto entered = co_await enter();
  PLATTER_CO_TRY(entered);
  Result<void> result;
  if (!flags_.read_only) {
    auto flushed = start_flush();
    result = co_await flushed;
  }
  gate_.leave();
  co_return result;
}

Task<Result<void>> BlockNode::start_flush() {
  const detail::Nesting nested;
  return flush_below();
}

}  // namespace platter
