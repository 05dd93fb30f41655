// "host_device": a block device as a disk. Requests are the file driver's; what differs is the
// size, which is the device's, and that space is the device's to give back.
//
// Threads, errors: as file.h.
#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>

#include "block/adapters/file.h"
#include "block/base/checked.h"
#include "block/exec/workers.h"

namespace platter {
namespace {

constexpr std::string_view kDeviceDriver = "host_device";

struct DeviceFacts {
  std::uint64_t size = 0;              // bytes
  std::uint32_t logical_sector = 512;  // smallest unit of a request
  std::uint32_t physical_sector = 512;
};

Result<DeviceFacts> ask_device(int fd, bool read_only, const std::string& path) {
  DeviceFacts facts;
  int is_read_only = 0;
  if (!read_only && ::ioctl(fd, BLKROGET, &is_read_only) == 0 && is_read_only != 0) {
    return fail_naming(path, EROFS, "Could not open '{}': the device is read-only", path);
  }
  if (::ioctl(fd, BLKGETSIZE64, &facts.size) != 0) {
    return fail_errno(errno, "Could not get the size of '{}'", path);
  }
  int logical = 0;
  unsigned physical = 0;
  if (::ioctl(fd, BLKSSZGET, &logical) == 0 && logical > 0) {
    facts.logical_sector = static_cast<std::uint32_t>(logical);
  }
  if (::ioctl(fd, BLKPBSZGET, &physical) == 0 && physical > 0) facts.physical_sector = physical;
  facts.physical_sector = std::max(facts.physical_sector, facts.logical_sector);
  return facts;
}

class HostDeviceDriver final : public FileDriver {
 public:
  HostDeviceDriver(UniqueFd fd, DeviceFacts facts, Settings settings)
      : FileDriver(std::move(fd), facts.size, std::move(settings)), facts_(facts) {}

  static Task<Result<std::unique_ptr<Driver>>> open(OpenContext& context);

  bool can_grow() const override { return false; }
  Limits limits() const override {
    Limits limits = basic_limits();
    limits.zeroes_alignment = limits.discard_alignment = facts_.logical_sector;
    return limits;
  }
  Task<Result<void>> do_write_zeroes(std::uint64_t offset, std::uint64_t length,
                                     ZeroFlags flags) override;
  Task<Result<void>> do_discard(std::uint64_t offset, std::uint64_t length) override;
  Task<Result<Extent>> do_extent(std::uint64_t offset, std::uint64_t length) override;
  Task<Result<void>> do_resize(ResizeRequest request) override;
  Task<Result<void>> prepare_reopen(OpenFlags flags) override;
  std::optional<std::uint64_t> allocated_size() override { return std::nullopt; }
  FormatInfo info() override { return {}; }

 private:
  bool in_sectors(std::uint64_t offset, std::uint64_t length) const {
    return is_aligned(offset | length, facts_.logical_sector);
  }

