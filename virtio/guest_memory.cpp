#include "virtio/guest_memory.h"

#include <algorithm>

#include "block/base/checked.h"

namespace platter::virtio {

Result<void> GuestMemory::add(std::uint64_t guest_address, std::span<std::byte> host, Kind kind,
                              std::string name) {
  if (host.empty()) return fail(EINVAL, "guest memory '{}' is empty", name);
  // The last byte, not the end, must be representable: a region may end at 2^64.
  if (!checked_add<std::uint64_t>(guest_address, host.size() - 1)) {
    return fail(EINVAL, "guest memory '{}' at {:#x} of {:#x} bytes wraps", name, guest_address,
                host.size());
  }
  const auto host_address = reinterpret_cast<std::uintptr_t>(host.data());
  if ((guest_address ^ host_address) % kAlignment != 0) {
    return fail(EINVAL, "guest memory '{}' at {:#x} is not aligned to {} bytes in the host", name,
                guest_address, kAlignment);
  }
  const std::uint64_t last = guest_address + (host.size() - 1);
  for (const Region& r : regions_) {
    const std::uint64_t r_last = r.guest_address + (r.host.size() - 1);
    if (guest_address <= r_last && r.guest_address <= last) {
      return fail(EEXIST, "guest memory '{}' at {:#x}-{:#x} overlaps '{}' at {:#x}-{:#x}", name,
                  guest_address, last, r.name, r.guest_address, r_last);
    }
  }
  if (regions_.size() == kMaxRegions) {
    return fail(ENOSPC, "guest memory '{}' is one region more than {}", name, kMaxRegions);
  }
  const auto place = std::ranges::lower_bound(regions_, guest_address, {}, &Region::guest_address);
  regions_.insert(place, Region{guest_address, host, kind, std::move(name)});
  return {};
}

std::optional<std::span<std::byte>> GuestMemory::find(std::uint64_t address, std::uint64_t length,
                                                      Access access) const noexcept {
  if (length == 0) return std::nullopt;
  for (const Region& r : regions_) {
    if (address < r.guest_address) return std::nullopt;
    const std::uint64_t offset = address - r.guest_address;
    if (offset >= r.host.size()) continue;
    if (length > r.host.size() - offset) return std::nullopt;
    if (access == Access::kWrite && r.kind != Kind::kRam) return std::nullopt;
    return r.host.subspan(offset, length);
  }
  return std::nullopt;
}

std::uint64_t GuestMemory::total_size() const {
  std::uint64_t total = 0;
  for (const Region& r : regions_) total += r.host.size();
  return total;
}

}  // namespace platter::virtio
