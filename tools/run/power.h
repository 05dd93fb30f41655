// Power: the PM1a event and control registers of ACPI (6.4 section 4.8.3.1 and 4.8.3.2), where
// QEMU's machines have them. There are no events; a write of the sleep enable bit with the type of
// soft-off switches the machine off.
//
// Threads: as a bus device, from any vCPU thread.
// Ownership: refers to the Control, which outlives it.
// Errors: none.
#pragma once

#include <cstdint>

#include "block/base/mutex.h"
#include "tools/run/bus.h"
#include "tools/run/control.h"

namespace platter::run {

class Power final : public BusDevice {
 public:
  static constexpr std::uint16_t kEvents = 0x600;  // status, enable: two bytes each
  static constexpr unsigned kEventPorts = 4;
  static constexpr std::uint16_t kControl = 0x604;
  static constexpr unsigned kControlPorts = 2;
  static constexpr std::uint64_t kPorts = kEventPorts + kControlPorts;
  static constexpr unsigned kSoftOff = 0;  // the sleep type that is \_S5

  explicit Power(Control& control);
  void read(std::uint64_t offset, std::span<std::byte> data) override;
  void write(std::uint64_t offset, std::span<const std::byte> data) override;

 private:
  Control& control_;
  Mutex mutex_;
  std::byte registers_[kPorts] PLATTER_GUARDED_BY(mutex_) = {};  // status stays zero
};

}  // namespace platter::run
