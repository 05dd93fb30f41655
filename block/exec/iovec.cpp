#include "block/exec/iovec.h"

#include <cstdint>

namespace platter {

bool is_zero(std::span<const std::byte> bytes) {
  if (bytes.empty()) return true;
  // Most data differs early: look at both ends and the middle before the whole.
  const std::size_t n = bytes.size();
  if (bytes[0] != std::byte{0} || bytes[n - 1] != std::byte{0} || bytes[n / 2] != std::byte{0}) {
    return false;
  }
  // A buffer whose first byte is zero and which equals itself shifted by one is all zero.
  // In blocks, so that the compiler vectorises and data is found early.
  constexpr std::size_t kBlock = 256;
  const std::byte* p = bytes.data();
  std::size_t left = n;
  while (left >= kBlock) {
    std::uint64_t any = 0;
    for (std::size_t i = 0; i < kBlock; i += sizeof any) {
      std::uint64_t word;
      std::memcpy(&word, p + i, sizeof word);
      any |= word;
    }
    if (any != 0) return false;
    p += kBlock;
    left -= kBlock;
  }
  return std::all_of(p, p + left, [](std::byte b) { return b == std::byte{0}; });
}

bool IoVec::is_zero() const {
  bool zero = true;
  for_each([&](std::span<std::byte> s) { zero = zero && platter::is_zero(s); });
  return zero;
}

bool IoVec::is_aligned(std::size_t alignment) const {
  bool aligned = true;
  for_each([&](std::span<std::byte> s) {
    aligned =
        aligned && ((reinterpret_cast<std::uintptr_t>(s.data()) | s.size()) & (alignment - 1)) == 0;
  });
  return aligned;
}

}  // namespace platter
