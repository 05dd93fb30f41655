// Memory: the guest-physical memory of a machine, as a list of typed banks.
//
// A bank is a range of guest-physical addresses backed by anonymous host memory. Banks never
// overlap; adding one that would is refused with both ranges in the message.
//
// Threads: banks are added before the first vCPU runs; after that the list is immutable and may be
// read from any thread. The bytes themselves are the guest's and may change at any time.
// Ownership: a Memory owns its host mappings and outlives every vCPU and device that uses them.
// Errors: EEXIST for overlaps, ENOMEM, EFAULT for a range that is not memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "block/base/error.h"

namespace platter::run {

inline constexpr std::uint64_t kKiB = 1024;
inline constexpr std::uint64_t kMiB = 1024 * kKiB;
inline constexpr std::uint64_t kGiB = 1024 * kMiB;

// RAM below 4 GiB ends here at the latest; the rest of it starts at 4 GiB. Between the two lie the
// device windows.
inline constexpr std::uint64_t kLowRamLimit = 3 * kGiB;
inline constexpr std::uint64_t kHighRamBase = 4 * kGiB;

enum class BankKind { kRam, kRom };

struct Bank {
  BankKind kind;
  std::uint64_t address;  // guest-physical, page aligned
  std::uint64_t size;     // bytes, page aligned
  std::byte* host;
  std::string name;  // for messages
};

class Memory {
 public:
  Memory() = default;
  ~Memory();
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  // Adds a zeroed bank. `address` and `size` are multiples of 4096 and `size` is not zero.
  Result<void> add_bank(BankKind kind, std::uint64_t address, std::uint64_t size, std::string name);

  // RAM of `size` bytes in total, split around the device windows below 4 GiB.
  Result<void> add_ram(std::uint64_t size);

  const std::vector<Bank>& banks() const { return banks_; }

  // The host bytes of [address, address + size), which must lie within one bank. The host may
  // write ROM banks too: this is how they are filled.
  Result<std::span<std::byte>> at(std::uint64_t address, std::uint64_t size) const;

  // The same for RAM banks only: what the guest may ask a device to write to.
  Result<std::span<std::byte>> ram_at(std::uint64_t address, std::uint64_t size) const;

  // Copies between host and guest memory; EFAULT when the range is not within one bank.
  Result<void> write(std::uint64_t address, std::span<const std::byte> bytes) const;
  Result<void> read(std::uint64_t address, std::span<std::byte> bytes) const;

  std::uint64_t low_ram_size() const { return low_ram_size_; }
  std::uint64_t high_ram_size() const { return high_ram_size_; }

 private:
  std::vector<Bank> banks_;
  std::uint64_t low_ram_size_ = 0;
  std::uint64_t high_ram_size_ = 0;
};

}  // namespace platter::run
