// Making files: a new (or emptied) image file of a given size, and changing a file's size with the
// space behind it.
//
// Threads: blocking calls, for a worker thread.
// Errors: a file that existed is as it was when anything failed that could be known beforehand (bad
// options, another process using it, a size the file system cannot have, no space for what is to
// be preallocated); a file that did not exist is gone again after any failure.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "block/node/driver.h"
#include "block/node/registry.h"

namespace platter {

// Sets the size of a regular file; new space reads as zeroes. Bytes. Off, falloc and full, which
// the caller flushes: the kernel tells of a lost write once, and whose it was is the caller's to
// know. Once `cancelled` (nullptr: never) is true, the file gets its old size back: ECANCELED.
Result<void> set_file_size(int fd, std::uint64_t old_size, std::uint64_t new_size,
                           Preallocation preallocation, const std::atomic<bool>* cancelled,
                           const ResizeProgress* progress = nullptr);

class FileCreation {
 public:
  // Takes preallocation, nocow and extent_size_hint.
  static Result<FileCreation> from(CreateRequest request);
  Result<void> run();

 private:
  Result<void> fill(int fd, bool existed);
  Result<void> check_space(int fd) const;

  std::string path_;
  std::uint64_t size_ = 0;
  Preallocation preallocation_ = Preallocation::kOff;
  bool no_cow_ = false;
  std::optional<std::uint64_t> extent_size_hint_;
};

}  // namespace platter
