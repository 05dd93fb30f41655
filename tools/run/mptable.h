// The MultiProcessor table (Intel MultiProcessor Specification 1.4): how a kernel that was booted
// without firmware learns of processors, the I/O APIC and which pin each interrupt has.
//
// Threads: pure functions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace platter::run {

// A PCI interrupt: INTA# (0) to INTD# (3) of `device` on bus 0 comes in at I/O APIC pin `pin`.
struct PciInterrupt {
  std::uint8_t device = 0;
  std::uint8_t line = 0;
  std::uint8_t pin = 0;
};

inline constexpr std::uint64_t kMpPointerAddress = 0x9fc00;  // the last KiB of base memory
inline constexpr std::uint64_t kMpTableAddress = 0xf0000;

// The 16-byte floating pointer to a table at `table_address`.
std::vector<std::byte> mp_floating_pointer(std::uint32_t table_address);
// The configuration table. `cpus` is 1 to 254: local APIC ids 0 to cpus - 1, I/O APIC id `cpus`.
std::vector<std::byte> mp_table(unsigned cpus, const std::vector<PciInterrupt>& interrupts);

}  // namespace platter::run
