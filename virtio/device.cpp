#include "virtio/device.h"

#include <algorithm>
#include <cstring>

#include "block/base/checked.h"

namespace platter::virtio {
namespace {

// What a driver may set (2.1); DEVICE_NEEDS_RESET is ours.
constexpr std::uint8_t kDriverBits =
    kStatusAcknowledge | kStatusDriver | kStatusDriverOk | kStatusFeaturesOk | kStatusFailed;

}  // namespace

Device::Device(const GuestMemory& memory, std::uint16_t device_id, std::uint64_t offered,
               std::vector<Executor*> executors, unsigned queue_count, std::uint16_t queue_max_size)
    : memory_(memory),
      device_id_(device_id),
      offered_(offered | kFeatureVersion1 | kFeatureIndirectDesc | kFeatureEventIdx) {
  QueueOwner& owner = *this;
  queues_.reserve(queue_count);
  for (unsigned i = 0; i < queue_count; ++i) {
    Executor& executor = *executors[i % executors.size()];
    queues_.push_back(std::make_unique<Queue>(owner, executor, i, queue_max_size));
  }
}

Device::~Device() = default;

void Device::set_driver_features(unsigned word, std::uint32_t bits) {
  MutexLock lock(mutex());
  if ((status() & kStatusFeaturesOk) != 0) return;
  if (word > 1) {
    // No feature is offered there; accepting one must fail the negotiation.
    if (bits != 0) accepted_beyond_ = true;
    return;
  }
  const unsigned shift = 32 * word;
  accepted_ = (accepted_ & ~(std::uint64_t{0xffffffff} << shift)) | (std::uint64_t{bits} << shift);
}

std::uint32_t Device::driver_features(unsigned word) const {
  MutexLock lock(mutex());
  return word > 1 ? 0 : static_cast<std::uint32_t>(accepted_ >> (32 * word));
}

void Device::write_status(std::uint8_t value) {
  MutexLock lock(mutex());
  if (value == 0) return reset();
  const std::uint8_t before = status();
  // A driver never clears a bit (2.1.1).
  auto added = static_cast<std::uint8_t>(value & kDriverBits & ~before);

  if ((added & kStatusFeaturesOk) != 0) {
    const std::uint64_t unoffered = accepted_ & ~offered_;
    if (unoffered != 0 || accepted_beyond_ || (accepted_ & kFeatureVersion1) == 0) {
      report(Error(EPROTO, fmt::format("the driver's features {:#x} are refused: {:#x} are offered",
                                       accepted_, offered_)));
      added &= static_cast<std::uint8_t>(~kStatusFeaturesOk);
    } else {
      negotiated_.store(accepted_, std::memory_order_relaxed);
      on_features_ok(accepted_);
    }
  }
  const bool start =
      (added & kStatusDriverOk) != 0 && !closing_ && ((before | added) & kStatusFeaturesOk) != 0;
  if (!start) added &= static_cast<std::uint8_t>(~kStatusDriverOk);
  status_.fetch_or(added, std::memory_order_acq_rel);
  if (start) start_queues();
}

void Device::start_queues() {
  for (const auto& queue : queues_) {
    if (!queue->setup().enabled) continue;
    if (auto started = queue->start(memory_, negotiated()); !started) {
      return break_device(started.error().in(fmt::format("queue {}", queue->index())));
    }
  }
}

void Device::stop_queues() {
  for (const auto& queue : queues_) {
    if (queue->running()) queue->request_stop();
  }
  for (const auto& queue : queues_) queue->wait_stopped();
}

void Device::reset() {
  stop_queues();
  for (const auto& queue : queues_) queue->reset_setup();
  accepted_ = 0;
  accepted_beyond_ = false;
  negotiated_.store(0, std::memory_order_relaxed);
  on_reset();
  status_.store(0, std::memory_order_release);
}

void Device::stop_and_wait() {
  MutexLock lock(mutex());
  closing_ = true;
  stop_queues();
}

Task<void> Device::stop() {
  {
    MutexLock lock(mutex());
    closing_ = true;
    for (const auto& queue : queues_) {
      if (queue->running()) queue->request_stop();
    }
  }
  for (const auto& queue : queues_) co_await queue->stopped();
}

void Device::read_config(std::uint64_t offset, std::span<std::byte> data) {
  std::memset(data.data(), 0, data.size());
  MutexLock lock(config_mutex_);
  const std::span<const std::byte> bytes = config_bytes();
  if (offset >= bytes.size()) return;
  const std::size_t n = std::min<std::size_t>(data.size(), bytes.size() - offset);
  std::memcpy(data.data(), bytes.data() + offset, n);
}

void Device::write_config(std::uint64_t offset, std::span<const std::byte> data) {
  MutexLock lock(config_mutex_);
  if (range_within(offset, data.size(), config_bytes().size())) on_config_written(offset, data);
}

std::uint16_t Device::queue_max_size(unsigned queue) const {
  const Queue* q = find(queue);
  return q ? q->max_size() : 0;
}

std::uint16_t Device::queue_size(unsigned queue) const {
  MutexLock lock(mutex());
  const Queue* q = find(queue);
  return q ? q->setup().layout.size : 0;
}

void Device::set_queue_size(unsigned queue, std::uint16_t size) {
  MutexLock lock(mutex());
  Queue* q = find(queue);
  // A wrong size is remembered and refused when the ring starts, where the driver is told.
  if (q && !q->setup().enabled) {
    q->setup().layout.size = size > q->max_size() ? std::uint16_t{0} : size;
  }
}

namespace {
template <class Layout>
auto& address_of(Layout& layout, RingPart part) {
  switch (part) {
    case RingPart::kDescriptors:
      return layout.descriptors;
    case RingPart::kDriver:
      return layout.driver;
    case RingPart::kDevice:
      break;
  }
  return layout.device;
}
}  // namespace

std::uint64_t Device::queue_address(unsigned queue, RingPart part) const {
  MutexLock lock(mutex());
  const Queue* q = find(queue);
  return q ? address_of(q->setup().layout, part) : 0;
}

void Device::set_queue_address(unsigned queue, RingPart part, unsigned half, std::uint32_t value) {
  MutexLock lock(mutex());
  Queue* q = find(queue);
  if (!q || q->setup().enabled) return;
  std::uint64_t& address = address_of(q->setup().layout, part);
  const unsigned shift = half == 0 ? 0 : 32;
  address = (address & ~(std::uint64_t{0xffffffff} << shift)) | (std::uint64_t{value} << shift);
}

bool Device::queue_enabled(unsigned queue) const {
  MutexLock lock(mutex());
  const Queue* q = find(queue);
  return q && q->setup().enabled;
}

void Device::enable_queue(unsigned queue) {
  MutexLock lock(mutex());
  Queue* q = find(queue);
  // Queues start at DRIVER_OK (3.1.1), so one that is enabled later would never run.
  if (q && (status() & kStatusDriverOk) == 0) q->setup().enabled = true;
}

void Device::disable_queue(unsigned queue) {
  MutexLock lock(mutex());
  Queue* q = find(queue);
  if (!q) return;
  if (q->running()) {
    q->request_stop();
    q->wait_stopped();
  }
  q->setup().enabled = false;
}

void Device::kick(unsigned queue) noexcept {
  if (const Queue* q = find(queue)) q->kick();
}

void Device::break_device(const Error& why) {
  const std::uint8_t before = status_.fetch_or(kStatusNeedsReset, std::memory_order_acq_rel);
  if ((before & kStatusNeedsReset) != 0) return;
  report(why.in("the device needs a reset"));
  announce_config_change();
}

void Device::announce_config_change() {
  if (sink_ && (status() & kStatusDriverOk) != 0) sink_->config_interrupt();
}

void Device::on_queue_fault(Queue& queue, RingFault fault) {
  break_device(Error(EPROTO, fmt::format("queue {}: {}", queue.index(), to_string(fault))));
}

void Device::on_used_buffers(Queue& queue) noexcept {
  if (sink_) sink_->queue_interrupt(queue.index());
}

}  // namespace platter::virtio
