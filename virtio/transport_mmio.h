// MmioTransport: a device behind the virtio-mmio registers, version 2 (virtio 1.2, 4.2.2).
//
// The machine routes guest accesses to [base, base + kSize) here as an offset from base. Linux
// finds the device through `virtio_mmio.device=0x200@BASE:IRQ` on its command line.
//
// Threads: read() and write() from any vCPU thread, several at once. A write that resets the device
// or clears QueueReady returns after the requests in flight have finished.
// Ownership: refers to the device, platform and line, which outlive it. The device has been stopped
// when the transport is destroyed.
// Errors: accesses of a wrong width or place read as zero and write nothing; a notification address
// that cannot be bound is served by the trapped write.
#pragma once

#include <atomic>
#include <cstdint>
#include <span>
#include <vector>

#include "block/base/mutex.h"
#include "virtio/device.h"
#include "virtio/platform.h"

namespace platter::virtio {

class MmioTransport final : private InterruptSink {
 public:
  static constexpr std::uint64_t kSize = 0x200;  // bytes of guest address space

  // `base`: guest address of the registers. Binds the notifications at once.
  MmioTransport(Device& device, Platform& platform, InterruptLine& line, std::uint64_t base);
  ~MmioTransport();
  MmioTransport(const MmioTransport&) = delete;
  MmioTransport& operator=(const MmioTransport&) = delete;

  // `offset` from base; fills all of `data`.
  void read(std::uint64_t offset, std::span<std::byte> data);
  void write(std::uint64_t offset, std::span<const std::byte> data);

  std::uint64_t base() const { return base_; }

 private:
  struct Selectors {
    std::uint32_t device_features = 0;
    std::uint32_t driver_features = 0;
    std::uint32_t queue = 0;
  };
  Selectors selectors();
  std::uint32_t read_register(std::uint64_t offset);
  void write_register(std::uint64_t offset, std::uint32_t value);
  void queue_interrupt(unsigned queue) noexcept override;
  void config_interrupt() noexcept override;
  void raise(std::uint8_t cause) noexcept;
  void acknowledge(std::uint32_t causes) noexcept;
  NotifyAddress notify_address(unsigned queue) const;

  Device& device_;
  Platform& platform_;
  InterruptLine& line_;
  const std::uint64_t base_;
  std::vector<bool> bound_;  // per queue; immutable after construction

  Mutex mutex_;
  Selectors selectors_ PLATTER_GUARDED_BY(mutex_);

  Mutex interrupt_mutex_;  // cause and line level change together
  std::uint8_t interrupt_status_ PLATTER_GUARDED_BY(interrupt_mutex_) = 0;
};

}  // namespace platter::virtio
