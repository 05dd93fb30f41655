// PciTransport: a device behind modern virtio-pci (virtio 1.2, 4.1): one memory BAR with the
// common, ISR, device and notification structures and the MSI-X table, found through vendor
// capabilities, and the configuration access capability. One MSI-X vector per queue and one for
// configuration changes; INTA# when the driver does not enable MSI-X.
//
// Threads: as PciFunction. A write that resets the device returns after the requests in flight have
// finished. The configuration lock is never held while waiting for them.
// Ownership: refers to the device, platform and line, which outlive it. The device has been stopped
// when the transport is destroyed.
// Errors: as MmioTransport.
#pragma once

#include <atomic>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "block/base/mutex.h"
#include "virtio/device.h"
#include "virtio/msix.h"
#include "virtio/pci.h"
#include "virtio/platform.h"

namespace platter::virtio {

class PciTransport final : public PciFunction, private InterruptSink {
 public:
  // The one BAR and what lies in it; offsets in bytes.
  static constexpr unsigned kBar = 0;
  static constexpr std::uint32_t kBarSize = 0x8000;
  static constexpr std::uint32_t kCommonOffset = 0x0000;
  static constexpr std::uint32_t kCommonSize = 56;
  static constexpr std::uint32_t kIsrOffset = 0x1000;
  static constexpr std::uint32_t kDeviceOffset = 0x2000;
  static constexpr std::uint32_t kDeviceSize = 0x1000;
  static constexpr std::uint32_t kNotifyOffset = 0x3000;
  static constexpr std::uint32_t kNotifyMultiplier = 4;
  static constexpr std::uint32_t kMsixTableOffset = 0x4000;
  static constexpr std::uint32_t kMsixPendingOffset = 0x7000;
  // What fits the structures above: bounded by the MSI-X table's 0x3000 bytes.
  static constexpr unsigned kMaxQueues = 256;

  // `class_code`: 24 bits, such as 0x010000 for storage. `intx` is INTA#'s line.
  PciTransport(Device& device, Platform& platform, InterruptLine& intx, std::uint32_t class_code);
  ~PciTransport() override;

  void read_bar(unsigned bar, std::uint64_t offset, std::span<std::byte> data) override;
  void write_bar(unsigned bar, std::uint64_t offset, std::span<const std::byte> data) override;
  void reset_function() override;

 private:
  void before_config_read(unsigned offset, unsigned size) override;
  void after_config_write(unsigned offset, unsigned size) override;
  void bar_changed(unsigned bar, bool mapped, std::uint64_t address) override
      PLATTER_REQUIRES(config_mutex());

  struct Selectors {
    std::uint32_t device_features = 0;
    std::uint32_t driver_features = 0;
    std::uint16_t queue = 0;
  };
  Selectors selectors();
  // A capability that describes a structure of the BAR; `extra` is one more dword after it. Gives
  // its offset in configuration space.
  unsigned add_structure(std::uint8_t type, std::uint32_t offset, std::uint32_t length,
                         std::optional<std::uint32_t> extra);
  std::uint32_t read_common(std::uint64_t offset);
  void write_common(std::uint64_t offset, std::uint32_t value);
  std::uint8_t read_isr();
  void device_was_reset();

  void queue_interrupt(unsigned queue) noexcept override;
  void config_interrupt() noexcept override;
  void raise_line(std::uint8_t cause) noexcept;
  void update_line() noexcept PLATTER_REQUIRES(interrupt_mutex_);
  void window_access(bool write);

  NotifyAddress notify_address(unsigned queue, std::uint64_t bar_address) const;

  Device& device_;
  Platform& platform_;
  InterruptLine& intx_;
  MsixTable msix_;
  unsigned msix_capability_ = 0;
  unsigned window_capability_ = 0;

  Mutex mutex_;
  Selectors selectors_ PLATTER_GUARDED_BY(mutex_);

  std::atomic<std::uint16_t> config_vector_{MsixTable::kNoVector};
  std::vector<std::atomic<std::uint16_t>> queue_vectors_;

  // Which queues' notifications are bound where.
  std::uint64_t bound_address_ PLATTER_GUARDED_BY(config_mutex()) = 0;
  std::vector<bool> bound_ PLATTER_GUARDED_BY(config_mutex());

  mutable Mutex interrupt_mutex_;
  std::uint8_t isr_ PLATTER_GUARDED_BY(interrupt_mutex_) = 0;
  bool line_asserted_ PLATTER_GUARDED_BY(interrupt_mutex_) = false;
};

}  // namespace platter::virtio
