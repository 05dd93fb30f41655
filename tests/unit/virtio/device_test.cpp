// What all devices share: status, negotiation, queues at work, faults, reset and stop (C17; HOSTILE
// V-3, V-7, V-10).
#include "virtio/device.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <string>
#include <thread>

#include "unit/virtio/echo_device.h"
#include "virtio/testing/direct_driver.h"

namespace platter::virtio {
namespace {

using testing::DirectDriver;
using testing::MockRing;
using testing::Piece;
using testing::TestGuest;

constexpr std::uint64_t kDeviceFeatures =
    kFeatureVersion1 | kFeatureIndirectDesc | kFeatureEventIdx | EchoDevice::kFeature;

struct DeviceTest : ::testing::Test {
  explicit DeviceTest(unsigned queues = 1)
      : guest(std::make_unique<TestGuest>()),
        thread(ExecutorThread::start().value()),
        device(guest->memory(), {&thread->executor()}, queues),
        driver(device, *guest) {
    device.set_reporter([this](const Error& e) {
      std::lock_guard lock(mutex);
      reported.push_back(e.message());
    });
  }
  ~DeviceTest() override { device.stop_and_wait(); }

  // Sends `text` and gives what came back.
  std::string echo(const std::string& text, unsigned queue = 0) {
    const std::size_t mark = guest->mark();
    const std::uint64_t out = guest->allocate(text.size()), in = guest->allocate(text.size());
    std::memcpy(guest->at(out), text.data(), text.size());
    const auto n = static_cast<std::uint32_t>(text.size());
    driver.ring(queue).add({{out, n, false}, {in, n, true}});
    driver.publish(queue);
    const auto used = driver.wait(queue);
    std::string back(used.length, ' ');
    std::memcpy(back.data(), guest->at(in), back.size());
    guest->release(mark);
    return back;
  }
  std::vector<std::string> reports() {
    std::lock_guard lock(mutex);
    return reported;
  }

