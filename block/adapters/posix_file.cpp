#include "block/adapters/posix_file.h"

#include <fcntl.h>
#include <limits.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <bit>

#include "block/exec/buffer.h"

namespace platter {
namespace {

constexpr unsigned kMaxSegments = IOV_MAX;

int open_flags(OpenMode mode) {
  return (mode.read_only ? O_RDONLY : O_RDWR) | (mode.direct ? O_DIRECT : 0) | O_CLOEXEC | O_NOCTTY;
}

std::unexpected<Error> not_opened(int code, std::string_view why, const std::string& path) {
  return fail_naming(path, code, "Could not open '{}': {}", path, why);
}
std::unexpected<Error> not_opened(int code, const std::string& path) {
  return not_opened(code, errno_text(code), path);
}

Result<UniqueFd> open_with(const char* path, OpenMode mode, int extra, const std::string& name) {
  int fd;
  do {
    fd = ::open(path, open_flags(mode) | extra);
  } while (fd < 0 && errno == EINTR);
  if (fd >= 0) return UniqueFd(fd);
  const int error = errno;
  if (error == EINVAL && mode.direct) {
    return not_opened(EINVAL, "the file system does not support O_DIRECT", name);
  }
  return not_opened(error, name);
}

bool is_kind(const struct stat& status, FileKind kind) {
  return kind == FileKind::kRegular ? S_ISREG(status.st_mode) : S_ISBLK(status.st_mode);
}

std::unexpected<Error> wrong_kind(std::string_view driver, const std::string& path, FileKind kind) {
  return fail(EINVAL, "'{}' driver requires '{}' to be a {}", driver, path,
              kind == FileKind::kRegular ? "regular file" : "block device");
}

// The smallest power of two that a direct read of so many bytes succeeds with.
std::uint32_t probe_alignment(int fd, bool memory) {
  constexpr std::uint32_t kLargest = 4096;
  const Buffer buffer(std::size_t{2} * kLargest);
  for (std::uint32_t alignment = 512; alignment < kLargest; alignment *= 2) {
    std::byte* const at = buffer.data() + (memory ? alignment : 0);
    const std::size_t length = memory ? kLargest : alignment;
    const ssize_t n = ::pread(fd, at, length, 0);
    // An empty file answers anything with 0, which says nothing.
    if (n == 0) return kLargest;
    if (n > 0 || errno != EINVAL) return alignment;
  }
  return kLargest;
}

}  // namespace

Result<UniqueFd> open_checked(const std::string& path, OpenMode mode, FileKind kind,
                              std::string_view driver) {
  // A look first, because opening some devices has effects; O_NONBLOCK and a second look, because
  // the name may mean something else by then.
  struct stat status{};
  if (::stat(path.c_str(), &status) != 0) return not_opened(errno, path);
  if (kind == FileKind::kRegular && S_ISDIR(status.st_mode) && !mode.read_only) {
    return not_opened(EISDIR, path);
  }
  if (!is_kind(status, kind)) return wrong_kind(driver, path, kind);
  Result<UniqueFd> fd = open_with(path.c_str(), mode, O_NONBLOCK, path);
  PLATTER_TRY(fd);
  if (::fstat(fd->get(), &status) != 0) return not_opened(errno, path);
  if (!is_kind(status, kind)) return wrong_kind(driver, path, kind);
  // With it the ring would answer EAGAIN where it should wait.
  if (::fcntl(fd->get(), F_SETFL, open_flags(mode) & O_DIRECT) != 0) {
    return not_opened(errno, path);
  }
  return fd;
}

Result<UniqueFd> open_again(int fd, OpenMode mode, const std::string& path) {
  return open_with(fmt::format("/proc/self/fd/{}", fd).c_str(), mode, 0, path);
}

DirectAlignment direct_alignment(int fd) {
  DirectAlignment alignment;
#ifdef STATX_DIOALIGN
  struct statx status{};
  if (::statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &status) == 0 &&
      (status.stx_mask & STATX_DIOALIGN) != 0 && status.stx_dio_offset_align != 0) {
    alignment.request = std::bit_ceil(status.stx_dio_offset_align);
    // The kernel also wants each segment's length to be a multiple of the block size.
    alignment.memory = std::max(std::bit_ceil(status.stx_dio_mem_align), alignment.request);
    return alignment;
  }
#endif
  alignment.request = probe_alignment(fd, false);
  alignment.memory = std::max(probe_alignment(fd, true), alignment.request);
  return alignment;
}

bool in_memory(int fd) {
  // A device's node lies in memory too, but not what is written to it.
  struct stat status{};
  struct statfs system{};
  return ::fstat(fd, &status) == 0 && S_ISREG(status.st_mode) && ::fstatfs(fd, &system) == 0 &&
         (system.f_type == TMPFS_MAGIC || system.f_type == RAMFS_MAGIC);
}

std::string_view local_path_of(std::string_view filename) {
  for (const std::string_view prefix : {"file:", "host_device:"}) {
    if (filename.starts_with(prefix)) return filename.substr(prefix.size());
  }
  return filename;
}

KernelIov::KernelIov(const IoVec& iov) {
  const std::size_t pieces = iov.pieces();
  if (pieces > few_.size()) many_.resize(std::min<std::size_t>(pieces, kMaxSegments));
  iovec* const out = many_.empty() ? few_.data() : many_.data();
  iov.for_each([&](std::span<std::byte> piece) {
    if (count_ == kMaxSegments) return;
    out[count_++] = {piece.data(), piece.size()};
    bytes_ += piece.size();
  });
}

}  // namespace platter
