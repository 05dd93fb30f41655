#include "tools/run/memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "block/base/checked.h"

namespace platter::run {

Memory::~Memory() {
  for (const Bank& bank : banks_) ::munmap(bank.host, bank.size);
}

Result<void> Memory::add_bank(BankKind kind, std::uint64_t address, std::uint64_t size,
                              std::string name) {
  if (size == 0 || !is_aligned<std::uint64_t>(size, 4096) ||
      !is_aligned<std::uint64_t>(address, 4096) || !checked_add(address, size)) {
    return fail(EINVAL, "memory bank '{}' at {:#x} has an impossible size of {:#x}", name, address,
                size);
  }
  for (const Bank& bank : banks_) {
    if (ranges_overlap(address, size, bank.address, bank.size)) {
      return fail(EEXIST, "memory bank '{}' [{:#x}, {:#x}) overlaps bank '{}' [{:#x}, {:#x})", name,
                  address, address + size, bank.name, bank.address, bank.address + bank.size);
    }
  }
  void* host = ::mmap(nullptr, size, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (host == MAP_FAILED) {
    return fail_errno(errno, "could not get {} MiB for memory bank '{}'", size / kMiB, name);
  }
  // A hint only: fewer first-touch faults where the host has huge pages, nothing lost elsewhere.
  if (size >= 2 * kMiB) ::madvise(host, size, MADV_HUGEPAGE);
  banks_.push_back({kind, address, size, static_cast<std::byte*>(host), std::move(name)});
  return {};
}

Result<void> Memory::add_ram(std::uint64_t size) {
  low_ram_size_ = std::min(size, kLowRamLimit);
  high_ram_size_ = size - low_ram_size_;
  auto low = add_bank(BankKind::kRam, 0, low_ram_size_, "low RAM");
  PLATTER_TRY(low);
  if (high_ram_size_ == 0) return {};
  return add_bank(BankKind::kRam, kHighRamBase, high_ram_size_, "high RAM");
}

Result<std::span<std::byte>> Memory::at(std::uint64_t address, std::uint64_t size) const {
  for (const Bank& bank : banks_) {
    if (address >= bank.address && range_within(address - bank.address, size, bank.size)) {
      return std::span(bank.host + (address - bank.address), size);
    }
  }
  return fail(EFAULT, "guest addresses [{:#x}, +{:#x}) are not memory", address, size);
}

Result<std::span<std::byte>> Memory::ram_at(std::uint64_t address, std::uint64_t size) const {
  for (const Bank& bank : banks_) {
    if (bank.kind == BankKind::kRam && address >= bank.address &&
        range_within(address - bank.address, size, bank.size)) {
      return std::span(bank.host + (address - bank.address), size);
    }
  }
  return fail(EFAULT, "guest addresses [{:#x}, +{:#x}) are not RAM", address, size);
}

Result<void> Memory::write(std::uint64_t address, std::span<const std::byte> bytes) const {
  auto target = at(address, bytes.size());
  PLATTER_TRY(target);
  if (!bytes.empty()) std::memcpy(target->data(), bytes.data(), bytes.size());
  return {};
}

Result<void> Memory::read(std::uint64_t address, std::span<std::byte> bytes) const {
  auto source = at(address, bytes.size());
  PLATTER_TRY(source);
  if (!bytes.empty()) std::memcpy(bytes.data(), source->data(), bytes.size());
  return {};
}

}  // namespace platter::run
