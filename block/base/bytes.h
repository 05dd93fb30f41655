// Byte order and bounded parsing: the only way from bytes to numbers and back.
//
// On-disk and wire structures are decoded field by field through a Reader and encoded through a
// Writer (or with load_/store_ at a known place). Nothing casts a buffer to a struct.
//
// Threads: pure functions; Reader and Writer belong to one caller.
#pragma once

#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>

namespace platter {

namespace detail {
template <std::unsigned_integral T>
constexpr T swap_if(T value, std::endian wire) {
  if (std::endian::native == wire) return value;
  if constexpr (sizeof(T) == 1)
    return value;
  else if constexpr (sizeof(T) == 2)
    return __builtin_bswap16(value);
  else if constexpr (sizeof(T) == 4)
    return __builtin_bswap32(value);
  else
    return __builtin_bswap64(value);
}
}  // namespace detail

// Unaligned loads and stores at `p`; the caller guarantees sizeof(T) readable/writable bytes.
template <std::unsigned_integral T>
T load_be(const void* p) {
  T v;
  std::memcpy(&v, p, sizeof v);
  return detail::swap_if(v, std::endian::big);
}
template <std::unsigned_integral T>
T load_le(const void* p) {
  T v;
  std::memcpy(&v, p, sizeof v);
  return detail::swap_if(v, std::endian::little);
}
template <std::unsigned_integral T>
void store_be(void* p, T value) {
  value = detail::swap_if(value, std::endian::big);
  std::memcpy(p, &value, sizeof value);
}
template <std::unsigned_integral T>
void store_le(void* p, T value) {
  value = detail::swap_if(value, std::endian::little);
  std::memcpy(p, &value, sizeof value);
}

// The bytes as they are: whoever shows them decides what is printable.
inline std::string text_of(std::span<const std::byte> bytes) {
  std::string text(bytes.size(), '\0');
  if (!bytes.empty()) std::memcpy(text.data(), bytes.data(), bytes.size());
  return text;
}

// Reads fields front to back from bytes that may be too short or lie. Reading past the end gives
// zeroes and makes ok() false for good, so that a parser may read a whole record and check once.
class Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes) : bytes_(bytes) {}

  template <std::unsigned_integral T>
  T be() {
    const std::byte* p = take(sizeof(T));
    return p ? load_be<T>(p) : T{0};
  }
  template <std::unsigned_integral T>
  T le() {
    const std::byte* p = take(sizeof(T));
    return p ? load_le<T>(p) : T{0};
  }
  // The next `count` bytes, or an empty span when fewer are left.
  std::span<const std::byte> bytes(std::size_t count) {
    const std::byte* p = take(count);
    return p ? std::span(p, count) : std::span<const std::byte>{};
  }
  void skip(std::size_t count) { take(count); }

  bool ok() const { return ok_; }
  std::size_t position() const { return position_; }
  std::size_t remaining() const { return bytes_.size() - position_; }

 private:
  const std::byte* take(std::size_t count) {
    if (!ok_ || count > remaining()) {
      ok_ = false;
      return nullptr;
    }
    const std::byte* p = bytes_.data() + position_;
    position_ += count;
    return p;
  }

  std::span<const std::byte> bytes_;
  std::size_t position_ = 0;
  bool ok_ = true;
};

// Writes fields front to back into a caller-owned buffer. Writing past the end writes nothing and
// makes ok() false for good.
class Writer {
 public:
  explicit Writer(std::span<std::byte> bytes) : bytes_(bytes) {}

  template <std::unsigned_integral T>
  void be(T value) {
    if (std::byte* p = take(sizeof(T))) store_be(p, value);
  }
  template <std::unsigned_integral T>
  void le(T value) {
    if (std::byte* p = take(sizeof(T))) store_le(p, value);
  }
  void bytes(std::span<const std::byte> data) {
    std::byte* p = take(data.size());
    if (p && !data.empty()) std::memcpy(p, data.data(), data.size());
  }
  void zeroes(std::size_t count) {
    std::byte* p = take(count);
    if (p && count) std::memset(p, 0, count);
  }

  bool ok() const { return ok_; }
  std::size_t position() const { return position_; }

 private:
  std::byte* take(std::size_t count) {
    if (!ok_ || count > bytes_.size() - position_) {
      ok_ = false;
      return nullptr;
    }
    std::byte* p = bytes_.data() + position_;
    position_ += count;
    return p;
  }

  std::span<std::byte> bytes_;
  std::size_t position_ = 0;
  bool ok_ = true;
};

}  // namespace platter
