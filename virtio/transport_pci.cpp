#include "virtio/transport_pci.h"

#include <array>
#include <cstring>

#include "block/base/bytes.h"
#include "block/base/checked.h"

namespace platter::virtio {
namespace {

constexpr std::uint8_t kCapabilityVendor = 0x09;
constexpr std::uint8_t kCapabilityMsix = 0x11;

// Structures behind the vendor capabilities (4.1.4).
constexpr std::uint8_t kCommonCfg = 1;
constexpr std::uint8_t kNotifyCfg = 2;
constexpr std::uint8_t kIsrCfg = 3;
constexpr std::uint8_t kDeviceCfg = 4;
constexpr std::uint8_t kPciCfg = 5;

// Offsets in a vendor capability, in bytes (4.1.4).
constexpr unsigned kCapBar = 4;
constexpr unsigned kCapOffset = 8;
constexpr unsigned kCapLength = 12;
constexpr unsigned kCapData = 16;

// Offsets in the common configuration structure, in bytes (4.1.4.3).
constexpr std::uint64_t kDeviceFeatureSelect = 0;
constexpr std::uint64_t kDeviceFeature = 4;
constexpr std::uint64_t kDriverFeatureSelect = 8;
constexpr std::uint64_t kDriverFeature = 12;
constexpr std::uint64_t kConfigVector = 16;
constexpr std::uint64_t kNumQueues = 18;
constexpr std::uint64_t kDeviceStatus = 20;
constexpr std::uint64_t kCommonConfigGeneration = 21;
constexpr std::uint64_t kQueueSelect = 22;
constexpr std::uint64_t kQueueSize = 24;
constexpr std::uint64_t kQueueVector = 26;
constexpr std::uint64_t kQueueEnable = 28;
constexpr std::uint64_t kQueueNotifyOff = 30;
constexpr std::uint64_t kCommonQueueDesc = 32;
constexpr std::uint64_t kCommonQueueDriver = 40;
constexpr std::uint64_t kCommonQueueDevice = 48;
constexpr std::size_t kCommonWidth = 4;  // of the widest fields; addresses are two of them

constexpr unsigned kStatusRegister = 0x06;
constexpr std::byte kStatusInterrupt{0x08};

// MSI-X message control, its high byte (PCI 3.0, 6.8.2.3).
constexpr std::uint8_t kMsixEnable = 0x80;
constexpr std::uint8_t kMsixMask = 0x40;

constexpr bool overlaps(unsigned offset, unsigned size, unsigned place, unsigned length) {
  return offset < place + length && place < offset + size;
}

PciFunction::Identity identity_of(const Device& device, std::uint32_t class_code) {
  PciFunction::Identity identity;
  identity.vendor = kVendorId;
  identity.device = static_cast<std::uint16_t>(0x1040 + device.device_id());
  identity.revision = 1;  // not transitional (4.1.2.1)
  identity.class_code = class_code;
  identity.subsystem_vendor = kVendorId;
  identity.subsystem = 0x1100;
  identity.interrupt_pin = 1;
  return identity;
}

}  // namespace

PciTransport::PciTransport(Device& device, Platform& platform, InterruptLine& intx,
                           std::uint32_t class_code)
    : PciFunction(identity_of(device, class_code)),
      device_(device),
      platform_(platform),
      intx_(intx),
      msix_(platform, device.queue_count() + 1),
      queue_vectors_(device.queue_count()),
      bound_(device.queue_count(), false) {
  for (auto& vector : queue_vectors_) vector.store(MsixTable::kNoVector);
  add_memory_bar(kBar, kBarSize);

  std::array<std::byte, 10> msix{};
  Writer w(msix);
  w.le<std::uint16_t>(static_cast<std::uint16_t>(msix_.vectors() - 1));
  w.le<std::uint32_t>(kMsixTableOffset | kBar);
  w.le<std::uint32_t>(kMsixPendingOffset | kBar);
  msix_capability_ = add_capability(kCapabilityMsix, msix);
  make_writable(msix_capability_ + 3, kMsixEnable | kMsixMask);

  add_structure(kCommonCfg, kCommonOffset, kCommonSize, std::nullopt);
  add_structure(kIsrCfg, kIsrOffset, 1, std::nullopt);
  add_structure(kDeviceCfg, kDeviceOffset, kDeviceSize, std::nullopt);
  add_structure(kNotifyCfg, kNotifyOffset, device.queue_count() * kNotifyMultiplier,
                kNotifyMultiplier);
  window_capability_ = add_structure(kPciCfg, 0, 0, 0);
  make_writable(window_capability_ + kCapBar, 0xff);
  for (unsigned i = kCapOffset; i < kCapData + 4; ++i) {
    make_writable(window_capability_ + i, 0xff);
  }
  device_.attach(*this);
}

PciTransport::~PciTransport() { bar_changed(kBar, false, bound_address_); }

unsigned PciTransport::add_structure(std::uint8_t type, std::uint32_t offset, std::uint32_t length,
                                     std::optional<std::uint32_t> extra) {
  std::array<std::byte, 18> body{};
  Writer w(body);
  const std::uint8_t size = extra ? 20 : 16;
  w.le<std::uint8_t>(size);
  w.le<std::uint8_t>(type);
  w.le<std::uint8_t>(kBar);
  w.zeroes(3);
  w.le<std::uint32_t>(offset);
  w.le<std::uint32_t>(length);
  w.le<std::uint32_t>(extra.value_or(0));
  return add_capability(kCapabilityVendor, std::span(body).first(size - 2u));
}

NotifyAddress PciTransport::notify_address(unsigned queue, std::uint64_t bar_address) const {
  // The driver writes the queue's 16-bit index (4.1.5.2).
  return {AddressSpace::kMemory, bar_address + kNotifyOffset + queue * kNotifyMultiplier, 2,
          std::nullopt};
}

void PciTransport::bar_changed(unsigned, bool mapped, std::uint64_t address) {
  for (unsigned q = 0; q < bound_.size(); ++q) {
    if (bound_[q]) platform_.unbind_notify(notify_address(q, bound_address_), device_.kick_fd(q));
    bound_[q] = false;
  }
  if (!mapped) return;
  bound_address_ = address;
  for (unsigned q = 0; q < bound_.size(); ++q) {
    bound_[q] = platform_.bind_notify(notify_address(q, address), device_.kick_fd(q)).has_value();
  }
}

void PciTransport::read_bar(unsigned bar, std::uint64_t offset, std::span<std::byte> data) {
  std::memset(data.data(), 0, data.size());
  if (bar != kBar || !range_within(offset, data.size(), kBarSize)) return;
  if (offset < kCommonOffset + kCommonSize) {
    // Fields are at most four bytes wide; a wider access is one to each of the halves.
    for (std::size_t at = 0; at < data.size(); at += kCommonWidth) {
      std::array<std::byte, kCommonWidth> value;
      store_le(value.data(), read_common(offset + at));
      std::memcpy(data.data() + at, value.data(), std::min(data.size() - at, value.size()));
    }
  } else if (offset == kIsrOffset) {
    data[0] = std::byte{read_isr()};
  } else if (range_within(offset - kDeviceOffset, data.size(), kDeviceSize)) {
    device_.read_config(offset - kDeviceOffset, data);
  } else if (offset >= kMsixPendingOffset) {
    msix_.read_pending(offset - kMsixPendingOffset, data);
  } else if (offset >= kMsixTableOffset) {
    msix_.read_table(offset - kMsixTableOffset, data);
  }
}

void PciTransport::write_bar(unsigned bar, std::uint64_t offset, std::span<const std::byte> data) {
  if (bar != kBar || !range_within(offset, data.size(), kBarSize)) return;
  if (offset < kCommonOffset + kCommonSize) {
    // Written whole (4.1.3.1), as they are read.
    for (std::size_t at = 0; at < data.size(); at += kCommonWidth) {
      std::array<std::byte, kCommonWidth> value{};
      std::memcpy(value.data(), data.data() + at, std::min(data.size() - at, value.size()));
      write_common(offset + at, load_le<std::uint32_t>(value.data()));
    }
  } else if (range_within(offset - kDeviceOffset, data.size(), kDeviceSize)) {
    device_.write_config(offset - kDeviceOffset, data);
  } else if (offset >= kNotifyOffset && offset < kMsixTableOffset) {
    device_.kick(static_cast<unsigned>((offset - kNotifyOffset) / kNotifyMultiplier));
  } else if (offset >= kMsixTableOffset && offset < kMsixPendingOffset) {
    msix_.write_table(offset - kMsixTableOffset, data);
  }
}

PciTransport::Selectors PciTransport::selectors() {
  MutexLock lock(mutex_);
  return selectors_;
}

std::uint32_t PciTransport::read_common(std::uint64_t offset) {
  const Selectors s = selectors();
  const auto address = [&](RingPart part, std::uint64_t first) {
    return static_cast<std::uint32_t>(device_.queue_address(s.queue, part) >>
                                      (offset == first ? 0 : 32));
  };
  switch (offset) {
    case kDeviceFeatureSelect:
      return s.device_features;
    case kDeviceFeature:
      if (s.device_features > 1) return 0;
      return static_cast<std::uint32_t>(device_.offered_features() >> (32 * s.device_features));
    case kDriverFeatureSelect:
      return s.driver_features;
    case kDriverFeature:
      return device_.driver_features(s.driver_features);
    case kConfigVector:
      return config_vector_.load(std::memory_order_relaxed);
    case kNumQueues:
      return device_.queue_count();
    case kDeviceStatus:
      return device_.status();
    case kCommonConfigGeneration:
      return device_.config_generation() & 0xff;
    case kQueueSelect:
      return s.queue;
    case kQueueSize:
      return device_.queue_size(s.queue);
    case kQueueVector:
      return s.queue < queue_vectors_.size()
                 ? queue_vectors_[s.queue].load(std::memory_order_relaxed)
                 : MsixTable::kNoVector;
    case kQueueEnable:
      return device_.queue_enabled(s.queue) ? 1 : 0;
    case kQueueNotifyOff:
      return s.queue < device_.queue_count() ? s.queue : 0u;
    case kCommonQueueDesc:
    case kCommonQueueDesc + 4:
      return address(RingPart::kDescriptors, kCommonQueueDesc);
    case kCommonQueueDriver:
    case kCommonQueueDriver + 4:
      return address(RingPart::kDriver, kCommonQueueDriver);
    case kCommonQueueDevice:
    case kCommonQueueDevice + 4:
      return address(RingPart::kDevice, kCommonQueueDevice);
    default:
      return 0;
  }
}

void PciTransport::write_common(std::uint64_t offset, std::uint32_t value) {
  const Selectors s = selectors();
  const auto low16 = static_cast<std::uint16_t>(value);
  // A vector that does not exist is not taken; the driver reads it back to see (4.1.5.1.2).
  const std::uint16_t vector = low16 < msix_.vectors() ? low16 : MsixTable::kNoVector;
  switch (offset) {
    case kDeviceFeatureSelect:
    case kDriverFeatureSelect:
    case kQueueSelect: {
      MutexLock lock(mutex_);
      if (offset == kDeviceFeatureSelect) selectors_.device_features = value;
      if (offset == kDriverFeatureSelect) selectors_.driver_features = value;
      if (offset == kQueueSelect) selectors_.queue = low16;
      return;
    }
    case kDriverFeature:
      return device_.set_driver_features(s.driver_features, value);
    case kConfigVector:
      return config_vector_.store(vector, std::memory_order_relaxed);
    case kDeviceStatus:
      device_.write_status(static_cast<std::uint8_t>(value));
      if (static_cast<std::uint8_t>(value) == 0) device_was_reset();
      return;
    case kQueueSize:
      return device_.set_queue_size(s.queue, low16);
    case kQueueVector:
      if (s.queue < queue_vectors_.size()) {
        queue_vectors_[s.queue].store(vector, std::memory_order_relaxed);
      }
      return;
    case kQueueEnable:
      // A driver never disables a queue but by reset (4.1.4.3.2).
      if (low16 == 1) device_.enable_queue(s.queue);
      return;
    case kCommonQueueDesc:
    case kCommonQueueDesc + 4:
      return device_.set_queue_address(s.queue, RingPart::kDescriptors, offset != kCommonQueueDesc,
                                       value);
    case kCommonQueueDriver:
    case kCommonQueueDriver + 4:
      return device_.set_queue_address(s.queue, RingPart::kDriver, offset != kCommonQueueDriver,
                                       value);
    case kCommonQueueDevice:
    case kCommonQueueDevice + 4:
      return device_.set_queue_address(s.queue, RingPart::kDevice, offset != kCommonQueueDevice,
                                       value);
    default:
      return;
  }
}

void PciTransport::device_was_reset() {
  config_vector_.store(MsixTable::kNoVector, std::memory_order_relaxed);
  for (auto& vector : queue_vectors_) {
    vector.store(MsixTable::kNoVector, std::memory_order_relaxed);
  }
  {
    MutexLock lock(mutex_);
    selectors_ = {};
  }
  MutexLock lock(interrupt_mutex_);
  isr_ = 0;
  update_line();
}

void PciTransport::reset_function() {
  device_.write_status(0);
  device_was_reset();
  msix_.reset();
  PciFunction::reset_function();
}

void PciTransport::queue_interrupt(unsigned queue) noexcept {
  if (msix_.enabled()) {
    msix_.raise(queue_vectors_[queue].load(std::memory_order_relaxed));
  } else {
    raise_line(kInterruptQueue);
  }
}

void PciTransport::config_interrupt() noexcept {
  // The cause is shown in the ISR whichever way the interrupt goes (4.1.4.5.1).
  raise_line(kInterruptConfig);
  if (msix_.enabled()) msix_.raise(config_vector_.load(std::memory_order_relaxed));
}

void PciTransport::raise_line(std::uint8_t cause) noexcept {
  MutexLock lock(interrupt_mutex_);
  isr_ |= cause;
  update_line();
}

std::uint8_t PciTransport::read_isr() {
  // Reading acknowledges (4.1.4.5).
  MutexLock lock(interrupt_mutex_);
  const std::uint8_t causes = isr_;
  isr_ = 0;
  update_line();
  return causes;
}

void PciTransport::update_line() noexcept {
  const bool level = isr_ != 0 && !msix_.enabled() && !intx_disabled();
  if (level == line_asserted_) return;
  line_asserted_ = level;
  intx_.set_level(level);
}

void PciTransport::before_config_read(unsigned offset, unsigned size) {
  if (overlaps(offset, size, kStatusRegister, 1)) {
    bool pending;
    {
      MutexLock lock(interrupt_mutex_);
      pending = isr_ != 0 && !msix_.enabled();
    }
    MutexLock lock(config_mutex());
    std::byte& status = config()[kStatusRegister];
    status = pending ? status | kStatusInterrupt : status & ~kStatusInterrupt;
  }
  if (overlaps(offset, size, window_capability_ + kCapData, 4)) window_access(false);
}

void PciTransport::after_config_write(unsigned offset, unsigned size) {
  if (overlaps(offset, size, msix_capability_ + 3, 1)) {
    std::uint8_t control;
    {
      MutexLock lock(config_mutex());
      control = std::to_integer<std::uint8_t>(config()[msix_capability_ + 3]);
    }
    msix_.set_control((control & kMsixEnable) != 0, (control & kMsixMask) != 0);
  }
  {
    MutexLock lock(interrupt_mutex_);
    update_line();
  }
  // A reset of the whole function is no access to the window.
  if (size <= 4 && overlaps(offset, size, window_capability_ + kCapData, 4)) window_access(true);
}

void PciTransport::window_access(bool write) {
  // Access to the BAR through configuration space (4.1.4.9). It reaches our own registers and
  // nothing else, and those never reach configuration space, so it cannot recurse.
  std::uint8_t bar;
  std::uint32_t offset;
  std::uint32_t length;
  std::array<std::byte, 4> data{};
  {
    MutexLock lock(config_mutex());
    const std::byte* cap = config().data() + window_capability_;
    bar = std::to_integer<std::uint8_t>(cap[kCapBar]);
    offset = load_le<std::uint32_t>(cap + kCapOffset);
    length = load_le<std::uint32_t>(cap + kCapLength);
    std::memcpy(data.data(), cap + kCapData, data.size());
  }
  if ((length != 1 && length != 2 && length != 4) || !is_aligned(offset, length)) return;
  if (write) return write_bar(bar, offset, std::span(data).first(length));
  read_bar(bar, offset, std::span(data).first(length));
  MutexLock lock(config_mutex());
  std::memcpy(config().data() + window_capability_ + kCapData, data.data(), length);
}

}  // namespace platter::virtio
