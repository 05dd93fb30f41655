// Where the interrupt controllers of a PC are in memory, and how their pins are described: what
// KVM's in-kernel irqchip answers at, and what firmware tables tell guests. Threads: constants.
#pragma once

#include <cstdint>

namespace platter::run {

inline constexpr std::uint32_t kLocalApicAddress = 0xfee00000;
inline constexpr std::uint32_t kIoApicAddress = 0xfec00000;

// Polarity and trigger of an interrupt as both the MultiProcessor tables (table 4-10) and the MADT
// (ACPI 6.4, table 5.26) write them: as the bus has it, or active high and level-triggered.
inline constexpr std::uint16_t kConforms = 0;
inline constexpr std::uint16_t kLevelHigh = 0x0d;

}  // namespace platter::run
