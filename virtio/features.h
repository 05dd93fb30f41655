// Numbers of the virtio 1.2 specification that several files share.
// Threads: constants.
#pragma once

#include <cstdint>

namespace platter::virtio {

inline constexpr std::uint64_t bit(unsigned number) { return std::uint64_t{1} << number; }

// Device-independent feature bits (6).
inline constexpr std::uint64_t kFeatureIndirectDesc = bit(28);
inline constexpr std::uint64_t kFeatureEventIdx = bit(29);
inline constexpr std::uint64_t kFeatureVersion1 = bit(32);

// Device status bits (2.1).
inline constexpr std::uint8_t kStatusAcknowledge = 1;
inline constexpr std::uint8_t kStatusDriver = 2;
inline constexpr std::uint8_t kStatusDriverOk = 4;
inline constexpr std::uint8_t kStatusFeaturesOk = 8;
inline constexpr std::uint8_t kStatusNeedsReset = 64;
inline constexpr std::uint8_t kStatusFailed = 128;

// Device types (5).
inline constexpr std::uint16_t kDeviceIdBlock = 2;

// Interrupt causes, as in the ISR and InterruptStatus registers (4.1.4.5, 4.2.2).
inline constexpr std::uint8_t kInterruptQueue = 1;
inline constexpr std::uint8_t kInterruptConfig = 2;

// The PCI vendor id of virtio devices (4.1.2); also the vendor id of our MMIO devices.
inline constexpr std::uint16_t kVendorId = 0x1af4;

}  // namespace platter::virtio
