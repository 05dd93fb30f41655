// FileDriver: reading, writing, flushing.
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "block/adapters/file.h"
#include "block/adapters/splice.h"
#include "block/exec/executor.h"

namespace platter {
namespace {

// A copy between memory and the page cache of more than this would keep the executor from its other
// work for too long (about 100 µs).
constexpr std::size_t kLongestCopy = std::size_t{1} << 20;
// Measured with 4 KiB requests (CPU per request): on tmpfs a plain read costs 1.3 µs and 2.8 to 5.7
// by the ring, which hands it to a kernel thread; a plain write 1.4 against 3.3. On ext4 a read
// from the cache costs 1.1 µs with RWF_NOWAIT and 1.1 to 1.5 by the ring; a plain buffered write 13
// against 25.
constexpr int kColdReads = 16;
constexpr std::int64_t kSlowWrite = 2'000'000;        // ns that tell that a write had to wait
constexpr std::int64_t kSlowWritePause = 50'000'000;  // ns

std::int64_t monotonic_now() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return std::int64_t{now.tv_sec} * 1'000'000'000 + now.tv_nsec;
}

int count_of(const KernelIov& iov) { return static_cast<int>(iov.count()); }

ssize_t negative_errno(ssize_t n) { return n < 0 ? -errno : n; }

template <class T>
void raise_to(std::atomic<T>& value, T least) {
  T now = value.load(std::memory_order_relaxed);
  while (now < least && !value.compare_exchange_weak(now, least, std::memory_order_release)) {
  }
}

}  // namespace

void FileDriver::note_change(std::uint64_t end) {
  raise_to(size_, end);
  changes_.fetch_add(1, std::memory_order_acq_rel);
}

void FileDriver::note_lost_writes(int error) {
  int none = 0;
  flush_error_.compare_exchange_strong(none, error, std::memory_order_acq_rel);
}

std::optional<ssize_t> FileDriver::read_now(const KernelIov& iov, std::uint64_t offset) {
  if (direct_ || iov.bytes() > kLongestCopy) return std::nullopt;
  const auto at = static_cast<off_t>(offset);
  if (in_memory_) return negative_errno(::preadv(fd_.get(), iov.data(), count_of(iov), at));
  const int cold = cold_reads_.load(std::memory_order_relaxed);
  if (cold > 0) {
    cold_reads_.store(cold - 1, std::memory_order_relaxed);
    return std::nullopt;
  }
  const ssize_t n = ::preadv2(fd_.get(), iov.data(), count_of(iov), at, RWF_NOWAIT);
  if (n >= 0) return n;
  if (errno != EAGAIN && errno != EOPNOTSUPP) return -errno;
  cold_reads_.store(kColdReads, std::memory_order_relaxed);
  return std::nullopt;
}

// The page cache nearly always takes a write at once. When it does not (too much is dirty, or a
// page has to be read first), the next writes go to the ring for a while.
template <class Call>
std::optional<ssize_t> FileDriver::unless_slow(Call&& call) {
  const std::int64_t begin = monotonic_now();
  if (begin < slow_writes_until_.load(std::memory_order_relaxed)) return std::nullopt;
  const ssize_t n = call();
  const std::int64_t end = monotonic_now();
  if (end - begin > kSlowWrite) {
    slow_writes_until_.store(end + kSlowWritePause, std::memory_order_relaxed);
  }
  return n;
}

std::optional<ssize_t> FileDriver::write_now(const KernelIov& iov, std::uint64_t offset) {
  if (direct_ || iov.bytes() > kLongestCopy) return std::nullopt;
  const auto at = static_cast<off_t>(offset);
  if (in_memory_) return negative_errno(::pwritev(fd_.get(), iov.data(), count_of(iov), at));
  return unless_slow(
      [&] { return negative_errno(::pwritev(fd_.get(), iov.data(), count_of(iov), at)); });
}

int FileDriver::copy_now(const FileDriver& from, std::uint64_t source, std::uint64_t target,
                         std::uint64_t length) {
  if (direct_ || from.direct_ || length > kLongestCopy) return ENOTSUP;
  const auto call = [&]() -> ssize_t {
    return splice_range(from.fd(), source, fd_.get(), target, length);
  };
  const std::optional<ssize_t> done = in_memory_ ? call() : unless_slow(call);
  return done ? static_cast<int>(*done) : ENOTSUP;
}

Task<Result<void>> FileDriver::do_read(std::uint64_t offset, IoVec iov, ReadFlags) {
  while (!iov.empty()) {
    const KernelIov segments(iov);
    ssize_t n;
    if (const std::optional<ssize_t> done = read_now(segments, offset)) {
      n = *done;
    } else {
      IoOp op = io::readv(fd_.get(), segments.data(), segments.count(), offset);
      n = co_await op;
    }
    if (n == -EINTR) continue;
    if (n < 0) co_return fail_errno(static_cast<int>(-n));
    const auto bytes = static_cast<std::size_t>(n);
    // A direct read ends unaligned only at the end of the file.
    const bool at_end = n == 0 || (direct_ && bytes % alignment_.request != 0);
    iov = iov.from(bytes);
    offset += bytes;
    if (at_end) {
      iov.fill(std::byte{0});
      break;
    }
  }
  co_return {};
}

Task<Result<void>> FileDriver::do_write(std::uint64_t offset, IoVec iov, WriteFlags flags) {
  const bool durable = flags.fua && !settings_.flags.no_flush;
  // Around the page cache a device can make the write itself durable. What goes through it can be
  // lost behind any writer's back, which the kernel tells only one caller: do_flush() tells all.
  const int sync = durable && direct_ ? RWF_DSYNC : 0;
  while (!iov.empty()) {
    const KernelIov segments(iov);
    ssize_t n;
    if (const std::optional<ssize_t> done = write_now(segments, offset)) {
      n = *done;
    } else {
      IoOp op = io::writev(fd_.get(), segments.data(), segments.count(), offset, sync);
      n = co_await op;
    }
    if (n == -EINTR) continue;
    if (n == 0) n = -EIO;  // a file that takes nothing and does not say why
    if (n < 0) {
      // A part may have been written.
      note_change(0);
      if (sync != 0 && n == -EIO) note_lost_writes(EIO);
      co_return fail_errno(static_cast<int>(-n));
    }
    const auto bytes = static_cast<std::size_t>(n);
    iov = iov.from(bytes);
    offset += bytes;
    note_change(offset);
  }
  if (!durable || sync != 0) co_return {};
  const Result<void> flushed = co_await do_flush();
  co_return flushed;
}

Task<Result<void>> FileDriver::do_flush() {
  if (settings_.flags.no_flush) co_return {};
  const std::uint64_t changes = changes_.load(std::memory_order_acquire);
  // One at a time: of several that meet, the kernel would tell only one of a lost write. Those that
  // waited find their changes flushed, too, by whoever came first.
  const AsyncMutex::Guard guard = co_await flush_mutex_.lock();
  if (const int error = flush_error_.load(std::memory_order_acquire); error != 0) {
    co_return fail_errno(error, "an earlier flush failed");
  }
  if (flushed_.load(std::memory_order_acquire) >= changes) co_return {};
  const std::uint64_t all = changes_.load(std::memory_order_acquire);
  if (!in_memory_) {
    IoOp op = io::fsync(fd_.get(), true);
    const int n = co_await op;
    if (n < 0) {
      note_lost_writes(-n);
      co_return fail_errno(-n);
    }
  }
  raise_to(flushed_, all);
  co_return {};
}

}  // namespace platter
