// Who may do what to a node at the same time: each user of a node (a parent driver, a device, a
// job) states the rights it needs and those it lets others have. The meaning and the bit numbers
// are QEMU's, because the file adapter mirrors them as byte locks that exclude QEMU's tools and
// ours.
// Threads: values.
#pragma once

#include <cstdint>
#include <string>

namespace platter {

namespace perm {
inline constexpr std::uint32_t kConsistentRead = 1;  // what it reads is a disk's state at one time
inline constexpr std::uint32_t kWrite = 2;           // change the visible data
inline constexpr std::uint32_t kWriteUnchanged = 4;  // write what reads as before (copy-on-read)
inline constexpr std::uint32_t kResize = 8;          // change the size
inline constexpr std::uint32_t kAll = 15;
}  // namespace perm

struct Permissions {
  std::uint32_t need = 0;
  std::uint32_t shared = perm::kAll;

  // A reader that lets others read, write what does not change data, and nothing else.
  static Permissions reader() {
    return {perm::kConsistentRead, perm::kConsistentRead | perm::kWriteUnchanged};
  }
  // A reader that does not mind others changing the image (`-U`, `force-share=on`).
  static Permissions unsafe_reader() { return {0, perm::kAll}; }
  // The only writer.
  static Permissions writer() {
    return {perm::kConsistentRead | perm::kWrite | perm::kResize,
            perm::kConsistentRead | perm::kWriteUnchanged};
  }
  bool writes() const {
    return (need & (perm::kWrite | perm::kWriteUnchanged | perm::kResize)) != 0;
  }
};

// "consistent read, write": names for messages.
std::string permission_names(std::uint32_t mask);

}  // namespace platter
