// FileBytes: a whole file mapped read-only. Kernels and initrds are copied from here to the guest.
// Threads: immutable. Ownership: owns the mapping. Errors: name the file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>

#include "block/base/error.h"

namespace platter::run {

class FileBytes {
 public:
  // Refuses what is not a regular file, is empty, or is larger than `limit` bytes.
  static Result<FileBytes> map(const std::string& filename, std::uint64_t limit);
  FileBytes(FileBytes&& other) noexcept : data_(std::exchange(other.data_, {})) {}
  FileBytes& operator=(FileBytes&&) = delete;
  ~FileBytes();

  std::span<const std::byte> bytes() const { return data_; }

 private:
  explicit FileBytes(std::span<std::byte> data) : data_(data) {}
  std::span<std::byte> data_;
};

}  // namespace platter::run
