// The small devices of a PC that firmware and kernels expect: ways to switch off and to reset,
// the A20 gate, the debug console of the firmware.
//
// Threads: set-up here, then as bus devices from any vCPU thread.
// Errors: those of the bus.
#pragma once

#include <cstddef>
#include <functional>

#include "block/base/error.h"
#include "tools/run/bus.h"
#include "tools/run/control.h"

namespace platter::run {

inline constexpr std::uint16_t kKeyboardCommand = 0x64;
inline constexpr std::uint16_t kSystemControlA = 0x92;
inline constexpr std::uint16_t kDebugPort = 0x402;
inline constexpr std::uint16_t kBochsShutdown = 0x8900;

// `control` outlives the bus. `debug` gets the bytes written to port 0x402; it may be empty.
Result<void> add_legacy_ports(Bus& ports, Control& control, std::function<void(std::byte)> debug);

}  // namespace platter::run
