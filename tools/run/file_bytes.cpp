#include "tools/run/file_bytes.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <cerrno>

#include "block/base/unique_fd.h"

namespace platter::run {

Result<FileBytes> FileBytes::map(const std::string& filename, std::uint64_t limit) {
  const UniqueFd fd(::open(filename.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) return fail_errno(errno, "could not open '{}'", filename);
  struct stat status{};
  if (::fstat(fd.get(), &status) != 0) return fail_errno(errno, "could not look at '{}'", filename);
  if (!S_ISREG(status.st_mode)) {
    return fail(EINVAL, "could not load '{}': not a regular file", filename);
  }
  const auto size = static_cast<std::uint64_t>(status.st_size);
  if (size == 0) return fail(EINVAL, "could not load '{}': it is empty", filename);
  if (size > limit) {
    return fail(EFBIG, "could not load '{}': {} bytes, and at most {} fit", filename, size, limit);
  }
  void* data = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd.get(), 0);
  if (data == MAP_FAILED) return fail_errno(errno, "could not map '{}'", filename);
  return FileBytes(std::span(static_cast<std::byte*>(data), size));
}

FileBytes::~FileBytes() {
  if (!data_.empty()) ::munmap(data_.data(), data_.size());
}

}  // namespace platter::run