  // Immutable after open.
  const DeviceFacts facts_;
  // Any thread.
  std::atomic<bool> can_discard_{true};
};

Task<Result<std::unique_ptr<Driver>>> HostDeviceDriver::open(OpenContext& context) {
  Result<Settings> settings = take_options(context, kDeviceDriver);
  PLATTER_CO_TRY(settings);
  const OpenMode mode{context.flags.read_only, context.flags.direct};
  Result<UniqueFd> fd = open_checked(settings->path, mode, FileKind::kBlockDevice, kDeviceDriver);
  PLATTER_CO_TRY(fd);
  const Result<void> good = check_aio(*settings);
  PLATTER_CO_TRY(good);
  const Result<DeviceFacts> facts = ask_device(fd->get(), mode.read_only, settings->path);
  PLATTER_CO_TRY(facts);
  co_return std::make_unique<HostDeviceDriver>(std::move(*fd), *facts, std::move(*settings));
}

Task<Result<void>> HostDeviceDriver::do_write_zeroes(std::uint64_t offset, std::uint64_t length,
                                                     ZeroFlags flags) {
  if (!in_sectors(offset, length)) co_return fail_errno(ENOTSUP);
  // The kernel's fallocate on a device zeroes it and what the page cache has of it: punching may
  // unmap, the other mode may not. It writes zeroes itself where the device cannot do better,
  // unless asked to punch.
  int n = -EOPNOTSUPP;
  if (flags.may_unmap) {
    n = co_await allocate(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length);
  }
  if (n == -EOPNOTSUPP) {
    n = co_await allocate(FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, offset, length);
  }
  if (n == -EOPNOTSUPP || n == -ENODEV) {
    std::uint64_t range[2] = {offset, length};
    auto work = [&] { return ::ioctl(fd(), BLKZEROOUT, range) == 0 ? 0 : -errno; };
    n = co_await run_on(WorkerPool::blocking(), work);
  }
  note_change(0);
  // EBUSY: another program uses the device, and the page cache has what it writes to just now.
  if (n == -EOPNOTSUPP || n == -ENOTTY || n == -EINVAL || n == -EBUSY)
    co_return fail_errno(ENOTSUP);
  if (n < 0) co_return fail_errno(-n);
  if (flags.fua) {
    auto flushed = co_await do_flush();
    PLATTER_CO_TRY(flushed);
  }
  co_return {};
}

Task<Result<void>> HostDeviceDriver::do_discard(std::uint64_t offset, std::uint64_t length) {
  // Only whole sectors can go; the rest of the range keeps its bytes.
  const std::uint64_t begin = align_up(offset, facts_.logical_sector);
  const std::uint64_t end = align_down(offset + length, facts_.logical_sector);
  if (begin >= end) co_return {};
  if (!can_discard_.load(std::memory_order_relaxed)) co_return fail_errno(ENOTSUP);
  std::uint64_t range[2] = {begin, end - begin};
  auto work = [&] { return ::ioctl(fd(), BLKDISCARD, range) == 0 ? 0 : errno; };
  const int error = co_await run_on(WorkerPool::blocking(), work);
  note_change(0);
  if (error == EOPNOTSUPP || error == ENOTTY) {
    can_discard_.store(false, std::memory_order_relaxed);
    co_return fail_errno(ENOTSUP);
  }
  if (error == EBUSY) co_return fail_errno(ENOTSUP);  // as above; it may go another time
  if (error != 0) co_return fail_errno(error);
  co_return {};
}

Task<Result<Extent>> HostDeviceDriver::do_extent(std::uint64_t offset, std::uint64_t length) {
  co_return Extent{.offset = offset,
                   .length = length,
                   .kind = ExtentKind::kData,
                   .node = nullptr,
                   .host_offset = offset};
}

Task<Result<void>> HostDeviceDriver::do_resize(ResizeRequest request) {
  if (request.preallocation != Preallocation::kOff) {
    co_return fail(ENOTSUP, "Preallocation is not possible on a device");
  }
  if (request.size > size()) co_return fail(EINVAL, "Cannot grow device files");
  if (request.exact && request.size != size())
    co_return fail(ENOTSUP, "Cannot resize device files");
  co_return {};
}

Task<Result<void>> HostDeviceDriver::prepare_reopen(OpenFlags flags) {
  const Result<DeviceFacts> facts = ask_device(fd(), flags.read_only, settings().path);
  PLATTER_CO_TRY(facts);
  co_return co_await FileDriver::prepare_reopen(flags);
}

// "Creating" on a device: it must be large enough, and what its start looked like is wiped.
Result<void> prepare_device(const CreateRequest& request) {
  constexpr std::uint64_t kWiped = 4096;
  const std::string path = std::string(local_path_of(request.filename));
  const Result<UniqueFd> fd = open_checked(path, {.read_only = false, .direct = false},
                                           FileKind::kBlockDevice, kDeviceDriver);
  PLATTER_TRY(fd);
  const Result<DeviceFacts> facts = ask_device(fd->get(), false, path);
  PLATTER_TRY(facts);
  if (facts->size < request.size) {
    return fail(ENOSPC, "Device '{}' is too small: {} of {} bytes", path, facts->size,
                request.size);
  }
  ByteLocks locks(Locking::kAuto);
  const Permissions rights{perm::kWrite | perm::kResize, perm::kAll & ~perm::kResize};
  const Result<void> locked = locks.change(fd->get(), rights, path);
  PLATTER_TRY(locked);
  const std::vector<std::byte> zeroes(std::min(kWiped, facts->size));
  const ssize_t n = ::pwrite(fd->get(), zeroes.data(), zeroes.size(), 0);
  if (n != static_cast<ssize_t>(zeroes.size())) {
    return fail_errno(n < 0 ? errno : EIO, "Could not clear the start of '{}'", path);
  }
  return {};
}

Task<Result<void>> create_on_device(CreateRequest request) {
  auto work = [&] { return prepare_device(request); };
  co_return co_await run_on(WorkerPool::blocking(), work);
}

const RegisterDriver registered_device{DriverType{
    .name = kDeviceDriver,
    .protocol = true,
    .prefixes = {"host_device:"},
    .open = HostDeviceDriver::open,
    .create = create_on_device,
}};

}  // namespace
}  // namespace platter
