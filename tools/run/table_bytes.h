// TableBytes: bytes of a firmware table, put one after the other, numbers low byte first; and the
// checksum that such tables have.
//
// Threads: a value.
// Errors: none.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "block/base/bytes.h"

namespace platter::run {

class TableBytes {
 public:
  TableBytes() = default;
  explicit TableBytes(std::vector<std::byte> bytes) : bytes_(std::move(bytes)) {}

  template <std::unsigned_integral T>
  void put(T value) {
    std::byte raw[sizeof(T)];
    store_le(raw, value);
    append(raw);
  }
  // The text, cut or filled to `width`.
  void text(std::string_view text, std::size_t width, char fill = '\0') {
    text = text.substr(0, width);
    append(text);
    bytes_.resize(bytes_.size() + width - text.size(), static_cast<std::byte>(fill));
  }
  void zeroes(std::size_t count) { bytes_.resize(bytes_.size() + count); }
  void append(std::span<const std::byte> more) {
    bytes_.insert(bytes_.end(), more.begin(), more.end());
  }
  void append(std::string_view text) { append(std::as_bytes(std::span(text))); }

  std::size_t size() const { return bytes_.size(); }
  std::vector<std::byte>& bytes() & { return bytes_; }
  std::vector<std::byte> bytes() && { return std::move(bytes_); }

 private:
  std::vector<std::byte> bytes_;
};

// The byte that makes them all add up to zero, when its own place holds zero.
inline std::byte checksum_of(std::span<const std::byte> bytes) {
  unsigned sum = 0;
  for (const std::byte byte : bytes) sum += std::to_integer<unsigned>(byte);
  return static_cast<std::byte>(0x100 - (sum & 0xff));
}

}  // namespace platter::run
