// Where the interrupt controllers of a PC are in memory: what KVM's in-kernel irqchip answers at, and
// what firmware tables tell guests.
#pragma once

#include <cstdint>

namespace platter::run {

inline constexpr std::uint32_t kLocalApicAddress = 0xfee00000;
inline constexpr std::uint32_t kIoApicAddress = 0xfec00000;

}  // namespace platter::run
