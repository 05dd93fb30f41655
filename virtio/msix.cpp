#include "virtio/msix.h"

#include <cstring>

#include "block/base/bytes.h"
#include "block/base/checked.h"

namespace platter::virtio {
namespace {

// Dwords of a table entry (PCI 3.0, 6.8.2.7-9).
constexpr unsigned kAddressLow = 0;
constexpr unsigned kAddressHigh = 1;
constexpr unsigned kData = 2;

constexpr std::uint32_t kMasked = 1;  // of the fourth, vector control

}  // namespace

MsixTable::MsixTable(Platform& platform, unsigned vectors)
    : platform_(platform), entries_(vectors) {}

bool MsixTable::deliverable(const Entry& entry) const {
  return !entry.masked && !function_masked_.load(std::memory_order_acquire) && enabled();
}

void MsixTable::prepare(Entry& entry) noexcept {
  if (!entry.stale) return;
  if (!entry.signal) {
    if (auto made = platform_.create_msi(entry.message)) entry.signal = std::move(*made);
  } else if (!entry.signal->set_message(entry.message)) {
    entry.signal.reset();
  }
  // A message the platform refuses is not tried again until the guest changes it.
  entry.stale = false;
}

void MsixTable::send(Entry& entry) noexcept {
  prepare(entry);
  if (entry.signal) entry.signal->raise();
}

void MsixTable::settle(Entry& entry) noexcept {
  if (!deliverable(entry)) return;
  // Changing interrupt routes takes the hypervisor a while: done here, by the vCPU that unmasks,
  // rather than by the first request that wants to interrupt.
  if (entry.message.address != 0) prepare(entry);
  if (!entry.pending) return;
  entry.pending = false;
  send(entry);
}

void MsixTable::raise(unsigned vector) noexcept {
  if (vector >= entries_.size()) return;
  Entry& entry = entries_[vector];
  MutexLock lock(entry.mutex);
  if (deliverable(entry)) {
    send(entry);
  } else {
    entry.pending = true;
  }
}

void MsixTable::set_control(bool enabled, bool masked) {
  function_masked_.store(masked, std::memory_order_release);
  enabled_.store(enabled, std::memory_order_release);
  for (Entry& entry : entries_) {
    MutexLock lock(entry.mutex);
    settle(entry);
  }
}

void MsixTable::read_table(std::uint64_t offset, std::span<std::byte> data) {
  std::memset(data.data(), 0, data.size());
  if (!is_aligned(offset, 4) || data.size() % 4 != 0) return;
  for (std::size_t i = 0; i < data.size(); i += 4) {
    const std::uint64_t vector = (offset + i) / kEntrySize;
    if (vector >= entries_.size()) return;
    Entry& entry = entries_[vector];
    MutexLock lock(entry.mutex);
    std::uint32_t value = 0;
    switch ((offset + i) % kEntrySize / 4) {
      case kAddressLow:
        value = static_cast<std::uint32_t>(entry.message.address);
        break;
      case kAddressHigh:
        value = static_cast<std::uint32_t>(entry.message.address >> 32);
        break;
      case kData:
        value = entry.message.data;
        break;
      default:
        value = entry.masked ? kMasked : 0;
        break;
    }
    store_le(data.data() + i, value);
  }
}

void MsixTable::write_table(std::uint64_t offset, std::span<const std::byte> data) {
  // Software writes whole dwords or quadwords (6.8.2).
  if (!is_aligned(offset, 4) || data.size() % 4 != 0) return;
  for (std::size_t i = 0; i < data.size(); i += 4) {
    const std::uint64_t vector = (offset + i) / kEntrySize;
    if (vector >= entries_.size()) return;
    Entry& entry = entries_[vector];
    const auto value = load_le<std::uint32_t>(data.data() + i);
    MutexLock lock(entry.mutex);
    const MsiMessage before = entry.message;
    switch ((offset + i) % kEntrySize / 4) {
      case kAddressLow:
        entry.message.address = (entry.message.address & ~std::uint64_t{0xffffffff}) | value;
        break;
      case kAddressHigh:
        entry.message.address = (entry.message.address & 0xffffffff) | (std::uint64_t{value} << 32);
        break;
      case kData:
        entry.message.data = value;
        break;
      default:
        entry.masked = (value & kMasked) != 0;
        break;
    }
    if (entry.message != before) entry.stale = true;
    settle(entry);
  }
}

void MsixTable::read_pending(std::uint64_t offset, std::span<std::byte> data) {
  for (std::size_t i = 0; i < data.size(); ++i) {
    std::uint8_t bits = 0;
    for (unsigned b = 0; b < 8; ++b) {
      const std::uint64_t vector = (offset + i) * 8 + b;
      if (vector >= entries_.size()) break;
      MutexLock lock(entries_[vector].mutex);
      if (entries_[vector].pending) bits |= static_cast<std::uint8_t>(1u << b);
    }
    data[i] = std::byte{bits};
  }
}

void MsixTable::reset() {
  enabled_.store(false, std::memory_order_release);
  function_masked_.store(false, std::memory_order_release);
  for (Entry& entry : entries_) {
    MutexLock lock(entry.mutex);
    entry.message = {};
    entry.masked = true;
    entry.pending = false;
    entry.stale = true;
    entry.signal.reset();
  }
}

}  // namespace platter::virtio
