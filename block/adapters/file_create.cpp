#include "block/adapters/file_create.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <limits>

#include "block/adapters/byte_locks.h"
#include "block/adapters/posix_file.h"
#include "block/base/checked.h"
#include "block/exec/buffer.h"

namespace platter {
namespace {

constexpr auto kLargestSize = static_cast<std::uint64_t>(std::numeric_limits<off_t>::max());

// 0 or a positive errno.
int write_zeroes_to(int fd, std::uint64_t offset, std::uint64_t end,
                    const std::atomic<bool>* cancelled, const ResizeProgress* progress) {
  const std::uint64_t start = offset;
  constexpr std::uint64_t kChunk = std::uint64_t{1} << 20;
  const Buffer zeroes = Buffer::zeroed(kChunk);
  while (offset < end) {
    if (is_set(cancelled)) return ECANCELED;
    const std::size_t length = std::min(kChunk, end - offset);
    const ssize_t n = ::pwrite(fd, zeroes.data(), length, static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return errno;
    offset += static_cast<std::uint64_t>(n);
    if (progress) (*progress)(offset - start, end - start);
  }
  return 0;
}

int allocate_to(int fd, std::uint64_t offset, std::uint64_t end, const std::atomic<bool>* cancelled,
                const ResizeProgress* progress) {
  const std::uint64_t start = offset;
  constexpr std::uint64_t kChunk = std::uint64_t{1} << 30;
  while (offset < end) {
    if (is_set(cancelled)) return ECANCELED;
    const std::uint64_t length = std::min(kChunk, end - offset);
    // Not the plain system call: the library writes where the file system cannot allocate.
    const int r = ::posix_fallocate(fd, static_cast<off_t>(offset), static_cast<off_t>(length));
    if (r == EINTR) continue;
    if (r != 0) return r;
    offset += length;
    if (progress) (*progress)(offset - start, end - start);
  }
  return 0;
}

Result<void> grow_with_space(int fd, std::uint64_t old_size, std::uint64_t new_size, bool full,
                             const std::atomic<bool>* cancelled, const ResizeProgress* progress) {
  const int error = full ? write_zeroes_to(fd, old_size, new_size, cancelled, progress)
                         : allocate_to(fd, old_size, new_size, cancelled, progress);
  if (error == 0) return {};
  const char* what = full ? "Could not write zeros for preallocation"
                          : "Could not preallocate data for the new file";
  // Gives back what had been allocated. That this fails too changes nothing in the answer.
  [[maybe_unused]] const int undone = ::ftruncate(fd, static_cast<off_t>(old_size));
  return fail_errno(error, "{}", what);
}

}  // namespace

Result<void> set_file_size(int fd, std::uint64_t old_size, std::uint64_t new_size,
                           Preallocation preallocation, const std::atomic<bool>* cancelled,
                           const ResizeProgress* progress) {
  if (new_size > kLargestSize) return fail_errno(EFBIG, "Failed to resize file");
  if (preallocation != Preallocation::kOff && new_size < old_size) {
    return fail(EINVAL, "Cannot use preallocation for shrinking files");
  }
  if (preallocation == Preallocation::kMetadata) {
    return fail(ENOTSUP, "Unsupported preallocation mode: metadata");
  }
  if (preallocation != Preallocation::kOff && new_size > old_size) {
    return grow_with_space(fd, old_size, new_size, preallocation == Preallocation::kFull, cancelled,
                           progress);
  }
  if (::ftruncate(fd, static_cast<off_t>(new_size)) != 0) {
    return fail_errno(errno, "Failed to resize file");
  }
  return {};
}

Result<FileCreation> FileCreation::from(CreateRequest request) {
  FileCreation creation;
  creation.path_ = local_path_of(request.filename);
  creation.size_ = request.size;
  if (request.size > kLargestSize) {
    return fail(EFBIG, "The image size is too large for file format 'file'");
  }
  if (const auto text = request.options.take_string("preallocation")) {
    const Result<Preallocation> parsed = parse_preallocation(*text);
    if (!parsed) return fail(EINVAL, "invalid parameter value: {}", *text);
    if (*parsed == Preallocation::kMetadata) {
      return fail(ENOTSUP, "Unsupported preallocation mode: metadata");
    }
    creation.preallocation_ = *parsed;
  }
  const auto no_cow = request.options.take_bool("nocow");
  PLATTER_TRY(no_cow);
  creation.no_cow_ = no_cow->value_or(false);
  const auto hint = request.options.take_size("extent_size_hint");
  PLATTER_TRY(hint);
  if (hint->has_value() && **hint > std::numeric_limits<std::uint32_t>::max()) {
    return fail(EINVAL, "Extent size hint is too large");
  }
  creation.extent_size_hint_ = *hint;
  return creation;
}

Result<void> FileCreation::check_space(int fd) const {
  if (preallocation_ == Preallocation::kOff) return {};
  struct stat status{};
  struct statvfs space{};
  if (::fstat(fd, &status) != 0 || ::fstatvfs(fd, &space) != 0) return {};
  const std::uint64_t own = static_cast<std::uint64_t>(status.st_blocks) * 512;
  const std::uint64_t free_bytes =
      checked_mul<std::uint64_t>(space.f_bavail, space.f_frsize).value_or(kLargestSize);
  if (space.f_blocks != 0 && size_ > own && size_ - own > free_bytes) {
    return fail_errno(ENOSPC, "Could not preallocate data for the new file");
  }
  return {};
}

Result<void> FileCreation::fill(int fd, bool existed) {
  ByteLocks locks(Locking::kAuto);
  const Permissions rights{perm::kWrite | perm::kResize, perm::kAll & ~perm::kResize};
  const Result<void> locked = locks.change(fd, rights, path_);
  PLATTER_TRY(locked);
  const Result<void> space = check_space(fd);
  PLATTER_TRY(space);
  if (existed) {
    // Whether the file system takes that size shows before the contents go.
    struct stat status{};
    if (::fstat(fd, &status) != 0) return fail_errno(errno);
    if (static_cast<std::uint64_t>(status.st_size) < size_ &&
        ::ftruncate(fd, static_cast<off_t>(size_)) != 0) {
      return fail_errno(errno, "Could not resize file");
    }
    if (::ftruncate(fd, 0) != 0) return fail_errno(errno, "Could not clear file");
  }
  if (no_cow_) {
    // Before there is data, and only a wish: most file systems have no such thing.
    int attributes = 0;
    if (::ioctl(fd, FS_IOC_GETFLAGS, &attributes) == 0) {
      attributes |= FS_NOCOW_FL;
      ::ioctl(fd, FS_IOC_SETFLAGS, &attributes);
    }
  }
  if (extent_size_hint_) {
    fsxattr attributes{};
    if (::ioctl(fd, FS_IOC_FSGETXATTR, &attributes) == 0) {
      attributes.fsx_extsize = static_cast<std::uint32_t>(*extent_size_hint_);
      if (*extent_size_hint_ != 0) {
        attributes.fsx_xflags |= FS_XFLAG_EXTSIZE;
      } else {
        attributes.fsx_xflags &= ~static_cast<std::uint32_t>(FS_XFLAG_EXTSIZE);
      }
      ::ioctl(fd, FS_IOC_FSSETXATTR, &attributes);
    }
  }
  const Result<void> sized = set_file_size(fd, 0, size_, preallocation_, nullptr);
  PLATTER_TRY(sized);
  if (preallocation_ == Preallocation::kFull && ::fsync(fd) != 0) {
    const int error = errno;
    [[maybe_unused]] const int undone = ::ftruncate(fd, 0);
    return fail_errno(error, "Could not flush file to disk");
  }
  return {};
}

Result<void> FileCreation::run() {
  constexpr mode_t kMode = 0644;
  constexpr int kFlags = O_RDWR | O_CLOEXEC | O_NOCTTY | O_NONBLOCK;
  bool existed = false;
  UniqueFd fd(::open(path_.c_str(), kFlags | O_CREAT | O_EXCL, kMode));
  if (!fd && errno == EEXIST) {
    existed = true;
    // A name that dangles is a file yet to be made.
    fd = UniqueFd(::open(path_.c_str(), kFlags));
    if (!fd && errno == ENOENT) {
      existed = false;
      fd = UniqueFd(::open(path_.c_str(), kFlags | O_CREAT, kMode));
    }
  }
  if (!fd) return fail_errno(errno, "Could not create '{}'", path_);
  struct stat status{};
  if (::fstat(fd.get(), &status) != 0) return fail_errno(errno, "Could not create '{}'", path_);
  if (!S_ISREG(status.st_mode)) {
    return fail(EINVAL, "'file' driver requires '{}' to be a regular file", path_);
  }
  const Result<void> filled = fill(fd.get(), existed);
  if (!filled && !existed) ::unlink(path_.c_str());
  return filled;
}

}  // namespace platter
