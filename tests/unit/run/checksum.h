// What a firmware table must add up to is zero.
#pragma once

#include <cstddef>
#include <span>

namespace platter::run {

inline unsigned sum(std::span<const std::byte> bytes) {
  unsigned total = 0;
  for (const std::byte byte : bytes) total += std::to_integer<unsigned>(byte);
  return total & 0xff;
}

}  // namespace platter::run
