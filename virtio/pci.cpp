#include "virtio/pci.h"

#include <algorithm>
#include <cstring>

#include "block/base/bytes.h"
#include "block/base/checked.h"

namespace platter::virtio {
namespace {

// Offsets in a type 0 header (PCI 3.0, 6.1), in bytes.
constexpr unsigned kPciVendor = 0x00;
constexpr unsigned kDevice = 0x02;
constexpr unsigned kCommand = 0x04;
constexpr unsigned kPciStatus = 0x06;
constexpr unsigned kRevision = 0x08;
constexpr unsigned kClassCode = 0x09;
constexpr unsigned kBar0 = 0x10;
constexpr unsigned kSubsystemVendor = 0x2c;
constexpr unsigned kSubsystem = 0x2e;
constexpr unsigned kInterruptLine = 0x3c;
constexpr unsigned kInterruptPin = 0x3d;

constexpr std::uint16_t kCommandMemory = 0x0002;
constexpr std::uint16_t kCommandBusMaster = 0x0004;
constexpr std::uint16_t kCommandNoIntx = 0x0400;
constexpr std::uint16_t kStatusCapabilities = 0x0010;

}  // namespace

PciFunction::PciFunction(const Identity& identity) : identity_(identity) {
  std::byte* c = config_.data();
  store_le(c + kPciVendor, identity.vendor);
  store_le(c + kDevice, identity.device);
  c[kRevision] = std::byte{identity.revision};
  store_le(c + kClassCode, static_cast<std::uint16_t>(identity.class_code));
  c[kClassCode + 2] = static_cast<std::byte>(identity.class_code >> 16);
  store_le(c + kSubsystemVendor, identity.subsystem_vendor);
  store_le(c + kSubsystem, identity.subsystem);
  c[kInterruptPin] = std::byte{identity.interrupt_pin};

  constexpr std::uint16_t kCommandBits = kCommandMemory | kCommandBusMaster | kCommandNoIntx;
  make_writable(kCommand, kCommandBits & 0xff);
  make_writable(kCommand + 1, kCommandBits >> 8);
  make_writable(kInterruptLine, 0xff);
}

void PciFunction::add_memory_bar(unsigned bar, std::uint32_t size) {
  bar_size_[bar] = size;
  // Only the address bits above the size can be written: writing all ones and reading back tells
  // the size (6.2.5.1).
  const std::uint32_t mask = ~(size - 1);
  for (unsigned i = 0; i < 4; ++i) {
    make_writable(kBar0 + 4 * bar + i, static_cast<std::uint8_t>(mask >> (8 * i)));
  }
}

unsigned PciFunction::add_capability(std::uint8_t id, std::span<const std::byte> body) {
  MutexLock lock(mutex_);
  const unsigned at = next_capability_;
  next_capability_ = align_up(at + 2 + static_cast<unsigned>(body.size()), 4);
  config_[at] = std::byte{id};
  std::ranges::copy(body, config_.begin() + at + 2);
  config_[last_link_] = static_cast<std::byte>(at);
  last_link_ = at + 1;
  store_le(config_.data() + kPciStatus, kStatusCapabilities);
  return at;
}

std::uint32_t PciFunction::read_config(unsigned offset, unsigned size) {
  if (size == 0 || size > 4 || offset >= kConfigSize || offset % 4 + size > 4) {
    return ~std::uint32_t{0};
  }
  before_config_read(offset, size);
  MutexLock lock(mutex_);
  std::uint32_t value = 0;
  for (unsigned i = 0; i < size; ++i) {
    value |= std::to_integer<std::uint32_t>(config_[offset + i]) << (8 * i);
  }
  return value;
}

void PciFunction::write_config(unsigned offset, unsigned size, std::uint32_t value) {
  if (size == 0 || size > 4 || offset >= kConfigSize || offset % 4 + size > 4) return;
  {
    MutexLock lock(mutex_);
    for (unsigned i = 0; i < size; ++i) {
      const std::byte mask{writable_[offset + i]};
      std::byte& place = config_[offset + i];
      place = (place & ~mask) | (static_cast<std::byte>(value >> (8 * i)) & mask);
    }
    if (offset < kBar0 + 4 * kBars) update_mappings();
  }
  after_config_write(offset, size);
}

void PciFunction::update_mappings() {
  const auto command = load_le<std::uint16_t>(config_.data() + kCommand);
  intx_disabled_.store((command & kCommandNoIntx) != 0, std::memory_order_release);
  for (unsigned bar = 0; bar < kBars; ++bar) {
    if (bar_size_[bar] == 0) continue;
    const std::uint32_t mask = ~(bar_size_[bar] - 1);
    const std::uint32_t address = load_le<std::uint32_t>(config_.data() + kBar0 + 4 * bar) & mask;
    // Zero is unset and all ones is somebody measuring the size: neither is a place.
    const bool map = (command & kCommandMemory) != 0 && address != 0 && address != mask;
    if (mapped_[bar] && (!map || mapped_at_[bar] != address)) {
      mapped_[bar] = false;
      bar_changed(bar, false, mapped_at_[bar]);
      if (listener_) listener_->bar_unmapped(*this, bar);
    }
    if (map && !mapped_[bar]) {
      mapped_[bar] = true;
      mapped_at_[bar] = address;
      if (listener_) listener_->bar_mapped(*this, bar, address, bar_size_[bar]);
      bar_changed(bar, true, address);
    }
  }
}

void PciFunction::reset_function() {
  {
    MutexLock lock(mutex_);
    for (unsigned i = 0; i < kConfigSize; ++i) config_[i] &= ~std::byte{writable_[i]};
    update_mappings();
  }
  after_config_write(0, kConfigSize);
}

}  // namespace platter::virtio
