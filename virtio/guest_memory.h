// GuestMemory: the guest-physical memory that devices may touch, with checked access.
//
// The machine adds regions (a guest address and the host bytes behind it); devices turn guest
// addresses into host spans through find(), which fails on anything that is not wholly inside one
// region of a fitting kind. Devices keep spans, never addresses: what is not in a region (device
// registers, holes) cannot be reached by DMA.
//
// Guest memory is shared with running vCPUs: every byte may change at any time. Read a value once
// through load_shared() or copy_shared(), then check the copy, then use the copy.
//
// Threads: add() before any device runs; afterwards the object is immutable and find() may be
// called from any thread.
// Ownership: the host bytes stay the machine's; they outlive every device that was given them, and
// a device is stopped (Device::stop) before its memory goes away.
// Errors: add() refuses overlaps and wraps by name; find() answers nothing.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "block/base/bytes.h"
#include "block/base/error.h"

namespace platter::virtio {

class GuestMemory {
 public:
  enum class Kind : std::uint8_t {
    kRam,  // devices read and write
    kRom,  // devices read only
  };
  enum class Access : std::uint8_t { kRead, kWrite };

  struct Region {
    std::uint64_t guest_address = 0;
    std::span<std::byte> host;
    Kind kind = Kind::kRam;
    std::string name;  // for messages: "low memory"
  };

  // Many more banks than any machine here has; bounds what find() walks.
  static constexpr std::size_t kMaxRegions = 64;
  // Guest and host address of a region agree modulo this, so that what is aligned for the guest is
  // aligned for us (the largest alignment a ring part asks for, virtio 2.7).
  static constexpr std::uint64_t kAlignment = 16;

  // Adjacent RAM is best added as one region: a range that straddles two regions is refused by
  // find(). Fails with EINVAL on an empty or wrapping region or a misaligned address, EEXIST when
  // the region overlaps another (the message names both), ENOSPC beyond kMaxRegions.
  Result<void> add(std::uint64_t guest_address, std::span<std::byte> host, Kind kind,
                   std::string name);

  // The host bytes of guest range [address, address + length), or nothing when it is empty, wraps,
  // leaves a region, or lies in a region that does not allow `access`.
  std::optional<std::span<std::byte>> find(std::uint64_t address, std::uint64_t length,
                                           Access access) const noexcept;

  // Sorted by guest address.
  std::span<const Region> regions() const { return regions_; }
  std::uint64_t total_size() const;  // bytes

 private:
  std::vector<Region> regions_;
};

// Takes a copy that stays what it is: the barrier keeps the compiler from reading the source again
// in place of the copy.
inline void copy_shared(std::span<std::byte> to, const std::byte* from) noexcept {
  std::memcpy(to.data(), from, to.size());
  std::atomic_signal_fence(std::memory_order_seq_cst);
}

// Little-endian values in memory shared with vCPUs. `p` is aligned for T (ring parts are checked
// to be). Relaxed: the ring argues its fences where it needs them.
template <std::unsigned_integral T>
T load_shared(const std::byte* p, int order = __ATOMIC_RELAXED) noexcept {
  T v = __atomic_load_n(static_cast<const T*>(static_cast<const void*>(p)), order);
  return platter::detail::swap_if(v, std::endian::little);
}
template <std::unsigned_integral T>
void store_shared(std::byte* p, T value, int order = __ATOMIC_RELAXED) noexcept {
  __atomic_store_n(static_cast<T*>(static_cast<void*>(p)),
                   platter::detail::swap_if(value, std::endian::little), order);
}

}  // namespace platter::virtio
