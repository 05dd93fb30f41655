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
#include <mutex>
#include <span>

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
  std::uint8_t read_register(unsigned index);
  // True when the byte is to be sent.
  bool write_register(unsigned index, std::uint8_t value);
  void update_interrupt();
  bool divisor_latch() const { return (line_control_ & 0x80) != 0; }

  std::mutex output_mutex_;  // never taken with mutex_ held
  Sink sink_;                // called with output_mutex_ held

  std::mutex mutex_;  // guards all below
  SetLine set_line_;
  std::deque<std::byte> input_;
  std::uint8_t interrupt_enable_ = 0;
  std::uint8_t fifo_control_ = 0;
  std::uint8_t line_control_ = 0;
  std::uint8_t modem_control_ = 0;
  std::uint8_t scratch_ = 0;
  std::uint16_t divisor_ = 12;
  bool transmit_empty_pending_ = false;
  bool line_ = false;
};

}  // namespace platter::run
