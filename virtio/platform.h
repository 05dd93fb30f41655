// Platform: what a transport asks of the machine it is plugged into. The machine (KVM irqfd and
// ioeventfd in `platter run`, a fake in the unit tests) implements these interfaces, so that the
// transports are register-level state machines that know nothing of hypervisors.
//
// Threads: MsiSignal::raise and InterruptLine::set_level are called from executor and vCPU
// threads, one call per object at a time. Everything else is called from vCPU or set-up threads,
// possibly several at once.
// Ownership: platform and lines outlive the transports that use them; signals belong to the
// transport.
// Errors: a bind that fails is no fault: the transport then serves the trapped access itself.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>

#include "block/base/error.h"

namespace platter::virtio {

// A message-signalled interrupt as the guest programmed it (PCI 3.0, 6.8.2).
struct MsiMessage {
  std::uint64_t address = 0;
  std::uint32_t data = 0;
  bool operator==(const MsiMessage&) const = default;
};

// One interrupt message that can be sent again and again: an irqfd with its route.
class MsiSignal {
 public:
  MsiSignal() = default;
  MsiSignal(const MsiSignal&) = delete;
  MsiSignal& operator=(const MsiSignal&) = delete;
  virtual ~MsiSignal() = default;

  virtual void raise() noexcept = 0;
  // From now on raise() sends `message`. The guest does this when it moves an interrupt to another
  // CPU. Never called while raise() runs.
  virtual Result<void> set_message(const MsiMessage& message) = 0;
};

// An interrupt line: PCI INTx, or the line of a virtio-mmio device. Called when the level changes,
// never twice with the same level. On an edge-triggered input, true is one edge and false nothing.
// So that no event is lost there, a device lowers and raises its line again when a driver has
// acknowledged some causes and others are left; what comes later finds the line low, and the
// drivers acknowledge before they look at the rings.
class InterruptLine {
 public:
  InterruptLine() = default;
  InterruptLine(const InterruptLine&) = delete;
  InterruptLine& operator=(const InterruptLine&) = delete;
  virtual ~InterruptLine() = default;

  virtual void set_level(bool asserted) noexcept = 0;
};

enum class AddressSpace : std::uint8_t { kMemory, kPort };

// A guest write that means "look at this queue".
struct NotifyAddress {
  AddressSpace space = AddressSpace::kMemory;
  std::uint64_t address = 0;
  unsigned length = 0;                 // bytes of the write: 1, 2, 4 or 8
  std::optional<std::uint64_t> value;  // only writes of this value; any value when absent
  bool operator==(const NotifyAddress&) const = default;
};

class Platform {
 public:
  Platform() = default;
  Platform(const Platform&) = delete;
  Platform& operator=(const Platform&) = delete;
  virtual ~Platform() = default;

  virtual Result<std::unique_ptr<MsiSignal>> create_msi(const MsiMessage& message) = 0;

  // From now on a guest write at `where` adds 1 to the eventfd and does not reach the transport
  // (KVM_IOEVENTFD). The eventfd stays open until unbind_notify with the same arguments.
  virtual Result<void> bind_notify(const NotifyAddress& where, int event_fd) = 0;
  virtual void unbind_notify(const NotifyAddress& where, int event_fd) = 0;
};

}  // namespace platter::virtio
