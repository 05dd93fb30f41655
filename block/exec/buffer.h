// Buffer: owned, aligned memory for I/O, taken from a per-thread pool.
//
// Contents are undefined until written, unless made by zeroed().
// Threads: a Buffer may be handed to another thread; each is used by one at a time.
#pragma once

#include <cstddef>
#include <cstring>
#include <span>
#include <utility>

#include "block/exec/iovec.h"

namespace platter {

class Buffer {
 public:
  // What O_DIRECT asks for at most on the block devices we meet.
  static constexpr std::size_t kAlignment = 4096;

  Buffer() = default;
  // `size` bytes at an address that is a multiple of kAlignment. Aborts when memory is exhausted:
  // bound sizes that come from outside first.
  explicit Buffer(std::size_t size);
  static Buffer zeroed(std::size_t size);
  ~Buffer() { release(); }
  Buffer(Buffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  Buffer& operator=(Buffer&& other) noexcept {
    if (this != &other) {
      release();
      data_ = std::exchange(other.data_, nullptr);
      size_ = std::exchange(other.size_, 0);
    }
    return *this;
  }

  std::byte* data() const { return data_; }
  std::size_t size() const { return size_; }
  std::span<std::byte> span() const { return {data_, size_}; }
  std::span<std::byte> span(std::size_t offset, std::size_t length) const {
    return std::span(data_, size_).subspan(offset, length);
  }
  IoVec iov() const { return IoVec(span()); }

 private:
  void release() noexcept;

  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace platter
