// IoVec: a view of bytes that lie in one or several caller-owned segments.
//
// Copying and slicing allocate nothing. As with iovec itself, the same type serves reads and
// writes; a callee writes through it only when it was asked to read into it.
//
// Ownership: none; segments and the segment array must outlive every use.
// Threads: a value.
#pragma once

#include <sys/uio.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <span>

namespace platter {

class IoVec {
 public:
  IoVec() = default;
  // One segment.
  IoVec(std::span<std::byte> bytes) : base_(bytes.data()), size_(bytes.size()) {}
  // One segment that will only be read from.
  static IoVec of_const(std::span<const std::byte> bytes) {
    return IoVec(std::span(const_cast<std::byte*>(bytes.data()), bytes.size()));
  }
  // Several segments.
  explicit IoVec(std::span<const iovec> segments)
      : segments_(segments.data()), count_(segments.size()) {
    for (const iovec& s : segments) size_ += s.iov_len;
  }

  std::size_t size() const { return size_; }  // bytes
  bool empty() const { return size_ == 0; }

  // Bytes [offset, offset + length) of this view; the range must lie within it.
  IoVec slice(std::size_t offset, std::size_t length) const {
    IoVec r = *this;
    r.size_ = length;
    if (count_ == 0) {
      r.base_ += offset;
      return r;
    }
    r.skip_ += offset;
    while (r.count_ > 1 && r.skip_ >= r.segments_->iov_len) {
      r.skip_ -= r.segments_->iov_len;
      ++r.segments_;
      --r.count_;
    }
    return r;
  }
  IoVec first(std::size_t length) const { return slice(0, length); }
  IoVec from(std::size_t offset) const { return slice(offset, size_ - offset); }

  // Calls `f(std::span<std::byte>)` for each non-empty piece in order.
  template <class F>
  void for_each(F&& f) const {
    if (count_ == 0) {
      if (size_ != 0) f(std::span(base_, size_));
      return;
    }
    std::size_t left = size_;
    std::size_t skip = skip_;
    for (const iovec* s = segments_; left != 0; ++s) {
      const std::size_t n = std::min(left, s->iov_len - skip);
      if (n != 0) f(std::span(static_cast<std::byte*>(s->iov_base) + skip, n));
      left -= n;
      skip = 0;
    }
  }

  // Number of non-empty pieces.
  std::size_t pieces() const {
    std::size_t n = 0;
    for_each([&](std::span<std::byte>) { ++n; });
    return n;
  }

  // The bytes as one span when they are contiguous, otherwise an empty span.
  std::span<std::byte> contiguous() const {
    if (count_ == 0) return {base_, size_};
    if (size_ <= segments_->iov_len - std::min(skip_, segments_->iov_len)) {
      return {static_cast<std::byte*>(segments_->iov_base) + skip_, size_};
    }
    return {};
  }

  void fill(std::byte value) const {
    for_each(
        [&](std::span<std::byte> s) { std::memset(s.data(), static_cast<int>(value), s.size()); });
  }
  // Copies size() bytes out to / in from `memory`.
  void copy_to(std::byte* memory) const {
    for_each([&](std::span<std::byte> s) {
      std::memcpy(memory, s.data(), s.size());
      memory += s.size();
    });
  }
  void copy_from(const std::byte* memory) const {
    for_each([&](std::span<std::byte> s) {
      std::memcpy(s.data(), memory, s.size());
      memory += s.size();
    });
  }
  // True when every byte is zero.
  bool is_zero() const;
  // True when every piece's address and length are multiples of `alignment` (a power of two).
  bool is_aligned(std::size_t alignment) const;

 private:
  std::byte* base_ = nullptr;        // the segment, when count_ is 0
  const iovec* segments_ = nullptr;  // otherwise: the segments,
  std::size_t count_ = 0;            // at least this many,
  std::size_t skip_ = 0;             // the first of them from here on
  std::size_t size_ = 0;
};

// True when all bytes are zero; runs at memory speed.
bool is_zero(std::span<const std::byte> bytes);

}  // namespace platter
