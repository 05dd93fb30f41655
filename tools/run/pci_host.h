// PciHost: PCI bus 0 behind configuration mechanism #1 (ports 0xcf8 and 0xcfc, PCI 3.0 section
// 3.2.2.3.2), with a host bridge in slot 0 that SeaBIOS knows (i440FX), and the decoding of BARs
// to the memory bus. Port 0xcf9, which lies within, is the reset control register.
//
// Threads: plug() and assign_resources() before the guest runs; bus accesses from any vCPU thread.
// Ownership: owns the bridge; refers to functions, the memory bus and the Control. Functions
// outlive the last access; the host outlives the functions' listeners' calls.
// Errors: ENOSPC when all slots or the whole window are taken. A BAR that the guest puts where
// something else is stays unreachable.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "block/base/mutex.h"
#include "tools/run/bus.h"
#include "tools/run/control.h"
#include "virtio/pci.h"

namespace platter::run {

class PciHost final : public BusDevice, private virtio::PciListener {
 public:
  static constexpr std::uint16_t kBase = 0xcf8;
  static constexpr std::uint64_t kPorts = 8;
  static constexpr unsigned kSlots = 32;
  // The reset control register, and what resets when it is written there.
  static constexpr std::uint16_t kResetPort = 0xcf9;
  static constexpr std::uint8_t kResetValue = 0x06;
  // Where assign_resources() puts BARs: above every RAM bank, below the I/O APIC.
  static constexpr std::uint32_t kWindow = 0xe0000000;
  static constexpr std::uint32_t kWindowEnd = 0xfec00000;

  PciHost(Bus& memory, Control& control);
  ~PciHost() override;

  // Puts a function into the next free slot; gives the slot's number.
  Result<unsigned> plug(virtio::PciFunction& function);
  // The slot that plug() takes next; kSlots when none is free.
  unsigned next_slot() const;
  // The IRQ (and I/O APIC pin) of INTA# of a slot: as firmware for this bridge has it.
  static unsigned interrupt_of(unsigned slot);
  // IRQs that interrupt_of() may give, as a mask: level-triggered.
  static constexpr std::uint16_t kInterruptMask = (1U << 10) | (1U << 11);

  // What firmware would do: sizes and places every BAR, switches decoding on, fills the interrupt
  // line register.
  Result<void> assign_resources();

  void read(std::uint64_t offset, std::span<std::byte> data) override;
  void write(std::uint64_t offset, std::span<const std::byte> data) override;

 private:
  class Bridge;
  virtio::PciFunction* selected(unsigned& place) const;
  void bar_mapped(virtio::PciFunction& function, unsigned bar, std::uint64_t address,
                  std::uint64_t size) override;
  void bar_unmapped(virtio::PciFunction& function, unsigned bar) override;

  Bus& memory_;
  Control& control_;
  std::unique_ptr<Bridge> bridge_;
  std::array<virtio::PciFunction*, kSlots> slots_{};  // immutable once the guest runs
  std::atomic<std::uint32_t> address_{0};

  struct Place {
    std::uint64_t address = 0;
    std::uint64_t size = 0;
    bool on_bus = false;  // otherwise something else is there
  };
  using Bar = std::pair<virtio::PciFunction*, unsigned>;
  void put_on_bus(const Bar& bar, Place& place) PLATTER_REQUIRES(mapped_mutex_);

  Mutex mapped_mutex_;
  // Where BARs are mapped.
  std::map<Bar, Place> mapped_ PLATTER_GUARDED_BY(mapped_mutex_);
};

}  // namespace platter::run
