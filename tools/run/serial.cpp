#include "tools/run/serial.h"

#include <algorithm>

namespace platter::run {
namespace {

// Register indexes and bits of the 16550 (National Semiconductor PC16550D data sheet).
constexpr unsigned kData = 0, kInterruptEnable = 1, kInterruptId = 2, kLineControl = 3,
                   kModemControl = 4, kLineStatus = 5, kModemStatus = 6, kScratch = 7;
constexpr std::uint8_t kEnableReceive = 0x01, kEnableTransmit = 0x02;
constexpr std::uint8_t kIdNone = 0x01, kIdTransmit = 0x02, kIdReceive = 0x04, kIdFifo = 0xc0;
constexpr std::uint8_t kFifoEnable = 0x01, kFifoClearReceive = 0x02;
constexpr std::uint8_t kLoopback = 0x10, kOut2 = 0x08;
constexpr std::uint8_t kDataReady = 0x01, kTransmitEmpty = 0x60;

}  // namespace

Serial::Serial(Sink sink, SetLine set_line)
    : sink_(std::move(sink)), set_line_(std::move(set_line)) {}

void Serial::read(std::uint64_t offset, std::span<std::byte> data) {
  MutexLock lock(mutex_);
  for (std::size_t i = 0; i < data.size(); ++i) {
    data[i] = std::byte{read_register(static_cast<unsigned>(offset + i))};
  }
}

void Serial::write(std::uint64_t offset, std::span<const std::byte> data) {
  // A string output (rep outsb) hands over one element at a time, so wider writes really address
  // several registers.
  for (std::size_t i = 0; i < data.size(); ++i) {
    bool send;
    {
      MutexLock lock(mutex_);
      send =
          write_register(static_cast<unsigned>(offset + i), std::to_integer<std::uint8_t>(data[i]));
    }
    if (!send) continue;
    {
      MutexLock lock(output_mutex_);
      sink_(data[i]);
    }
    MutexLock lock(mutex_);
    transmit_empty_pending_ = true;
    update_interrupt();
  }
}

std::size_t Serial::receive(std::span<const std::byte> bytes) {
  MutexLock lock(mutex_);
  const std::size_t taken = std::min(bytes.size(), kMaxPending - input_.size());
  input_.insert(input_.end(), bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(taken));
  update_interrupt();
  return taken;
}

std::size_t Serial::room() {
  MutexLock lock(mutex_);
  return kMaxPending - input_.size();
}

std::uint8_t Serial::read_register(unsigned index) {
  switch (index) {
    case kData: {
      if (divisor_latch()) return static_cast<std::uint8_t>(divisor_);
      if (input_.empty()) return 0;
      const auto value = std::to_integer<std::uint8_t>(input_.front());
      input_.pop_front();
      update_interrupt();
      return value;
    }
    case kInterruptEnable:
      return divisor_latch() ? static_cast<std::uint8_t>(divisor_ >> 8) : interrupt_enable_;
    case kInterruptId: {
      const std::uint8_t fifo = (fifo_control_ & kFifoEnable) != 0 ? kIdFifo : std::uint8_t{0};
      if ((interrupt_enable_ & kEnableReceive) != 0 && !input_.empty()) return fifo | kIdReceive;
      if ((interrupt_enable_ & kEnableTransmit) != 0 && transmit_empty_pending_) {
        // Reading the identification is what acknowledges this one.
        transmit_empty_pending_ = false;
        update_interrupt();
        return fifo | kIdTransmit;
      }
      return fifo | kIdNone;
    }
    case kLineControl:
      return line_control_;
    case kModemControl:
      return modem_control_;
    case kLineStatus:
      // The sink takes everything at once, so the transmitter is always empty.
      return static_cast<std::uint8_t>(kTransmitEmpty | (input_.empty() ? 0 : kDataReady));
    case kModemStatus:
      // In loop-back the modem outputs come back as inputs; drivers look for this to find the port.
      if ((modem_control_ & kLoopback) != 0) {
        return static_cast<std::uint8_t>(((modem_control_ & 0x02) << 3) |
                                         ((modem_control_ & 0x01) << 5) |
                                         ((modem_control_ & 0x0c) << 4));
      }
      return 0xb0;  // carrier, data set ready, clear to send
    default:
      return scratch_;
  }
}

bool Serial::write_register(unsigned index, std::uint8_t value) {
  switch (index) {
    case kData:
      if (divisor_latch()) {
        divisor_ = static_cast<std::uint16_t>((divisor_ & 0xff00) | value);
        return false;
      }
      if ((modem_control_ & kLoopback) == 0) return true;
      if (input_.size() < kMaxPending) input_.push_back(std::byte{value});
      transmit_empty_pending_ = true;
      break;
    case kInterruptEnable:
      if (divisor_latch()) {
        divisor_ = static_cast<std::uint16_t>((divisor_ & 0x00ff) | (value << 8));
        return false;
      }
      // Enabling the transmit interrupt while the transmitter is empty raises it.
      if ((value & kEnableTransmit) != 0 && (interrupt_enable_ & kEnableTransmit) == 0) {
        transmit_empty_pending_ = true;
      }
      interrupt_enable_ = value & 0x0f;
      break;
    case kInterruptId:  // the FIFO control register on writes
      // Real input survives a FIFO reset: drivers reset it while they start, and what was piped
      // into the program before that is still meant for the guest. The loop-back test wants it
      // gone.
      fifo_control_ = value;
      if ((value & kFifoClearReceive) != 0 && (modem_control_ & kLoopback) != 0) input_.clear();
      break;
    case kLineControl:
      line_control_ = value;
      return false;
    case kModemControl:
      modem_control_ = value & 0x1f;
      break;
    case kScratch:
      scratch_ = value;
      return false;
    default:
      return false;  // the status registers are read-only
  }
  update_interrupt();
  return false;
}

void Serial::update_interrupt() {
  const bool receive = (interrupt_enable_ & kEnableReceive) != 0 && !input_.empty();
  const bool transmit = (interrupt_enable_ & kEnableTransmit) != 0 && transmit_empty_pending_;
  // OUT2 gates the interrupt of a PC's serial ports.
  const bool level = (receive || transmit) && (modem_control_ & kOut2) != 0;
  if (level == line_) return;
  line_ = level;
  if (set_line_) set_line_(level);
}

}  // namespace platter::run
