// ByteLocks: the rights of a node's users, mirrored as byte locks on the image file, so that other
// processes, QEMU's among them, see them. Byte 100+b is locked while somebody here needs right b,
// byte 200+b while somebody here does not share it (b as in permission.h). All are shared locks of
// the open file description: who wants a right takes its locks and then looks whether anybody else
// holds the opposite ones.
//
// Threads: one call at a time.
// Errors: EAGAIN with QEMU's words when another process is in the way.
#pragma once

#include <cstdint>
#include <string>

#include "block/base/error.h"
#include "block/node/permission.h"

namespace platter {

enum class Locking : std::uint8_t { kOff, kAuto, kOn };

class ByteLocks {
 public:
  // kAuto goes without locks where the file system has none.
  explicit ByteLocks(Locking locking) : locking_(locking) {}

  // Makes the locks on `fd` those of `wanted`; after a failure they are as before.
  Result<void> change(int fd, Permissions wanted, const std::string& name);
  // Takes the locks that are held also on another description of the same file.
  Result<void> copy_to(int fd);
  // Gives back on that description what copy_to() took there.
  void remove_from(int fd) { give_back(fd, needed_, unshared_); }

  std::uint32_t needed() const { return needed_; }
  std::uint32_t unshared() const { return unshared_; }

 private:
  // Locks every byte of the two masks that is not held yet; false when there are no locks here.
  Result<bool> take(int fd, std::uint32_t needed, std::uint32_t unshared);
  void give_back(int fd, std::uint32_t needed, std::uint32_t unshared);

  Locking locking_;
  std::uint32_t needed_ = 0;    // rights whose 100+b is locked
  std::uint32_t unshared_ = 0;  // rights whose 200+b is locked
};

}  // namespace platter
