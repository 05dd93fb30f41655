// The virtio-mmio registers, as a driver meets them (virtio 1.2, 4.2).
#include "virtio/transport_mmio.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <array>

#include "unit/virtio/echo_device.h"
#include "virtio/testing/direct_driver.h"

namespace platter::virtio {
namespace {

using testing::FakeLine;
using testing::FakePlatform;
using testing::MockRing;
using testing::TestGuest;

constexpr std::uint64_t kBase = 0xd0000000;
constexpr std::uint64_t kMmioFeatures = kFeatureVersion1 | kFeatureEventIdx;

struct MmioTest : ::testing::Test {
  MmioTest()
      : thread(ExecutorThread::start().value()),
        device(guest.memory(), {&thread->executor()}, 2),
        transport(device, platform, line, kBase) {}
  ~MmioTest() override { device.stop_and_wait(); }

  std::uint32_t read(std::uint64_t offset) {
    std::array<std::byte, 4> data;
    transport.read(offset, data);
    return load_le<std::uint32_t>(data.data());
  }
  void write(std::uint64_t offset, std::uint32_t value) {
    std::array<std::byte, 4> data;
    store_le(data.data(), value);
    transport.write(offset, data);
  }
  bool negotiate(std::uint64_t features) {
    write(0x70, kStatusAcknowledge | kStatusDriver);
    for (std::uint32_t word : {0u, 1u}) {
      write(0x24, word);
      write(0x20, static_cast<std::uint32_t>(features >> (32 * word)));
    }
    write(0x70, kStatusAcknowledge | kStatusDriver | kStatusFeaturesOk);
    return (read(0x70) & kStatusFeaturesOk) != 0;
  }
  void enable(std::uint32_t queue, const SplitRing::Layout& layout) {
    write(0x30, queue);
    write(0x38, layout.size);
    write(0x80, static_cast<std::uint32_t>(layout.descriptors));
    write(0x84, static_cast<std::uint32_t>(layout.descriptors >> 32));
    write(0x90, static_cast<std::uint32_t>(layout.driver));
    write(0x94, static_cast<std::uint32_t>(layout.driver >> 32));
    write(0xa0, static_cast<std::uint32_t>(layout.device));
    write(0xa4, static_cast<std::uint32_t>(layout.device >> 32));
    write(0x44, 1);
  }
  void driver_ok() { write(0x70, read(0x70) | kStatusDriverOk); }

