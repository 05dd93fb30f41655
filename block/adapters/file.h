// FileDriver: the "file" driver, a regular file as a disk; and the base of "host_device".
//
// Buffered or direct (cache.direct). Requests that the page cache can take at once are plain system
// calls; whatever would wait goes through the executor's ring.
//
// Threads: do_* from any executor, several at once; size() anywhere. do_set_permissions and the
// reopen calls: one at a time, and reopening with no request in flight.
// Errors: errno codes with the system's text. After a failed flush (or a failed durable write)
// every later flush fails: the kernel reports a lost write once, and what it held may be gone.
#pragma once

#include <atomic>
#include <memory>
#include <optional>
#include <string>

#include "block/adapters/byte_locks.h"
#include "block/adapters/posix_file.h"
#include "block/base/mutex.h"
#include "block/exec/sync.h"
#include "block/node/driver.h"
#include "block/node/registry.h"

namespace platter {

class FileDriver : public Driver {
 public:
  // Takes options filename, aio, locking, drop-cache and x-check-cache-dropped.
  static Task<Result<std::unique_ptr<Driver>>> open(OpenContext& context);

  struct Settings {
    std::string path;
    OpenFlags flags;
    Locking locking = Locking::kAuto;
    bool native_aio = false;
  };
  FileDriver(UniqueFd fd, std::uint64_t size, Settings settings);

  std::uint64_t size() const override { return size_.load(std::memory_order_acquire); }
  Limits limits() const override;
  bool can_grow() const override { return true; }

  Task<Result<void>> do_read(std::uint64_t offset, IoVec iov, ReadFlags flags) override;
  Task<Result<void>> do_write(std::uint64_t offset, IoVec iov, WriteFlags flags) override;
  Task<Result<void>> do_write_zeroes(std::uint64_t offset, std::uint64_t length,
                                     ZeroFlags flags) override;
  Task<Result<void>> do_discard(std::uint64_t offset, std::uint64_t length) override;
  Task<Result<void>> do_flush() override;
  Task<Result<Extent>> do_extent(std::uint64_t offset, std::uint64_t length) override;
  Task<Result<void>> do_resize(ResizeRequest request) override;
  Task<Result<void>> do_copy_from(BlockNode& source, std::uint64_t source_offset,
                                  std::uint64_t offset, std::uint64_t length,
                                  CopyFlags flags) override;
  Task<Result<void>> do_close() override;
  Task<Result<void>> do_set_permissions(Permissions cumulative) override;
  Task<Result<void>> prepare_reopen(OpenFlags flags) override;
  void commit_reopen() override;
  void abort_reopen() override;

  std::optional<std::uint64_t> allocated_size() override;
  std::string exact_filename() const override { return settings_.path; }

  int fd() const { return fd_.get(); }

 protected:
  // Reads the options both drivers have.
  static Result<Settings> take_options(OpenContext& context, std::string_view driver);
  // "native" is refused through the page cache, as in QEMU, though it means nothing else here.
  static Result<void> check_aio(const Settings& settings);
  const Settings& settings() const { return settings_; }
  // Runs fallocate in the ring, or here where it is a matter of memory; 0 or a negative errno.
  Task<int> allocate(int mode, std::uint64_t offset, std::uint64_t length);
  // To be called after what changed the contents has completed.
  void note_change(std::uint64_t end);
  // Fails all flushes from now on.
  void note_lost_writes(int error);
  virtual Limits basic_limits() const;

 private:
  // What makes a description of the file different from another.
  struct Opened {
    UniqueFd fd;
    bool direct = false;
    DirectAlignment alignment;
  };
  static Opened describe(UniqueFd fd, bool direct);
  void adopt(Opened opened);

  // A plain system call if that is likely to be done at once: the bytes moved or a negative errno;
  // nullopt when the ring should do it.
  std::optional<ssize_t> read_now(const KernelIov& iov, std::uint64_t offset);
  std::optional<ssize_t> write_now(const KernelIov& iov, std::uint64_t offset);
  // A copy between page caches, if that is likely to be done at once: 0 or a positive errno,
  // ENOTSUP when it is not.
  int copy_now(const FileDriver& from, std::uint64_t source, std::uint64_t target,
               std::uint64_t length);
  // Runs a plain system call that writes, unless such calls had to wait lately.
  template <class Call>
  std::optional<ssize_t> unless_slow(Call&& call);
  Result<Extent> find_extent(std::uint64_t offset) const;

  // Immutable after open, but for a reopen.
  UniqueFd fd_;
  Settings settings_;
  bool direct_ = false;
  bool in_memory_ = false;
  DirectAlignment alignment_;

  // Any thread.
  std::atomic<std::uint64_t> size_;
  std::atomic<int> flush_error_{0};
  // Completed changes, and how many of them had completed when the last good flush began.
  std::atomic<std::uint64_t> changes_{1};
  std::atomic<std::uint64_t> flushed_{0};
  AsyncMutex flush_mutex_;
  // Reads to hand to the ring unseen, after one that the page cache did not have.
  std::atomic<int> cold_reads_{0};
  // Until then (CLOCK_MONOTONIC, nanoseconds) buffered writes go to the ring: one had to wait.
  std::atomic<std::int64_t> slow_writes_until_{0};
  std::atomic<bool> can_zero_range_{true};
  std::atomic<bool> can_punch_{true};
  std::atomic<bool> can_seek_data_{true};
  std::atomic<bool> can_clone_{true};
  // The file that this one was found unable to be copied from.
  std::atomic<const FileDriver*> no_copy_from_{nullptr};

  Mutex extent_mutex_;
  Extent last_extent_ PLATTER_GUARDED_BY(extent_mutex_);
  // The value of changes_ that it belongs to.
  std::uint64_t last_extent_change_ PLATTER_GUARDED_BY(extent_mutex_) = 0;

  // One control thread.
  ByteLocks locks_;
  std::optional<Opened> reopened_;
  OpenFlags reopened_flags_;
};

}  // namespace platter
