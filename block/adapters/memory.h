// memory: a disk in RAM, for tests and benchmarks. Sparse: what was never written takes no space.
//
// Filenames "memory:NAME" name disks of this process: opening one again shows the same bytes, so
// that formats can be tested without files. Options: name (instead of a filename; none: a disk of
// its own), size (bytes, of a new disk), and to act as a demanding device: request-alignment,
// memory-alignment, max-transfer.
//
// Threads: MemoryDisk and MemoryDriver: any, at once.
// Ownership: a named disk lives until remove_memory_disk(), others as long as they are used.
// Errors: EFBIG beyond 2^63; EINVAL for misaligned requests when alignment was asked for.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "block/base/mutex.h"
#include "block/node/driver.h"
#include "block/node/node.h"

namespace platter {

// The bytes.
class MemoryDisk {
 public:
  static constexpr std::uint64_t kPage = 64 << 10;

  explicit MemoryDisk(std::uint64_t size) : size_(size) {}

  std::uint64_t size() const { return size_.load(std::memory_order_acquire); }
  std::uint64_t allocated() const;  // bytes of pages that exist
  // Bytes behind the end read as zeroes; writing there enlarges the disk.
  void read(std::uint64_t offset, const IoVec& iov) const;
  void write(std::uint64_t offset, const IoVec& iov);
  // Makes the range read as zeroes and gives whole pages back. Enlarges the disk if need be.
  void zero(std::uint64_t offset, std::uint64_t length);
  void resize(std::uint64_t size);
  // Up to `length` bytes from `offset` that are all stored (true) or all absent (false).
  bool stored(std::uint64_t offset, std::uint64_t& length) const;

 private:
  void zero_locked(std::uint64_t offset, std::uint64_t end) PLATTER_REQUIRES(mutex_);

  mutable SharedMutex mutex_;
  std::map<std::uint64_t, std::unique_ptr<std::byte[]>> pages_
      PLATTER_GUARDED_BY(mutex_);    // by index
  std::atomic<std::uint64_t> size_;  // changed under mutex_
};

// The disk "memory:NAME", or nullptr.
std::shared_ptr<MemoryDisk> find_memory_disk(std::string_view name);
// Makes it anew, empty.
std::shared_ptr<MemoryDisk> make_memory_disk(std::string name, std::uint64_t size);
void remove_memory_disk(std::string_view name);

class MemoryDriver : public Driver {
 public:
  explicit MemoryDriver(std::shared_ptr<MemoryDisk> disk, Limits limits = {},
                        std::string filename = {})
      : disk_(std::move(disk)), limits_(limits), filename_(std::move(filename)) {}

  MemoryDisk& disk() { return *disk_; }

  std::uint64_t size() const override { return disk_->size(); }
  Limits limits() const override { return limits_; }
  bool can_grow() const override { return true; }
  Task<Result<void>> do_read(std::uint64_t offset, IoVec iov, ReadFlags flags) override;
  Task<Result<void>> do_write(std::uint64_t offset, IoVec iov, WriteFlags flags) override;
  Task<Result<void>> do_write_zeroes(std::uint64_t offset, std::uint64_t length,
                                     ZeroFlags flags) override;
  Task<Result<void>> do_discard(std::uint64_t offset, std::uint64_t length) override;
  Task<Result<void>> do_flush() override;
  Task<Result<Extent>> do_extent(std::uint64_t offset, std::uint64_t length) override;
  Task<Result<void>> do_resize(ResizeRequest request) override;
  std::optional<std::uint64_t> allocated_size() override { return disk_->allocated(); }
  std::string exact_filename() const override { return filename_; }

 private:
  bool fits(std::uint64_t offset, std::uint64_t length, const IoVec* iov) const;

  // Immutable after open.
  const std::shared_ptr<MemoryDisk> disk_;
  const Limits limits_;
  const std::string filename_;
};

// A writable memory node of its own, for tests.
NodePtr make_memory_node(std::string node_name, std::uint64_t size, Limits limits = {});
NodePtr make_memory_node(std::string node_name, std::shared_ptr<MemoryDisk> disk,
                         Limits limits = {});

}  // namespace platter
