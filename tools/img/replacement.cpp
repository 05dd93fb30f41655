#include "tools/img/replacement.h"

#include <fcntl.h>
#include <limits.h>
#include <linux/fs.h>
#include <linux/openat2.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <string_view>
#include <vector>

#include "block/adapters/byte_locks.h"
#include "block/node/registry.h"
#include "tools/img/cancel.h"

namespace platter::img {
namespace {

bool is_one(const struct stat& a, const struct stat& b) {
  return a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

bool is_mount(const std::string& path) {
  struct statx about{};
  return statx(AT_FDCWD, path.c_str(), AT_SYMLINK_NOFOLLOW, 0, &about) == 0 &&
         (about.stx_attributes & STATX_ATTR_MOUNT_ROOT) != 0;
}

// In a directory like /tmp only a file's owner may put another in its place.
bool is_stuck(const std::string& directory, const struct stat& file) {
  struct stat about{};
  const uid_t me = geteuid();
  return stat(directory.c_str(), &about) != 0 ||
         ((about.st_mode & S_ISVTX) != 0 && me != 0 && me != file.st_uid && me != about.st_uid);
}

// The regular file at `path`, for writing; nothing where it must not or cannot be replaced.
UniqueFd open_old(const std::string& path, std::string& real) {
  struct stat named{};
  if (stat(path.c_str(), &named) != 0 || !S_ISREG(named.st_mode) || named.st_nlink != 1) return {};
  // (A descriptor's link in /proc is the file itself, whatever has its name.)
  open_how how{};
  how.flags = O_RDWR | O_CLOEXEC | O_NOCTTY | O_NONBLOCK;
  how.resolve = RESOLVE_NO_MAGICLINKS;
  UniqueFd fd(static_cast<int>(syscall(SYS_openat2, AT_FDCWD, path.c_str(), &how, sizeof(how))));
  char resolved[PATH_MAX];
  struct stat opened{};
  if (!fd || fstat(fd.get(), &opened) != 0 || !is_one(named, opened) ||
      realpath(path.c_str(), resolved) == nullptr) {
    return {};
  }
  real = resolved;
  if (is_mount(real) || is_stuck(real.substr(0, real.rfind('/') + 1), opened)) return {};
  return fd;
}

// Labels and access lists, as far as that is permitted; not what speaks of the old contents.
void copy_attributes(int from, int to) {
  std::vector<char> names(XATTR_LIST_MAX);
  std::vector<char> value(XATTR_SIZE_MAX);
  const ssize_t length = flistxattr(from, names.data(), names.size());
  for (std::string_view rest(names.data(), length > 0 ? static_cast<std::size_t>(length) : 0);
       !rest.empty();) {
    const std::string name(rest.substr(0, rest.find('\0')));
    rest.remove_prefix(name.size() + 1);
    if (name == "security.ima" || name == "security.evm" || name == "security.capability") continue;
    const ssize_t size = fgetxattr(from, name.c_str(), value.data(), value.size());
    if (size >= 0) fsetxattr(to, name.c_str(), value.data(), static_cast<std::size_t>(size), 0);
  }
  int flags = 0;
  int old_flags = 0;
  if (ioctl(from, FS_IOC_GETFLAGS, &old_flags) == 0 && (old_flags & FS_NOCOW_FL) != 0 &&
      ioctl(to, FS_IOC_GETFLAGS, &flags) == 0) {
    flags |= FS_NOCOW_FL;
    ioctl(to, FS_IOC_SETFLAGS, &flags);
  }
}

// A name in the directory of `path`, for mkostemp() to end, which tells whose it is.
std::string name_beside(const std::string& path) {
  constexpr std::size_t kMostOfName = 200;
  const std::size_t name = path.rfind('/') + 1;
  return path.substr(0, name) + "." + path.substr(name, kMostOfName) + ".platter-XXXXXX";
}

}  // namespace

Result<void> Replacement::start() {
  new_file_.emplace(name_);
  const DriverType* const protocol = protocol_for(name_);
  if (protocol == nullptr || protocol->name != "file") return {};
  const std::string path(local_path(name_));
  UniqueFd old = open_old(path, old_);
  if (!old) return {};
  ByteLocks locks(Locking::kAuto);
  const Permissions rights{perm::kWrite | perm::kResize, Permissions::writer().shared};
  const Result<void> locked = locks.change(old.get(), rights, path);
  PLATTER_TRY(locked);
  return make_beside(std::move(old));
}

Result<void> Replacement::make_beside(UniqueFd old) {
  struct stat about{};
  struct stat named{};
  // (Somebody else may have replaced it before it was locked.)
  if (fstat(old.get(), &about) != 0 || stat(old_.c_str(), &named) != 0 || !is_one(about, named)) {
    return fail(EAGAIN, "'{}' is being replaced by another process", name_);
  }
  std::string beside = name_beside(old_);
  const UniqueFd fd(mkostemp(beside.data(), O_CLOEXEC));
  if (!fd) {
    if (errno == ENOSPC || errno == EDQUOT) {
      return fail_errno(errno, "Could not create a file beside '{}'", name_);
    }
    return {};
  }
  if (fchown(fd.get(), about.st_uid, about.st_gid) != 0 ||
      fchmod(fd.get(), about.st_mode & 07777) != 0) {
    unlink(beside.c_str());
    return {};
  }
  copy_attributes(old.get(), fd.get());
  beside_ = std::move(beside);
  lock_ = std::move(old);
  Cancellation::remove_if_killed(beside_);
  return {};
}

Result<void> Replacement::publish() {
  if (!aside()) {
    new_file_.reset();
    return {};
  }
  if (rename(beside_.c_str(), old_.c_str()) != 0) {
    return fail_errno(errno, "Could not put the new '{}' in the place of the old one", name_);
  }
  Cancellation::forget(beside_);
  beside_.clear();
  return {};
}

bool Replacement::remove() {
  if (!aside()) return new_file_ && new_file_->remove();
  unlink(beside_.c_str());
  Cancellation::forget(beside_);
  beside_.clear();
  return true;
}

}  // namespace platter::img
