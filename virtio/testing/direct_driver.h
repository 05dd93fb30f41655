// DirectDriver: brings a device up and uses its queues as a driver would, but through Device's own
// calls, without a transport.
//
// Threads: one thread, which plays the vCPU.
#pragma once

#include <memory>
#include <vector>

#include "virtio/device.h"
#include "virtio/testing/fakes.h"
#include "virtio/testing/guest.h"

namespace platter::virtio::testing {

// Blocks until the device is done with a buffer of `ring`, whose interrupts `interrupts` counts.
inline MockRing::Used wait_used(MockRing& ring, Counter& interrupts) {
  for (;;) {
    if (auto used = ring.take_used()) return *used;
    const unsigned seen = interrupts.count();
    if (ring.enable_interrupts()) continue;
    interrupts.wait_for(seen + 1);
  }
}

class DirectDriver {
 public:
  DirectDriver(Device& device, TestGuest& guest)
      : device_(device), guest_(guest), sink_(device.queue_count()) {
    device_.attach(sink_);
  }

  // Acknowledges `features` and gives whether the device took them.
  bool negotiate(std::uint64_t features) {
    features_ = features;
    device_.write_status(kStatusAcknowledge);
    device_.write_status(kStatusAcknowledge | kStatusDriver);
    device_.set_driver_features(0, static_cast<std::uint32_t>(features));
    device_.set_driver_features(1, static_cast<std::uint32_t>(features >> 32));
    device_.write_status(kStatusAcknowledge | kStatusDriver | kStatusFeaturesOk);
    return (device_.status() & kStatusFeaturesOk) != 0;
  }
  void enable(unsigned queue, const SplitRing::Layout& layout) {
    device_.set_queue_size(queue, layout.size);
    set_address(queue, RingPart::kDescriptors, layout.descriptors);
    set_address(queue, RingPart::kDriver, layout.driver);
    set_address(queue, RingPart::kDevice, layout.device);
    device_.enable_queue(queue);
  }
  void driver_ok() {
    device_.write_status(static_cast<std::uint8_t>(device_.status() | kStatusDriverOk));
  }
  // All of it, with a ring of `size` entries for each queue.
  bool bring_up(std::uint64_t features, std::uint16_t size) {
    if (!negotiate(features)) return false;
    rings_.clear();
    for (unsigned q = 0; q < device_.queue_count(); ++q) {
      rings_.push_back(std::make_unique<MockRing>(guest_, size, features));
      enable(q, rings_[q]->layout());
    }
    driver_ok();
    return (device_.status() & (kStatusDriverOk | kStatusNeedsReset)) == kStatusDriverOk;
  }
  void reset() { device_.write_status(0); }

  MockRing& ring(unsigned queue = 0) { return *rings_[queue]; }
  FakeSink& sink() { return sink_; }
  std::uint64_t features() const { return features_; }

  // Shows what was added and notifies if the device wants it.
  void publish(unsigned queue = 0) {
    if (ring(queue).publish()) device_.kick(queue);
  }
  MockRing::Used wait(unsigned queue = 0) { return wait_used(ring(queue), sink_.queue(queue)); }
  // Blocks until the device says that its configuration changed (or that it needs a reset).
  void wait_config(unsigned count = 1) { sink_.config().wait_for(count); }

 private:
  void set_address(unsigned queue, RingPart part, std::uint64_t address) {
    device_.set_queue_address(queue, part, 0, static_cast<std::uint32_t>(address));
    device_.set_queue_address(queue, part, 1, static_cast<std::uint32_t>(address >> 32));
  }

  Device& device_;
  TestGuest& guest_;
  FakeSink sink_;
  std::uint64_t features_ = 0;
  std::vector<std::unique_ptr<MockRing>> rings_;
};

}  // namespace platter::virtio::testing