  TestGuest guest;
  std::unique_ptr<ExecutorThread> thread;
  EchoDevice device;
  FakePlatform platform;
  FakeLine line;
  MmioTransport transport;
};

TEST_F(MmioTest, IdentifiesItself) {
  EXPECT_EQ(read(0x00), 0x74726976u);
  EXPECT_EQ(read(0x04), 2u);
  EXPECT_EQ(read(0x08), 42u);
  EXPECT_EQ(read(0x0c), 0x1af4u);
  EXPECT_EQ(read(0xb0), 0xffffffffu) << "no shared memory";
  EXPECT_EQ(read(0xbc), 0xffffffffu);
}

TEST_F(MmioTest, ShowsFeaturesByWords) {
  write(0x14, 0);
  EXPECT_EQ(read(0x10), static_cast<std::uint32_t>(device.offered_features()));
  write(0x14, 1);
  EXPECT_EQ(read(0x10), static_cast<std::uint32_t>(device.offered_features() >> 32));
  write(0x14, 2);
  EXPECT_EQ(read(0x10), 0u);
}

TEST_F(MmioTest, RefusesFeaturesItDidNotOffer) {
  EXPECT_FALSE(negotiate(kMmioFeatures | bit(20)));
  write(0x70, 0);
  EXPECT_TRUE(negotiate(kMmioFeatures));
}

TEST_F(MmioTest, QueuesHaveSizes) {
  EXPECT_EQ(read(0x34), 16u);
  write(0x30, 1);
  EXPECT_EQ(read(0x34), 16u);
  write(0x30, 2);
  EXPECT_EQ(read(0x34), 0u);
  EXPECT_EQ(read(0x44), 0u);
  write(0x30, 0xffffffff);
  EXPECT_EQ(read(0x34), 0u);
}

TEST_F(MmioTest, BindsANotificationForEachQueue) {
  const auto bindings = platform.bindings();
  ASSERT_EQ(bindings.size(), 2u);
  for (unsigned q = 0; q < 2; ++q) {
    EXPECT_EQ(bindings[q].where,
              (NotifyAddress{AddressSpace::kMemory, kBase + 0x50, 4, std::uint64_t{q}}));
    EXPECT_EQ(bindings[q].event_fd, device.kick_fd(q));
  }
}

TEST_F(MmioTest, ServesAndInterrupts) {
  ASSERT_TRUE(negotiate(kMmioFeatures));
  MockRing ring(guest, 8, kMmioFeatures);
  enable(0, ring.layout());
  EXPECT_EQ(read(0x44), 1u);
  driver_ok();
  const std::uint64_t buffer = guest.allocate(32);
  guest.at(buffer)[0] = std::byte{'x'};
  ring.add({{buffer, 1, false}, {buffer + 16, 1, true}});
  ring.publish();
  // A trapped notification; bound ones write the eventfd, which is the same.
  write(0x50, 0);
  line.edges().wait_for(1);
  EXPECT_TRUE(line.level());
  EXPECT_EQ(read(0x60), std::uint32_t{kInterruptQueue});
  EXPECT_EQ(ring.take_used()->length, 1u);
  EXPECT_EQ(guest.at(buffer)[16], std::byte{'x'});

  write(0x64, kInterruptQueue);
  EXPECT_EQ(read(0x60), 0u);
  EXPECT_FALSE(line.level());
  EXPECT_FALSE(line.repeated());
}

TEST_F(MmioTest, ACauseLeftByAnAcknowledgementIsAnEdgeAgain) {
  ASSERT_TRUE(negotiate(kMmioFeatures));
  MockRing ring(guest, 8, kMmioFeatures);
  enable(0, ring.layout());
  driver_ok();
  const std::uint64_t buffer = guest.allocate(32);
  ring.add({{buffer, 1, false}, {buffer + 16, 1, true}});
  ring.publish();
  write(0x50, 0);
  line.edges().wait_for(1);
  const std::uint32_t seen = read(0x60);
  EXPECT_EQ(seen, std::uint32_t{kInterruptQueue});
  device.change();  // the line is high already
  write(0x64, seen);
  EXPECT_EQ(read(0x60), std::uint32_t{kInterruptConfig});
  EXPECT_TRUE(line.level());
  EXPECT_EQ(line.edges().count(), 2U) << "an edge-triggered input would never hear of the change";
  write(0x64, kInterruptConfig);
  EXPECT_EQ(read(0x60), 0U);
  EXPECT_FALSE(line.level());
  write(0x64, kInterruptConfig);
  EXPECT_EQ(line.edges().count(), 2U);
  EXPECT_FALSE(line.repeated());
}

TEST_F(MmioTest, TellsOfConfigurationChanges) {
  ASSERT_TRUE(negotiate(kMmioFeatures));
  driver_ok();
  const std::uint32_t generation = read(0xfc);
  device.change();
  EXPECT_EQ(read(0x60), std::uint32_t{kInterruptConfig});
  EXPECT_NE(read(0xfc), generation);
  EXPECT_EQ(read(0x100) & 0xff, 0x22u);
}

TEST_F(MmioTest, ResetClearsEverything) {
  ASSERT_TRUE(negotiate(kMmioFeatures));
  MockRing ring(guest, 8, kMmioFeatures);
  enable(0, ring.layout());
  driver_ok();
  device.change();
  EXPECT_TRUE(line.level());
  write(0x70, 0);
  EXPECT_EQ(read(0x70), 0u);
  EXPECT_EQ(read(0x44), 0u);
  EXPECT_EQ(read(0x60), 0u);
  EXPECT_FALSE(line.level());
}

TEST_F(MmioTest, QueueReadyCanBeTakenBack) {
  ASSERT_TRUE(negotiate(kMmioFeatures));
  MockRing ring(guest, 8, kMmioFeatures);
  enable(1, ring.layout());
  driver_ok();
  EXPECT_EQ(read(0x44), 1u);
  write(0x44, 0);
  EXPECT_EQ(read(0x44), 0u);
}

TEST_F(MmioTest, OddAccessesDoNothing) {
  ASSERT_TRUE(negotiate(kMmioFeatures));
  std::array<std::byte, 8> data;
  for (const std::size_t size : {std::size_t{1}, std::size_t{2}, std::size_t{8}}) {
    data.fill(std::byte{0xff});
    transport.read(0x00, std::span(data).first(size));
    EXPECT_EQ(data[0], std::byte{0});
    data.fill(std::byte{0});
    transport.write(0x70, std::span(data).first(size));
  }
  EXPECT_EQ(read(0x02), 0u);
  EXPECT_NE(read(0x70), 0u) << "not reset by a byte";
  write(0x50, 77);  // a queue that does not exist
  write(0x50, 0xffffffff);
  write(0x04, 1);  // read-only
  EXPECT_EQ(read(0x04), 2u);
  write(0x38, 0x10008);  // larger than 16 bits is not truncated to a good size
  EXPECT_EQ(device.queue_size(0), 0);
}

TEST_F(MmioTest, ConfigurationSpaceTakesAnyWidth) {
  std::array<std::byte, 2> data{std::byte{7}, std::byte{8}};
  transport.write(0x101, data);
  std::array<std::byte, 8> back;
  transport.read(0x100, back);
  EXPECT_EQ(back[1], std::byte{7});
  EXPECT_EQ(back[2], std::byte{8});
  transport.read(0x1ff, std::span(back).first(1));
  EXPECT_EQ(back[0], std::byte{0});
}

TEST(Mmio, WorksWithoutBoundNotifications) {
  TestGuest guest;
  auto thread = ExecutorThread::start().value();
  EchoDevice device(guest.memory(), {&thread->executor()});
  FakePlatform platform;
  platform.refuse_bindings = true;
  FakeLine line;
  {
    MmioTransport transport(device, platform, line, kBase);
  }
  EXPECT_TRUE(platform.bindings().empty());
}

TEST(Mmio, UnbindsWhenItGoes) {
  TestGuest guest;
  auto thread = ExecutorThread::start().value();
  EchoDevice device(guest.memory(), {&thread->executor()});
  FakePlatform platform;
  FakeLine line;
  {
    MmioTransport transport(device, platform, line, kBase);
    EXPECT_EQ(platform.bindings().size(), 1u);
  }
  EXPECT_TRUE(platform.bindings().empty());
}

}  // namespace
}  // namespace platter::virtio
