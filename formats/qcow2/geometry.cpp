#include "formats/qcow2/geometry.h"

#include "block/base/bytes.h"

namespace platter::qcow2 {

std::uint64_t refcount_get(const Geometry& g, const std::byte* block, std::uint64_t index) {
  switch (g.refcount_order) {
    case 3:
      return std::to_integer<std::uint8_t>(block[index]);
    case 4:
      return load_be<std::uint16_t>(block + index * 2);
    case 5:
      return load_be<std::uint32_t>(block + index * 4);
    case 6:
      return load_be<std::uint64_t>(block + index * 8);
    default: {
      // 1, 2 or 4 bits: entry 0 is in the least significant bits of the first byte.
      const unsigned bits = g.refcount_bits();
      const unsigned per_byte = 8 / bits;
      const unsigned shift = static_cast<unsigned>(index % per_byte) * bits;
      return (std::to_integer<unsigned>(block[index / per_byte]) >> shift) & ((1u << bits) - 1);
    }
  }
}

void refcount_set(const Geometry& g, std::byte* block, std::uint64_t index, std::uint64_t value) {
  switch (g.refcount_order) {
    case 3:
      block[index] = static_cast<std::byte>(value);
      return;
    case 4:
      store_be(block + index * 2, static_cast<std::uint16_t>(value));
      return;
    case 5:
      store_be(block + index * 4, static_cast<std::uint32_t>(value));
      return;
    case 6:
      store_be(block + index * 8, value);
      return;
    default: {
      const unsigned bits = g.refcount_bits();
      const unsigned per_byte = 8 / bits;
      const unsigned shift = static_cast<unsigned>(index % per_byte) * bits;
      const unsigned mask = ((1u << bits) - 1) << shift;
      const unsigned old = std::to_integer<unsigned>(block[index / per_byte]);
      block[index / per_byte] =
          static_cast<std::byte>((old & ~mask) | ((static_cast<unsigned>(value) << shift) & mask));
    }
  }
}

}  // namespace platter::qcow2