  std::unique_ptr<TestGuest> guest;
  std::unique_ptr<ExecutorThread> thread;
  EchoDevice device;
  DirectDriver driver;
  std::mutex mutex;
  std::vector<std::string> reported;
};

TEST_F(DeviceTest, ServesRequests) {
  ASSERT_TRUE(driver.bring_up(kDeviceFeatures, 8));
  EXPECT_EQ(device.seen_features, kDeviceFeatures);
  for (int i = 0; i < 100; ++i) {
    const std::string text = "request " + std::to_string(i);
    ASSERT_EQ(echo(text), text);
  }
}

TEST_F(DeviceTest, ServesWithoutEventIndex) {
  ASSERT_TRUE(driver.bring_up(kFeatureVersion1, 8));
  for (int i = 0; i < 100; ++i) ASSERT_EQ(echo("x"), "x");
}

TEST_F(DeviceTest, ABatchGetsOneInterrupt) {
  ASSERT_TRUE(driver.bring_up(kDeviceFeatures, 16));
  device.hold();
  const std::uint64_t in = guest->allocate(16), out = guest->allocate(16);
  for (int i = 0; i < 8; ++i) driver.ring().add({{out, 1, false}, {in, 1, true}});
  driver.publish();
  device.wait_held(8);
  device.release();
  for (int i = 0; i < 8; ++i) driver.wait();
  // The used ring shows the batch before its interrupt comes.
  driver.sink().queue(0).wait_for(1);
  device.stop_and_wait();
  EXPECT_EQ(driver.sink().queue(0).count(), 1u);
}

TEST_F(DeviceTest, FeaturesThatWereNotOfferedAreRefused) {
  EXPECT_FALSE(driver.negotiate(kDeviceFeatures | bit(7)));
  driver.reset();
  EXPECT_FALSE(driver.negotiate(kDeviceFeatures | bit(63)));
  driver.reset();
  EXPECT_TRUE(driver.negotiate(kDeviceFeatures));
  EXPECT_THAT(reports(), ::testing::SizeIs(2));
}

TEST_F(DeviceTest, FeaturesBeyondSixtyFourAreRefused) {
  device.set_driver_features(2, 1);
  EXPECT_FALSE(driver.negotiate(kDeviceFeatures));
}

TEST_F(DeviceTest, Version1IsNeeded) {
  EXPECT_FALSE(driver.negotiate(kDeviceFeatures & ~kFeatureVersion1));
}

TEST_F(DeviceTest, FeaturesAreFixedOnceAccepted) {
  ASSERT_TRUE(driver.negotiate(kFeatureVersion1));
  device.set_driver_features(0, 0xffffffff);
  EXPECT_EQ(device.driver_features(0), 0u);
}

TEST_F(DeviceTest, DriverOkNeedsFeaturesOk) {
  device.write_status(kStatusAcknowledge | kStatusDriver | kStatusDriverOk);
  EXPECT_EQ(device.status(), kStatusAcknowledge | kStatusDriver);
}

TEST_F(DeviceTest, StatusBitsAreNotCleared) {
  device.write_status(kStatusAcknowledge | kStatusDriver);
  device.write_status(kStatusAcknowledge);
  EXPECT_EQ(device.status(), kStatusAcknowledge | kStatusDriver);
  device.write_status(kStatusNeedsReset | 0x30);
  EXPECT_EQ(device.status(), kStatusAcknowledge | kStatusDriver);
}

TEST_F(DeviceTest, QueuesThatDoNotExist) {
  EXPECT_EQ(device.queue_max_size(1), 0);
  EXPECT_EQ(device.queue_max_size(~0u), 0);
  device.set_queue_size(1, 4);
  device.set_queue_address(~0u, RingPart::kDevice, 0, 1);
  device.enable_queue(7);
  EXPECT_FALSE(device.queue_enabled(7));
  device.disable_queue(7);
  device.kick(1);
  device.kick(~0u);
}

TEST_F(DeviceTest, AnEnabledQueueStaysWhereItIs) {
  MockRing ring(*guest, 8, kDeviceFeatures);
  ASSERT_TRUE(driver.negotiate(kDeviceFeatures));
  driver.enable(0, ring.layout());
  device.set_queue_size(0, 4);
  device.set_queue_address(0, RingPart::kDevice, 0, 0x40);
  EXPECT_EQ(device.queue_size(0), 8);
  EXPECT_EQ(device.queue_address(0, RingPart::kDevice), ring.layout().device);
}

TEST_F(DeviceTest, QueuesAreNotEnabledWhileRunning) {
  MockRing ring(*guest, 8, kDeviceFeatures);
  ASSERT_TRUE(driver.negotiate(kDeviceFeatures));
  driver.driver_ok();
  driver.enable(0, ring.layout());
  EXPECT_FALSE(device.queue_enabled(0));
}

TEST_F(DeviceTest, AWrongLayoutNeedsReset) {
  for (const unsigned size : {0u, 3u, 12u, 17u, 32u, 0xffffu}) {
    ASSERT_TRUE(driver.negotiate(kDeviceFeatures));
    MockRing ring(*guest, 16, kDeviceFeatures);
    auto layout = ring.layout();
    layout.size = static_cast<std::uint16_t>(size);
    driver.enable(0, layout);
    driver.driver_ok();
    EXPECT_NE(device.status() & kStatusNeedsReset, 0) << size;
    driver.reset();
    EXPECT_EQ(device.status(), 0);
  }
  ASSERT_TRUE(driver.bring_up(kDeviceFeatures, 16));
  EXPECT_EQ(echo("well again"), "well again");
}

TEST_F(DeviceTest, AFaultNeedsResetAndResetHeals) {
  ASSERT_TRUE(driver.bring_up(kDeviceFeatures, 8));
  EXPECT_EQ(echo("fine"), "fine");
  driver.ring().push_available(8);
  driver.publish();
  driver.wait_config();
  EXPECT_EQ(device.status() & kStatusNeedsReset, kStatusNeedsReset);
  EXPECT_THAT(reports().at(0), ::testing::HasSubstr("queue 0: an available entry is beyond"));
  driver.reset();
  EXPECT_EQ(device.status(), 0);
  ASSERT_TRUE(driver.bring_up(kDeviceFeatures, 8));
  EXPECT_EQ(echo("fine"), "fine");
}

TEST_F(DeviceTest, RequestsBeforeAFaultAreFinished) {
  ASSERT_TRUE(driver.bring_up(kDeviceFeatures, 8));
  const std::uint64_t buffer = guest->allocate(16);
  driver.ring().add({{buffer, 8, false}, {buffer + 8, 8, true}});
  driver.ring().push_available(0xffff);
  driver.publish();
  EXPECT_EQ(driver.wait().length, 8u);
  driver.wait_config();
}

struct TwoQueues : DeviceTest {
  TwoQueues() : DeviceTest(2) {}
};

TEST_F(TwoQueues, AFaultHaltsTheOtherQueue) {
  ASSERT_TRUE(driver.bring_up(kDeviceFeatures, 8));
  EXPECT_EQ(echo("one", 1), "one");
  driver.ring(0).push_available(8);
  driver.publish(0);
  driver.wait_config();
  const std::uint64_t buffer = guest->allocate(16);
  driver.ring(1).add({{buffer, 8, true}});
  driver.publish(1);
  device.disable_queue(1);
  EXPECT_FALSE(driver.ring(1).take_used());
}

TEST_F(TwoQueues, OneQueueMayBeLeftOut) {
  ASSERT_TRUE(driver.negotiate(kDeviceFeatures));
  MockRing ring(*guest, 8, kDeviceFeatures);
  driver.enable(0, ring.layout());
  driver.driver_ok();
  EXPECT_EQ(device.status() & kStatusNeedsReset, 0);
  device.kick(1);
}

// C17: whatever ends a device's service, requests in flight finish first.

TEST_F(DeviceTest, C17ResetWaitsForRequests) {
  ASSERT_TRUE(driver.bring_up(kDeviceFeatures, 8));
  device.hold();
  const std::uint64_t buffer = guest->allocate(16);
  driver.ring().add({{buffer, 8, false}, {buffer + 8, 8, true}});
  driver.publish();
  device.wait_held(1);
  std::atomic<bool> done{false};
  std::thread vcpu([&] {
    driver.reset();
    done = true;
  });
  EXPECT_FALSE(done);
  EXPECT_NE(device.status(), 0);
  device.release();
  vcpu.join();
  EXPECT_EQ(driver.ring().used_index(), 1) << "the request was completed, not dropped";
  EXPECT_EQ(device.resets, 1u);
}

TEST_F(DeviceTest, C17StopThenMemoryGoesAway) {
  ASSERT_TRUE(driver.bring_up(kDeviceFeatures, 8));
  device.hold();
  const std::uint64_t buffer = guest->allocate(16);
  for (int i = 0; i < 3; ++i) driver.ring().add({{buffer, 8, false}, {buffer + 8, 8, true}});
  driver.publish();
  device.wait_held(3);
  std::thread releaser([&] { device.release(); });
  device.stop_and_wait();
  guest.reset();
  releaser.join();
}

Task<void> stop(Device& device) { co_await device.stop(); }

TEST_F(DeviceTest, C17StopCanBeAwaited) {
  ASSERT_TRUE(driver.bring_up(kDeviceFeatures, 8));
  EXPECT_EQ(echo("a"), "a");
  auto control = Executor::create().value();
  control->block_on([&] { return stop(device); });
  // The driver may do what it likes now.
  driver.reset();
  EXPECT_FALSE(driver.bring_up(kDeviceFeatures, 8));
}

TEST_F(DeviceTest, StoppingWhatNeverRan) {
  device.stop_and_wait();
  device.stop_and_wait();
}

TEST_F(DeviceTest, DisablingAQueueWaitsAndStopsIt) {
  ASSERT_TRUE(driver.bring_up(kDeviceFeatures, 8));
  EXPECT_EQ(echo("a"), "a");
  device.disable_queue(0);
  EXPECT_FALSE(device.queue_enabled(0));
  const std::uint64_t buffer = guest->allocate(16);
  driver.ring().add({{buffer, 8, true}});
  driver.publish();
  device.kick(0);
  driver.reset();
  EXPECT_EQ(driver.ring().used_index(), 1);
}

TEST_F(DeviceTest, ConfigurationSpaceHasAnEnd) {
  std::array<std::byte, 8> data;
  data.fill(std::byte{0xff});
  device.read_config(4, data);
  EXPECT_EQ(data[0], std::byte{0x11});
  EXPECT_EQ(data[1], std::byte{0x11});
  for (std::size_t i = 2; i < 8; ++i) EXPECT_EQ(data[i], std::byte{0});
  device.read_config(~std::uint64_t{0}, data);
  EXPECT_EQ(data[0], std::byte{0});

  const std::array<std::byte, 4> ones{std::byte{1}, std::byte{1}, std::byte{1}, std::byte{1}};
  device.write_config(3, ones);
  device.write_config(~std::uint64_t{0} - 1, ones);
  EXPECT_EQ(device.bytes[3], std::byte{0x11});
  device.write_config(2, ones);
  EXPECT_EQ(device.bytes[3], std::byte{1});
}

TEST_F(DeviceTest, ConfigurationChangesAreAnnounced) {
  const std::uint32_t before = device.config_generation();
  device.change();
  EXPECT_NE(device.config_generation(), before);
  EXPECT_EQ(driver.sink().config().count(), 0u) << "no driver yet";
  ASSERT_TRUE(driver.bring_up(kDeviceFeatures, 8));
  device.change();
  EXPECT_EQ(driver.sink().config().count(), 1u);
}

// Two queues on two executors and two vCPUs (for the thread sanitizer).
TEST(DeviceRace, QueuesOnTheirOwnExecutors) {
  TestGuest guest;
  auto a = ExecutorThread::start().value();
  auto b = ExecutorThread::start().value();
  EchoDevice device(guest.memory(), {&a->executor(), &b->executor()}, 2, 64);
  DirectDriver driver(device, guest);
  ASSERT_TRUE(driver.bring_up(kDeviceFeatures, 64));
  const std::array<std::uint64_t, 2> buffers{guest.allocate(64 * 32), guest.allocate(64 * 32)};
  auto vcpu = [&](unsigned q) {
    MockRing& ring = driver.ring(q);
    std::array<std::uint32_t, 64> expected{};
    std::vector<std::uint32_t> free_slots;
    for (std::uint32_t i = 0; i < 32; ++i) free_slots.push_back(i);
    std::array<std::uint32_t, 64> slot_of{};
    std::uint32_t sent = 0, received = 0;
    while (received < 3000) {
      while (sent < 3000 && !free_slots.empty()) {
        const std::uint32_t slot = free_slots.back();
        free_slots.pop_back();
        const std::uint64_t at = buffers[q] + slot * 32;
        store_shared<std::uint32_t>(guest.at(at), sent);
        const std::uint16_t head = ring.add({{at, 4, false}, {at + 16, 4, true}});
        slot_of[head] = slot;
        expected[head] = sent++;
      }
      driver.publish(q);
      const auto used = driver.wait(q);
      const std::uint32_t slot = slot_of[used.id];
      ASSERT_EQ(load_shared<std::uint32_t>(guest.at(buffers[q] + slot * 32 + 16)),
                expected[used.id]);
      free_slots.push_back(slot);
      ++received;
    }
  };
  std::thread one([&] { vcpu(0); });
  vcpu(1);
  one.join();
  device.stop_and_wait();
}

}  // namespace
}  // namespace platter::virtio
