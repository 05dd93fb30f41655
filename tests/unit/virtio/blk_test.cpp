// The virtio-blk device: configuration, cache modes, resize, many queues, stopping (C17).
#include "virtio/blk.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <random>
#include <thread>

#include "unit/virtio/blk_fixture.h"

namespace platter::virtio {
namespace {

using testing::TestGuest;

constexpr std::uint64_t kFlushFeature = bit(9);
constexpr std::uint64_t kWceFeature = bit(11);

template <class T>
T config(BlkDevice& device, std::uint64_t offset) {
  std::array<std::byte, sizeof(T)> bytes;
  device.read_config(offset, bytes);
  return load_le<T>(bytes.data());
}
void set_writeback(BlkDevice& device, std::uint8_t value) {
  const std::array<std::byte, 1> byte{std::byte{value}};
  device.write_config(32, byte);
}

struct BlkTest : BlkFixture {
  BlkTest()
      : BlkFixture({.queues = 3, .queue_size = 128}, {.read_only = false}, 1,
                   {.request_alignment = 4096,
                    .discard_alignment = 65536,
                    .optimal_transfer = 65536,
                    .native_fua = true}) {}
};

TEST_F(BlkTest, EveryOfferedFeatureHasItsFields) {
  EXPECT_EQ(device->device_id(), 2);
  EXPECT_EQ(config<std::uint64_t>(*device, 0), kSize / 512);
  EXPECT_EQ(config<std::uint32_t>(*device, 12), 126u) << "seg_max";
  EXPECT_EQ(config<std::uint16_t>(*device, 16), 2u) << "cylinders";
  EXPECT_EQ(config<std::uint8_t>(*device, 18), 16u) << "heads";
  EXPECT_EQ(config<std::uint8_t>(*device, 19), 63u) << "sectors";
  EXPECT_EQ(config<std::uint32_t>(*device, 20), 512u) << "blk_size";
  EXPECT_EQ(config<std::uint8_t>(*device, 24), 3u) << "physical_block_exp";
  EXPECT_EQ(config<std::uint16_t>(*device, 26), 8u) << "min_io_size";
  EXPECT_EQ(config<std::uint32_t>(*device, 28), 128u) << "opt_io_size";
  EXPECT_EQ(config<std::uint8_t>(*device, 32), 1u) << "writeback";
  EXPECT_EQ(config<std::uint16_t>(*device, 34), 3u) << "num_queues";
  EXPECT_EQ(config<std::uint32_t>(*device, 36), BlkDevice::kMaxRangeSectors);
  EXPECT_EQ(config<std::uint32_t>(*device, 40), BlkDevice::kMaxRangeSegments);
  EXPECT_EQ(config<std::uint32_t>(*device, 44), 128u) << "discard_sector_alignment";
  EXPECT_EQ(config<std::uint32_t>(*device, 48), BlkDevice::kMaxRangeSectors);
  EXPECT_EQ(config<std::uint32_t>(*device, 52), BlkDevice::kMaxRangeSegments);
  EXPECT_EQ(config<std::uint8_t>(*device, 56), 1u) << "write_zeroes_may_unmap";
  EXPECT_EQ(config<std::uint64_t>(*device, 60), 0u) << "the end";
  // SEG_MAX, GEOMETRY, BLK_SIZE, FLUSH, TOPOLOGY, CONFIG_WCE, MQ, DISCARD, WRITE_ZEROES and the
  // rings' own.
  EXPECT_EQ(device->offered_features(), bit(2) | bit(4) | bit(6) | bit(9) | bit(10) | bit(11) |
                                            bit(12) | bit(13) | bit(14) | kFeatureIndirectDesc |
                                            kFeatureEventIdx | kFeatureVersion1);
}

TEST(BlkOptions, AreChecked) {
  TestGuest guest;
  const NodePtr node = make_memory_node("disk", 1 << 20);
  auto thread = ExecutorThread::start().value();
  std::vector<Executor*> one{&thread->executor()};
  const auto fails = [&](const BlkOptions& options, std::vector<Executor*> executors) {
    return !BlkDevice::create(guest.memory(), *node, options, std::move(executors)).has_value();
  };
  EXPECT_FALSE(fails({}, one));
  EXPECT_TRUE(fails({}, {}));
  EXPECT_TRUE(fails({.queues = 0}, one));
  EXPECT_TRUE(fails({.queues = 65}, one));
  for (std::uint16_t size : std::array<std::uint16_t, 4>{0, 2, 100, 2048}) {
    EXPECT_TRUE(fails({.queue_size = size}, one)) << size;
  }
  for (std::uint32_t size : {0u, 256u, 513u, 8192u}) {
    EXPECT_TRUE(fails({.logical_block_size = size}, one)) << size;
  }
}

TEST(BlkReadOnlyNode, MakesAReadOnlyDevice) {
  TestGuest guest;
  const NodePtr node =
      BlockNode::create(*find_driver("memory"), std::make_unique<WatchedDisk>(1 << 20), "disk", "",
                        OpenFlags{.read_only = true});
  auto thread = ExecutorThread::start().value();
  auto device = BlkDevice::create(guest.memory(), *node, {}, {&thread->executor()}).value();
  EXPECT_TRUE(device->read_only());
  EXPECT_NE(device->offered_features() & bit(5), 0u);
  EXPECT_EQ(device->offered_features() & (bit(13) | bit(14)), 0u);
  EXPECT_EQ(config<std::uint32_t>(*device, 36), 0u);
}

struct CacheTest : BlkFixture {};

TEST_F(CacheTest, WritesMayWaitForAFlush) {
  bring_up();
  EXPECT_EQ(config<std::uint8_t>(*device, 32), 1u);
  driver->write(0, pattern(512, 1));
  EXPECT_EQ(disk->writes, 1u);
  EXPECT_EQ(disk->durable_writes, 0u);
}

TEST_F(CacheTest, ADriverThatCannotFlushGetsDurableWrites) {
  ASSERT_TRUE(driver->bring_up(device->offered_features() & ~(kFlushFeature | kWceFeature), 64));
  driver->write(0, pattern(512, 1));
  EXPECT_EQ(disk->durable_writes, 1u);
  driver->ranges(kBlkWriteZeroes, {{0, 1, 0}});
  EXPECT_EQ(disk->durable_writes, 2u);
  set_writeback(*device, 1);
  driver->write(0, pattern(512, 1));
  EXPECT_EQ(disk->durable_writes, 3u) << "CONFIG_WCE was not negotiated";
  EXPECT_EQ(disk->writes, 0u);
}

TEST_F(CacheTest, WithoutFlushTheModeStartsAsWritethrough) {
  ASSERT_TRUE(driver->bring_up(device->offered_features() & ~kFlushFeature, 64));
  EXPECT_EQ(config<std::uint8_t>(*device, 32), 0u);
}

TEST_F(CacheTest, TheDriverMaySwitch) {
  bring_up();
  set_writeback(*device, 0);
  EXPECT_EQ(config<std::uint8_t>(*device, 32), 0u);
  driver->write(0, pattern(512, 1));
  EXPECT_EQ(disk->durable_writes, 1u);
  set_writeback(*device, 1);
  driver->write(0, pattern(512, 1));
  EXPECT_EQ(disk->writes, 1u);
  set_writeback(*device, 0);
  driver->reset();
  EXPECT_EQ(config<std::uint8_t>(*device, 32), 1u) << "back to its own mode";
}

TEST_F(CacheTest, OtherFieldsAreReadOnly) {
  bring_up();
  std::array<std::byte, 60> ones;
  ones.fill(std::byte{0xff});
  device->write_config(0, std::span(ones).first(32));
  device->write_config(33, std::span(ones).first(27));
  EXPECT_EQ(config<std::uint64_t>(*device, 0), kSize / 512);
  EXPECT_EQ(config<std::uint16_t>(*device, 34), 1u);
}

struct WritethroughTest : BlkFixture {
  WritethroughTest() : BlkFixture({.writeback = false}) {}
};

TEST_F(WritethroughTest, IsWhatTheMachineAskedFor) {
  bring_up();
  EXPECT_EQ(config<std::uint8_t>(*device, 32), 0u);
  driver->write(0, pattern(512, 1));
  EXPECT_EQ(disk->durable_writes, 1u);
}

TEST_F(CacheTest, GrowthIsAnnounced) {
  bring_up();
  const auto generation = device->config_generation();
  EXPECT_EQ(driver->read(kSize / 512, 512).status, kIoError);
  disk->disk().resize(2 * kSize);
  device->capacity_changed();
  driver->wait_config();
  EXPECT_NE(device->config_generation(), generation);
  EXPECT_EQ(config<std::uint64_t>(*device, 0), 2 * kSize / 512);
  EXPECT_EQ(driver->read(kSize / 512, 512).status, kOk);
  disk->disk().resize(kSize / 2);
  device->capacity_changed();
  EXPECT_EQ(driver->read(kSize / 512 - 1, 512).status, kIoError);
}

// C17 with storage that takes its time.

TEST_F(CacheTest, C17StopFinishesWhatIsInFlight) {
  bring_up();
  AsyncEvent event;
  disk->held = &event;
  const std::uint64_t header = driver->put_header(kBlkIn, 0);
  const std::uint64_t in = guest->allocate(8 * 513);
  for (std::uint32_t i = 0; i < 8; ++i) {
    driver->ring().add({{header, 16, false}, {in + i * 513, 513, true}});
  }
  driver->publish();
  for (unsigned n = 0; n != 8; n = disk->waiting) disk->waiting.wait(n);
  std::thread storage([&] { event.set(); });
  device->stop_and_wait();
  for (int i = 0; i < 8; ++i) EXPECT_TRUE(driver->ring().take_used());
  // No one touches the guest's memory any more: it may go.
  storage.join();
  driver.reset();
  device.reset();
  guest.reset();
}

TEST_F(CacheTest, C17ResetWithRequestsInFlight) {
  bring_up();
  for (int round = 0; round < 20; ++round) {
    const std::size_t mark = guest->mark();
    const std::uint64_t header = driver->put_header(kBlkIn, 0);
    const std::uint64_t in = guest->allocate(513);
    for (int i = 0; i < 10; ++i) driver->ring().add({{header, 16, false}, {in, 513, true}});
    driver->publish();
    driver->reset();
    EXPECT_EQ(device->status(), 0);
    guest->release(mark);
    bring_up();
  }
}

// Queues on several executors, several vCPUs, one disk: each queue has its own part of it.
struct MultiQueueTest : BlkFixture {
  MultiQueueTest() : BlkFixture({.queues = 4, .queue_size = 32}, {.read_only = false}, 2) {}
};

TEST_F(MultiQueueTest, QueuesWorkSideBySide) {
  bring_up(32);
  constexpr unsigned kQueues = 4;
  constexpr unsigned kPart = kSize / 512 / kQueues;  // sectors
  struct Slot {
    std::uint64_t header, data, status;
  };
  std::array<std::array<Slot, 8>, kQueues> slots;
  for (auto& queue : slots) {
    for (Slot& s : queue) {
      s.header = guest->allocate(16);
      s.data = guest->allocate(4096);
      s.status = guest->allocate(1);
    }
  }
  const auto vcpu = [&](unsigned q) {
    testing::MockRing& ring = driver->ring(q);
    std::minstd_rand random(q + 1);
    std::vector<std::uint8_t> model(kPart, 0);  // what each sector holds
    for (int round = 0; round < 60; ++round) {
      std::vector<std::pair<std::size_t, std::uint32_t>> sent;  // slot, sector (in its part)
      const bool write = random() % 2 == 0;
      for (std::size_t i = 0; i < 8; ++i) {
        // One sector range per slot, so that requests in flight do not meet.
        const auto sector =
            static_cast<std::uint32_t>(i * (kPart / 8) + random() % (kPart / 8 - 8));
        const Slot& s = slots[q][i];
        store_le<std::uint32_t>(guest->at(s.header), write ? kBlkOut : kBlkIn);
        store_le<std::uint64_t>(guest->at(s.header) + 8, q * kPart + sector);
        *guest->at(s.status) = std::byte{0xee};
        if (write) {
          const auto value = static_cast<std::uint8_t>(random());
          std::memset(guest->at(s.data), value, 4096);
          for (unsigned k = 0; k < 8; ++k) model[sector + k] = value;
        }
        ring.add({{s.header, 16, false}, {s.data, 4096, !write}, {s.status, 1, true}});
        sent.emplace_back(i, sector);
      }
      driver->publish(q);
      for (std::size_t i = 0; i < sent.size(); ++i) driver->wait(q);
      for (const auto& [i, sector] : sent) {
        ASSERT_EQ(*guest->at(slots[q][i].status), std::byte{kOk});
        for (unsigned k = 0; !write && k < 8; ++k) {
          ASSERT_EQ(guest->at(slots[q][i].data)[k * 512], std::byte{model[sector + k]});
        }
      }
    }
  };
  std::vector<std::thread> vcpus;
  for (unsigned q = 0; q < kQueues; ++q) vcpus.emplace_back(vcpu, q);
  for (std::thread& t : vcpus) t.join();
  EXPECT_THAT(reports(), ::testing::IsEmpty());
}

}  // namespace
}  // namespace platter::virtio
