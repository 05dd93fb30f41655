// FileDriver: what concerns the space behind the bytes: zeroing, discarding, extents, size,
// copying.
#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>

#include "block/adapters/file.h"
#include "block/adapters/file_create.h"
#include "block/base/checked.h"
#include "block/exec/executor.h"
#include "block/exec/workers.h"
#include "block/node/node.h"

namespace platter {
namespace {

// What file systems answer that cannot do a thing (some say EINVAL).
bool cannot(int error) {
  return error == EOPNOTSUPP || error == ENOSYS || error == EINVAL || error == ENOTTY;
}

std::unexpected<Error> not_supported() { return fail_errno(ENOTSUP); }

}  // namespace

Task<int> FileDriver::allocate(int mode, std::uint64_t offset, std::uint64_t length) {
  // Punching memory is done at once; allocating it may take long.
  constexpr std::uint64_t kAtOnce = std::uint64_t{16} << 20;
  if (in_memory_ && length <= kAtOnce) {
    const int r =
        ::fallocate(fd_.get(), mode, static_cast<off_t>(offset), static_cast<off_t>(length));
    co_return r == 0 ? 0 : -errno;
  }
  int n;
  do {
    IoOp op = io::fallocate(fd_.get(), mode, offset, length);
    n = co_await op;
  } while (n == -EINTR);
  co_return n;
}

Task<Result<void>> FileDriver::do_write_zeroes(std::uint64_t offset, std::uint64_t length,
                                               ZeroFlags flags) {
  // What reaches beyond the end must not be made longer by setting the size, which could cut off
  // what another request has written behind; the two modes below without KEEP_SIZE only lengthen.
  const bool inside = range_within(offset, length, size());
  int n = -EOPNOTSUPP;
  if (flags.may_unmap && inside && can_punch_.load(std::memory_order_relaxed)) {
    n = co_await allocate(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length);
    if (n < 0 && cannot(-n)) can_punch_.store(false, std::memory_order_relaxed);
  }
  if (n < 0 && cannot(-n) && can_zero_range_.load(std::memory_order_relaxed)) {
    n = co_await allocate(FALLOC_FL_ZERO_RANGE, offset, length);
    if (n < 0 && cannot(-n)) can_zero_range_.store(false, std::memory_order_relaxed);
  }
  if (n < 0 && cannot(-n) && can_punch_.load(std::memory_order_relaxed)) {
    n = co_await allocate(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length);
    if (n == 0) n = co_await allocate(0, offset, length);
  }
  if (n < 0 && cannot(-n)) co_return not_supported();
  note_change(n == 0 ? offset + length : 0);
  if (n < 0) co_return fail_errno(-n);
  if (flags.fua) {
    auto flushed = co_await do_flush();
    PLATTER_CO_TRY(flushed);
  }
  co_return {};
}

Task<Result<void>> FileDriver::do_discard(std::uint64_t offset, std::uint64_t length) {
  if (!can_punch_.load(std::memory_order_relaxed)) co_return not_supported();
  const int n = co_await allocate(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length);
  if (n < 0 && cannot(-n)) {
    can_punch_.store(false, std::memory_order_relaxed);
    co_return not_supported();
  }
  note_change(0);
  if (n < 0) co_return fail_errno(-n);
  co_return {};
}

Result<Extent> FileDriver::find_extent(std::uint64_t offset) const {
  Extent extent{.offset = offset,
                .length = 0,
                .kind = ExtentKind::kData,
                .node = nullptr,
                .host_offset = offset};
  const std::uint64_t end = size();
  const auto to = [&](off_t position) {
    extent.length = std::min(static_cast<std::uint64_t>(position), end) - offset;
    return extent;
  };
  const auto at = static_cast<off_t>(offset);
  const off_t data = ::lseek(fd_.get(), at, SEEK_DATA);
  if (data < 0 && errno == ENXIO) {
    extent.kind = ExtentKind::kZero;
    return to(static_cast<off_t>(end));
  }
  if (data < 0) return fail_errno(errno);
  if (data > at) {
    extent.kind = ExtentKind::kZero;
    return to(data);
  }
  const off_t hole = ::lseek(fd_.get(), at, SEEK_HOLE);
  // At or before `at`: somebody punched meanwhile; data is always a true answer.
  return to(hole > at ? hole : static_cast<off_t>(end));
}

Task<Result<Extent>> FileDriver::do_extent(std::uint64_t offset, std::uint64_t length) {
  const auto clipped = [&](Extent extent) {
    const std::uint64_t skip = offset - extent.offset;
    extent.offset = extent.host_offset = offset;
    extent.length = std::min(length, extent.length - skip);
    return extent;
  };
  Extent unknown{.offset = offset,
                 .length = length,
                 .kind = ExtentKind::kData,
                 .node = nullptr,
                 .host_offset = offset};
  if (!can_seek_data_.load(std::memory_order_relaxed) || offset >= size()) co_return unknown;
  const std::uint64_t change = changes_.load(std::memory_order_acquire);
  {
    MutexLock lock(extent_mutex_);
    if (last_extent_change_ == change && offset >= last_extent_.offset &&
        offset < last_extent_.end()) {
      co_return clipped(last_extent_);
    }
  }
  const Result<Extent> found = find_extent(offset);
  if (!found) {
    if (cannot(found.error().code())) can_seek_data_.store(false, std::memory_order_relaxed);
    co_return unknown;
  }
  if (found->length == 0) co_return unknown;  // cut short meanwhile
  {
    MutexLock lock(extent_mutex_);
    last_extent_ = *found;
    last_extent_change_ = change;
  }
  co_return clipped(*found);
}

Task<Result<void>> FileDriver::do_resize(ResizeRequest request) {
  const std::uint64_t old_size = size();
  auto work = [&] {
    return set_file_size(fd_.get(), old_size, request.size, request.preallocation,
                         request.cancelled, request.progress);
  };
  Result<void> done = co_await run_on(WorkerPool::blocking(), work);
  if (done && request.preallocation == Preallocation::kFull && request.size > old_size) {
    // (Not with a plain call: what it were told of lost writes, later flushes would not know.)
    note_change(0);
    auto flushed = co_await do_flush();
    if (!flushed) {
      auto undo = [&] {
        return set_file_size(fd_.get(), request.size, old_size, Preallocation::kOff, nullptr);
      };
      [[maybe_unused]] const Result<void> undone = co_await run_on(WorkerPool::blocking(), undo);
      done = fail_errno(flushed.error().code(), "Could not flush file to disk");
    }
  }
  if (done) size_.store(request.size, std::memory_order_release);
  note_change(0);
  co_return done;
}

namespace {

struct CopyRequest {
  int from;
  int to;
  std::uint64_t source;
  std::uint64_t target;
  std::uint64_t length;
  bool may_clone;
  bool clone_failed = false;
};

// 0 or a positive errno.
int copy_range(CopyRequest& request) {
  if (request.may_clone) {
    file_clone_range range{};
    range.src_fd = request.from;
    range.src_offset = request.source;
    range.src_length = request.length;
    range.dest_offset = request.target;
    if (::ioctl(request.to, FICLONERANGE, &range) == 0) return 0;
    // EINVAL: the range is not made of whole blocks; another may be.
    request.clone_failed = errno != EINVAL;
  }
  std::uint64_t left = request.length;
  auto source = static_cast<off_t>(request.source);
  auto target = static_cast<off_t>(request.target);
  while (left > 0) {
    const ssize_t n = ::copy_file_range(request.from, &source, request.to, &target, left, 0);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return errno;
    if (n == 0) return ENOTSUP;  // the source ends here: let the caller read zeroes
    left -= static_cast<std::uint64_t>(n);
  }
  return 0;
}

}  // namespace

Task<Result<void>> FileDriver::do_copy_from(BlockNode& source, std::uint64_t source_offset,
                                            std::uint64_t offset, std::uint64_t length,
                                            CopyFlags flags) {
  auto* const from = dynamic_cast<FileDriver*>(&source.driver());
  if (!from || no_copy_from_.load(std::memory_order_relaxed) == from) co_return not_supported();
  if (!flags.may_share) {
    const int error = copy_now(*from, source_offset, offset, length);
    if (error != ENOTSUP) note_change(error == 0 ? offset + length : 0);
    if (error == 0) co_return {};
    co_return fail_errno(error);
  }
  CopyRequest request{from->fd(), fd_.get(), source_offset,
                      offset,     length,    can_clone_.load(std::memory_order_relaxed)};
  auto work = [&] { return copy_range(request); };
  const int error = co_await run_on(WorkerPool::blocking(), work);
  if (request.clone_failed) can_clone_.store(false, std::memory_order_relaxed);
  note_change(error == 0 ? offset + length : 0);
  if (error == 0) co_return {};
  if (cannot(error) || error == EXDEV || error == EBADF || error == ETXTBSY || error == EPERM) {
    no_copy_from_.store(from, std::memory_order_relaxed);
    co_return not_supported();
  }
  co_return fail_errno(error);
}

}  // namespace platter
