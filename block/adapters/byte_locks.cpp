#include "block/adapters/byte_locks.h"

#include <fcntl.h>

namespace platter {
namespace {

constexpr unsigned kRights = 4;
constexpr off_t kNeedBase = 100;
constexpr off_t kUnshareBase = 200;

constexpr bool has(std::uint32_t mask, unsigned right) { return ((mask >> right) & 1) != 0; }

// 0 or a positive errno.
int lock_byte(int fd, off_t byte, short type) {
  struct flock lock{};
  lock.l_type = type;
  lock.l_whence = SEEK_SET;
  lock.l_start = byte;
  lock.l_len = 1;
  int r;
  do {
    r = ::fcntl(fd, F_OFD_SETLK, &lock);
  } while (r != 0 && errno == EINTR);
  return r == 0 ? 0 : errno;
}

// Whether another open file description holds a lock on the byte.
bool held_elsewhere(int fd, off_t byte) {
  struct flock lock{};
  lock.l_type = F_WRLCK;  // in the way of any lock
  lock.l_whence = SEEK_SET;
  lock.l_start = byte;
  lock.l_len = 1;
  return ::fcntl(fd, F_OFD_GETLK, &lock) == 0 && lock.l_type != F_UNLCK;
}

std::unexpected<Error> in_the_way(const char* what, unsigned right, const std::string& name) {
  return std::unexpected<Error>(
      Error(EAGAIN, fmt::format("Failed to get {}\"{}\" lock", what,
                                permission_names(std::uint32_t{1} << right)))
          .with_hint(fmt::format("Is another process using the image [{}]?", name)));
}

Result<void> check(int fd, Permissions wanted, const std::string& name) {
  for (unsigned right = 0; right < kRights; ++right) {
    const auto byte = static_cast<off_t>(right);
    if (has(wanted.need, right) && held_elsewhere(fd, kUnshareBase + byte)) {
      return in_the_way("", right, name);
    }
  }
  for (unsigned right = 0; right < kRights; ++right) {
    const auto byte = static_cast<off_t>(right);
    if (!has(wanted.shared, right) && held_elsewhere(fd, kNeedBase + byte)) {
      return in_the_way("shared ", right, name);
    }
  }
  return {};
}

bool no_locks_here(int error) {
  return error == ENOLCK || error == EINVAL || error == ENOSYS || error == EOPNOTSUPP;
}

}  // namespace

Result<bool> ByteLocks::take(int fd, std::uint32_t needed, std::uint32_t unshared) {
  for (unsigned right = 0; right < kRights; ++right) {
    const auto byte = static_cast<off_t>(right);
    for (const auto& [wanted, base] :
         {std::pair{needed, kNeedBase}, std::pair{unshared, kUnshareBase}}) {
      if (!has(wanted, right)) continue;
      const int error = lock_byte(fd, base + byte, F_RDLCK);
      if (error == 0) continue;
      if (locking_ == Locking::kAuto && no_locks_here(error)) return false;
      return fail_errno(error, "Failed to lock byte {}", base + byte);
    }
  }
  return true;
}

void ByteLocks::give_back(int fd, std::uint32_t needed, std::uint32_t unshared) {
  for (unsigned right = 0; right < kRights; ++right) {
    const auto byte = static_cast<off_t>(right);
    if (has(needed, right)) lock_byte(fd, kNeedBase + byte, F_UNLCK);
    if (has(unshared, right)) lock_byte(fd, kUnshareBase + byte, F_UNLCK);
  }
}

Result<void> ByteLocks::change(int fd, Permissions wanted, const std::string& name) {
  if (locking_ == Locking::kOff) return {};
  const std::uint32_t needed = wanted.need & perm::kAll;
  const std::uint32_t unshared = ~wanted.shared & perm::kAll;
  const std::uint32_t more_needed = needed & ~needed_;
  const std::uint32_t more_unshared = unshared & ~unshared_;
  if ((more_needed | more_unshared) != 0) {
    const Result<bool> taken = take(fd, more_needed, more_unshared);
    if (taken && !*taken) {
      locking_ = Locking::kOff;
      return {};
    }
    const Result<void> free = taken ? check(fd, wanted, name) : forward_error(taken);
    if (!free) {
      give_back(fd, more_needed, more_unshared);
      return free;
    }
  }
  give_back(fd, needed_ & ~needed, unshared_ & ~unshared);
  needed_ = needed;
  unshared_ = unshared;
  return {};
}

Result<void> ByteLocks::copy_to(int fd) {
  const Result<bool> taken = take(fd, needed_, unshared_);
  PLATTER_TRY(taken);
  return {};
}

}  // namespace platter
