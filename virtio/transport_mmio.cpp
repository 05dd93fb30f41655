#include "virtio/transport_mmio.h"

#include <cstring>

#include "block/base/bytes.h"
#include "block/base/checked.h"

namespace platter::virtio {
namespace {

// Register offsets (4.2.2), in bytes.
constexpr std::uint64_t kMagicValue = 0x000;
constexpr std::uint64_t kVersion = 0x004;
constexpr std::uint64_t kDeviceId = 0x008;
constexpr std::uint64_t kVendor = 0x00c;
constexpr std::uint64_t kDeviceFeatures = 0x010;
constexpr std::uint64_t kDeviceFeaturesSel = 0x014;
constexpr std::uint64_t kDriverFeatures = 0x020;
constexpr std::uint64_t kDriverFeaturesSel = 0x024;
constexpr std::uint64_t kQueueSel = 0x030;
constexpr std::uint64_t kQueueNumMax = 0x034;
constexpr std::uint64_t kQueueNum = 0x038;
constexpr std::uint64_t kQueueReady = 0x044;
constexpr std::uint64_t kQueueNotify = 0x050;
constexpr std::uint64_t kInterruptStatus = 0x060;
constexpr std::uint64_t kInterruptAck = 0x064;
constexpr std::uint64_t kStatus = 0x070;
constexpr std::uint64_t kQueueDesc = 0x080;
constexpr std::uint64_t kQueueDriver = 0x090;
constexpr std::uint64_t kQueueDevice = 0x0a0;
constexpr std::uint64_t kSharedMemoryFirst = 0x0b0;
constexpr std::uint64_t kSharedMemoryLast = 0x0bc;
constexpr std::uint64_t kConfigGeneration = 0x0fc;
constexpr std::uint64_t kConfig = 0x100;

constexpr std::uint32_t kMagic = 0x74726976;  // "virt"

}  // namespace

MmioTransport::MmioTransport(Device& device, Platform& platform, InterruptLine& line,
                             std::uint64_t base)
    : device_(device), platform_(platform), line_(line), base_(base) {
  device_.attach(*this);
  for (unsigned q = 0; q < device_.queue_count(); ++q) {
    bound_.push_back(platform_.bind_notify(notify_address(q), device_.kick_fd(q)).has_value());
  }
}

MmioTransport::~MmioTransport() {
  for (unsigned q = 0; q < device_.queue_count(); ++q) {
    if (bound_[q]) platform_.unbind_notify(notify_address(q), device_.kick_fd(q));
  }
}

NotifyAddress MmioTransport::notify_address(unsigned queue) const {
  return {AddressSpace::kMemory, base_ + kQueueNotify, 4, queue};
}

void MmioTransport::read(std::uint64_t offset, std::span<std::byte> data) {
  if (offset >= kConfig) return device_.read_config(offset - kConfig, data);
  std::memset(data.data(), 0, data.size());
  // Registers are read and written whole (4.2.2.2).
  if (data.size() != 4 || !is_aligned(offset, 4)) return;
  store_le(data.data(), read_register(offset));
}

void MmioTransport::write(std::uint64_t offset, std::span<const std::byte> data) {
  if (offset >= kConfig) return device_.write_config(offset - kConfig, data);
  if (data.size() != 4 || !is_aligned(offset, 4)) return;
  write_register(offset, load_le<std::uint32_t>(data.data()));
}

std::uint32_t MmioTransport::read_register(std::uint64_t offset) {
  const Selectors s = selectors();
  switch (offset) {
    case kMagicValue:
      return kMagic;
    case kVersion:
      return 2;
    case kDeviceId:
      return device_.device_id();
    case kVendor:
      return kVendorId;
    case kDeviceFeatures:
      if (s.device_features > 1) return 0;
      return static_cast<std::uint32_t>(device_.offered_features() >> (32 * s.device_features));
    case kQueueNumMax:
      return device_.queue_max_size(s.queue);
    case kQueueReady:
      return device_.queue_enabled(s.queue) ? 1 : 0;
    case kInterruptStatus: {
      MutexLock lock(interrupt_mutex_);
      return interrupt_status_;
    }
    case kStatus:
      return device_.status();
    case kConfigGeneration:
      return device_.config_generation();
    default:
      // No shared memory regions: length and base are all ones (4.2.2).
      return offset >= kSharedMemoryFirst && offset <= kSharedMemoryLast ? ~std::uint32_t{0} : 0;
  }
}

void MmioTransport::write_register(std::uint64_t offset, std::uint32_t value) {
  switch (offset) {
    // Before anything that takes a lock: the path of machines without ioeventfd.
    case kQueueNotify:
      return device_.kick(value);
    case kInterruptAck:
      return acknowledge(value);
    case kDeviceFeaturesSel:
    case kDriverFeaturesSel:
    case kQueueSel: {
      MutexLock lock(mutex_);
      if (offset == kDeviceFeaturesSel) selectors_.device_features = value;
      if (offset == kDriverFeaturesSel) selectors_.driver_features = value;
      if (offset == kQueueSel) selectors_.queue = value;
      return;
    }
    default:
      break;
  }
  const Selectors s = selectors();
  switch (offset) {
    case kDriverFeatures:
      return device_.set_driver_features(s.driver_features, value);
    case kQueueNum:
      return device_.set_queue_size(
          s.queue, value > 0xffff ? std::uint16_t{0} : static_cast<std::uint16_t>(value));
    case kQueueReady:
      return value == 0 ? device_.disable_queue(s.queue) : device_.enable_queue(s.queue);
    case kQueueDesc:
    case kQueueDesc + 4:
      return device_.set_queue_address(s.queue, RingPart::kDescriptors, offset != kQueueDesc,
                                       value);
    case kQueueDriver:
    case kQueueDriver + 4:
      return device_.set_queue_address(s.queue, RingPart::kDriver, offset != kQueueDriver, value);
    case kQueueDevice:
    case kQueueDevice + 4:
      return device_.set_queue_address(s.queue, RingPart::kDevice, offset != kQueueDevice, value);
    case kStatus:
      device_.write_status(static_cast<std::uint8_t>(value));
      // Reset clears the interrupt (4.2.2.1); no queue is left to raise another.
      if (static_cast<std::uint8_t>(value) == 0) acknowledge(~std::uint32_t{0});
      return;
    default:
      return;
  }
}

MmioTransport::Selectors MmioTransport::selectors() {
  MutexLock lock(mutex_);
  return selectors_;
}

void MmioTransport::raise(std::uint8_t cause) noexcept {
  MutexLock lock(interrupt_mutex_);
  const bool was = interrupt_status_ != 0;
  interrupt_status_ |= cause;
  if (!was) line_.set_level(true);
}

void MmioTransport::acknowledge(std::uint32_t causes) noexcept {
  MutexLock lock(interrupt_mutex_);
  if (interrupt_status_ == 0) return;
  interrupt_status_ &= static_cast<std::uint8_t>(~causes);
  line_.set_level(false);
  // A cause that came after the driver had read the status rose no edge of its own: one is due now.
  if (interrupt_status_ != 0) line_.set_level(true);
}

void MmioTransport::queue_interrupt(unsigned) noexcept { raise(kInterruptQueue); }
void MmioTransport::config_interrupt() noexcept { raise(kInterruptConfig); }

}  // namespace platter::virtio
