#include "block/adapters/memory.h"

#include "block/base/checked.h"
#include "block/exec/buffer.h"
#include "block/node/registry.h"

namespace platter {

std::uint64_t MemoryDisk::allocated() const {
  const ReaderLock lock(mutex_);
  return pages_.size() * kPage;
}

void MemoryDisk::read(std::uint64_t offset, const IoVec& iov) const {
  const ReaderLock lock(mutex_);
  const auto* const pages = &pages_;  // a lambda is checked as if it ran without the lock
  iov.for_each([&](std::span<std::byte> piece) {
    while (!piece.empty()) {
      const std::size_t n = std::min<std::uint64_t>(piece.size(), kPage - offset % kPage);
      const auto page = pages->find(offset / kPage);
      if (page == pages->end()) {
        std::memset(piece.data(), 0, n);
      } else {
        std::memcpy(piece.data(), page->second.get() + offset % kPage, n);
      }
      piece = piece.subspan(n);
      offset += n;
    }
  });
}

void MemoryDisk::write(std::uint64_t offset, const IoVec& iov) {
  const WriterLock lock(mutex_);
  auto* const pages = &pages_;  // as above
  iov.for_each([&](std::span<const std::byte> piece) {
    while (!piece.empty()) {
      const std::size_t n = std::min<std::uint64_t>(piece.size(), kPage - offset % kPage);
      std::unique_ptr<std::byte[]>& page = (*pages)[offset / kPage];
      if (!page) page = std::make_unique<std::byte[]>(kPage);
      std::memcpy(page.get() + offset % kPage, piece.data(), n);
      piece = piece.subspan(n);
      offset += n;
    }
  });
  if (offset > size()) size_.store(offset, std::memory_order_release);
}

void MemoryDisk::zero_locked(std::uint64_t offset, std::uint64_t end) {
  for (auto page = pages_.lower_bound(offset / kPage); page != pages_.end();) {
    const std::uint64_t start = page->first * kPage;
    if (start >= end) break;
    const std::uint64_t from = std::max(start, offset);
    const std::uint64_t to = std::min(start + kPage, end);
    if (to - from == kPage) {
      page = pages_.erase(page);
      continue;
    }
    std::memset(page->second.get() + (from - start), 0, to - from);
    ++page;
  }
}

void MemoryDisk::zero(std::uint64_t offset, std::uint64_t length) {
  const WriterLock lock(mutex_);
  zero_locked(offset, offset + length);
  if (offset + length > size()) size_.store(offset + length, std::memory_order_release);
}

void MemoryDisk::resize(std::uint64_t size) {
  const WriterLock lock(mutex_);
  // What lies behind a new end must be zero when the disk grows again.
  zero_locked(size, ~std::uint64_t{0});
  size_.store(size, std::memory_order_release);
}

bool MemoryDisk::stored(std::uint64_t offset, std::uint64_t& length) const {
  const ReaderLock lock(mutex_);
  auto page = pages_.lower_bound(offset / kPage);
  const bool here = page != pages_.end() && page->first == offset / kPage;
  std::uint64_t end = offset + length;
  if (here) {
    std::uint64_t index = page->first;
    while (page != pages_.end() && page->first == index && index * kPage < end) ++page, ++index;
    end = std::min(end, index * kPage);
  } else if (page != pages_.end()) {
    end = std::min(end, page->first * kPage);
  }
  length = end - offset;
  return here;
}

namespace {

struct NamedDisks {
  Mutex mutex;
  std::map<std::string, std::shared_ptr<MemoryDisk>, std::less<>> disks PLATTER_GUARDED_BY(mutex);
};
NamedDisks& named() {
  static NamedDisks all;
  return all;
}

constexpr std::string_view kPrefix = "memory:";

}  // namespace

std::shared_ptr<MemoryDisk> find_memory_disk(std::string_view name) {
  const MutexLock lock(named().mutex);
  const auto it = named().disks.find(name);
  return it == named().disks.end() ? nullptr : it->second;
}

std::shared_ptr<MemoryDisk> make_memory_disk(std::string name, std::uint64_t size) {
  auto disk = std::make_shared<MemoryDisk>(size);
  const MutexLock lock(named().mutex);
  named().disks.insert_or_assign(std::move(name), disk);
  return disk;
}

void remove_memory_disk(std::string_view name) {
  const MutexLock lock(named().mutex);
  if (const auto it = named().disks.find(name); it != named().disks.end()) named().disks.erase(it);
}

// A node that lets a request through which its driver may not see is a bug that tests are to catch.
bool MemoryDriver::fits(std::uint64_t offset, std::uint64_t length, const IoVec* iov) const {
  return ((offset | length) & (limits_.request_alignment - 1)) == 0 &&
         length <= limits_.max_transfer && (!iov || limits_.memory_fits(*iov));
}

Task<Result<void>> MemoryDriver::do_read(std::uint64_t offset, IoVec iov, ReadFlags) {
  if (!fits(offset, iov.size(), &iov)) co_return fail(EINVAL, "misaligned read at {}", offset);
  disk_->read(offset, iov);
  co_return {};
}

Task<Result<void>> MemoryDriver::do_write(std::uint64_t offset, IoVec iov, WriteFlags) {
  if (!fits(offset, iov.size(), &iov)) co_return fail(EINVAL, "misaligned write at {}", offset);
  disk_->write(offset, iov);
  co_return {};
}

Task<Result<void>> MemoryDriver::do_write_zeroes(std::uint64_t offset, std::uint64_t length,
                                                 ZeroFlags) {
  if (((offset | length) & (limits_.request_alignment - 1)) != 0) {
    co_return fail(EINVAL, "misaligned write of zeroes at {}", offset);
  }
  disk_->zero(offset, length);
  co_return {};
}

Task<Result<void>> MemoryDriver::do_discard(std::uint64_t offset, std::uint64_t length) {
  // The end of the last block may lie behind the end of the disk, which a discard does not move.
  const std::uint64_t end = std::min(offset + length, size());
  if (end > offset) disk_->zero(offset, end - offset);
  co_return {};
}

Task<Result<void>> MemoryDriver::do_flush() { co_return {}; }

Task<Result<Extent>> MemoryDriver::do_extent(std::uint64_t offset, std::uint64_t length) {
  Extent extent{.offset = offset, .length = length, .host_offset = offset};
  extent.kind = disk_->stored(offset, extent.length) ? ExtentKind::kData : ExtentKind::kZero;
  co_return extent;
}

Task<Result<void>> MemoryDriver::do_resize(ResizeRequest request) {
  disk_->resize(request.size);
  co_return {};
}

namespace {

Task<Result<std::unique_ptr<Driver>>> open_memory(OpenContext& context) {
  std::optional<std::string> name = context.options.take_string("name");
  if (const auto filename = context.options.take_string("filename")) {
    name = filename->starts_with(kPrefix) ? filename->substr(kPrefix.size()) : *filename;
  }
  const auto size = context.options.take_size("size");
  PLATTER_CO_TRY(size);
  Limits limits;
  const auto request_alignment = context.options.take_size("request-alignment");
  PLATTER_CO_TRY(request_alignment);
  const auto memory_alignment = context.options.take_size("memory-alignment");
  PLATTER_CO_TRY(memory_alignment);
  const auto max_transfer = context.options.take_size("max-transfer");
  PLATTER_CO_TRY(max_transfer);
  for (const auto& alignment : {*request_alignment, *memory_alignment}) {
    if (alignment && (!is_power_of_two(*alignment) || *alignment > Buffer::kAlignment)) {
      co_return fail(EINVAL, "alignment {} is not a power of two up to {}", *alignment,
                     Buffer::kAlignment);
    }
  }
  limits.request_alignment = static_cast<std::uint32_t>(request_alignment->value_or(1));
  limits.memory_alignment = static_cast<std::uint32_t>(memory_alignment->value_or(1));
  if (*max_transfer) {
    limits.max_transfer = align_down<std::uint64_t>(**max_transfer, limits.request_alignment);
    if (limits.max_transfer == 0) co_return fail(EINVAL, "max-transfer is shorter than a request");
  }

  std::shared_ptr<MemoryDisk> disk;
  std::string filename;
  if (name) {
    disk = find_memory_disk(*name);
    filename = std::string(kPrefix) + *name;
    if (!disk && !*size) {
      co_return fail_naming(filename, ENOENT, "Could not open '{}': No such memory disk", filename);
    }
    if (!disk) disk = make_memory_disk(*name, **size);
  } else {
    disk = std::make_shared<MemoryDisk>(size->value_or(0));
  }
  co_return std::make_unique<MemoryDriver>(std::move(disk), limits, std::move(filename));
}

Task<Result<void>> create_memory(CreateRequest request) {
  std::string_view name = request.filename;
  if (name.starts_with(kPrefix)) name.remove_prefix(kPrefix.size());
  // A name in use keeps its disk, as a file keeps its inode.
  if (const auto disk = find_memory_disk(name)) {
    disk->resize(0);
    disk->resize(request.size);
  } else {
    make_memory_disk(std::string(name), request.size);
  }
  co_return {};
}

constexpr CreateOption kMemoryOptions[] = {
    {.name = "preallocation",
     .type = CreateOption::Type::kString,
     .help = "Ignored",
     .default_text = {}},
};

DriverType memory_type() {
  return {.name = "memory",
          .protocol = true,
          .prefixes = {kPrefix},
          .open = open_memory,
          .create_options = kMemoryOptions,
          .create = create_memory};
}

const RegisterDriver registered_memory{memory_type()};

}  // namespace

NodePtr make_memory_node(std::string node_name, std::shared_ptr<MemoryDisk> disk, Limits limits) {
  static const DriverType type = memory_type();
  return BlockNode::create(type, std::make_unique<MemoryDriver>(std::move(disk), limits),
                           std::move(node_name), "",
                           OpenFlags{.read_only = false, .discard_unmap = true});
}

NodePtr make_memory_node(std::string node_name, std::uint64_t size, Limits limits) {
  return make_memory_node(std::move(node_name), std::make_shared<MemoryDisk>(size), limits);
}

}  // namespace platter
