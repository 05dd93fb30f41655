// Serial: a 16550A serial port behind eight I/O ports: what the guest sends goes to a sink, what
// the user types comes through receive().
//
// Threads: all member functions from any thread. Calls of the sink never overlap, nor do those of
// the interrupt line. The sink may block: only other senders wait for it, not who brings input.
// Ownership: owns its sink and line callbacks.
// Errors: none; input that the guest does not fetch waits, up to kMaxPending bytes.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <span>

#include "block/base/mutex.h"
#include "tools/run/bus.h"

namespace platter::run {

class Serial final : public BusDevice {
 public:
  static constexpr std::uint64_t kPorts = 8;
  static constexpr std::uint16_t kCom1 = 0x3f8;
  static constexpr unsigned kCom1Irq = 4;
  static constexpr std::size_t kMaxPending = 64 * 1024;  // bytes of input kept for the guest

  using Sink = std::function<void(std::byte)>;
  using SetLine = std::function<void(bool)>;

  Serial(Sink sink, SetLine set_line);

  void read(std::uint64_t offset, std::span<std::byte> data) override;
  void write(std::uint64_t offset, std::span<const std::byte> data) override;

  // Queues bytes for the guest; gives how many were taken.
  std::size_t receive(std::span<const std::byte> bytes);
  // How many bytes receive() would take now, or more later.
  std::size_t room();

 private:
  std::uint8_t read_register(unsigned index) PLATTER_REQUIRES(mutex_);
  // True when the byte is to be sent.
  bool write_register(unsigned index, std::uint8_t value) PLATTER_REQUIRES(mutex_);
  void update_interrupt() PLATTER_REQUIRES(mutex_);
  bool divisor_latch() const PLATTER_REQUIRES(mutex_) { return (line_control_ & 0x80) != 0; }

  Mutex output_mutex_;  // never taken with mutex_ held
  Sink sink_ PLATTER_GUARDED_BY(output_mutex_);

  Mutex mutex_;
  SetLine set_line_ PLATTER_GUARDED_BY(mutex_);
  std::deque<std::byte> input_ PLATTER_GUARDED_BY(mutex_);
  std::uint8_t interrupt_enable_ PLATTER_GUARDED_BY(mutex_) = 0;
  std::uint8_t fifo_control_ PLATTER_GUARDED_BY(mutex_) = 0;
  std::uint8_t line_control_ PLATTER_GUARDED_BY(mutex_) = 0;
  std::uint8_t modem_control_ PLATTER_GUARDED_BY(mutex_) = 0;
  std::uint8_t scratch_ PLATTER_GUARDED_BY(mutex_) = 0;
  std::uint16_t divisor_ PLATTER_GUARDED_BY(mutex_) = 12;
  bool transmit_empty_pending_ PLATTER_GUARDED_BY(mutex_) = false;
  bool line_ PLATTER_GUARDED_BY(mutex_) = false;
};

}  // namespace platter::run
