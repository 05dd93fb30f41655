// Modern virtio-pci as drivers find and use it (virtio 1.2, 4.1), and the configuration space of
// its function (HOSTILE V-3, V-9, V-10).
#include "virtio/transport_pci.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <map>
#include <optional>

#include "unit/virtio/echo_device.h"
#include "virtio/testing/direct_driver.h"

namespace platter::virtio {
namespace {

using ::testing::ElementsAre;
using testing::FakeLine;
using testing::FakePlatform;
using ::testing::IsEmpty;
using testing::MockRing;
using testing::TestGuest;

constexpr std::uint64_t kPciFeatures = kFeatureVersion1 | kFeatureEventIdx;
constexpr std::uint32_t kBarAddress = 0xe0000000;

struct Decoder final : PciListener {
  void bar_mapped(PciFunction&, unsigned bar, std::uint64_t address, std::uint64_t size) override {
    mapped[bar] = {address, size};
  }
  void bar_unmapped(PciFunction&, unsigned bar) override { mapped.erase(bar); }
  std::map<unsigned, std::pair<std::uint64_t, std::uint64_t>> mapped;
};

struct Structure {
  unsigned at = 0;  // of the capability
  std::uint32_t bar = 0;
  std::uint32_t offset = 0;
  std::uint32_t length = 0;
};

struct PciTest : ::testing::Test {
  PciTest()
      : thread(ExecutorThread::start().value()),
        device(guest.memory(), {&thread->executor()}, 2),
        pci(device, platform, line, 0x010000) {
    pci.set_listener(&decoder);
  }
  ~PciTest() override { device.stop_and_wait(); }

  // Finds a structure as a driver does: by walking the capability list.
  std::optional<Structure> find(std::uint32_t type) {
    for (unsigned at = config(0x34, 1); at != 0; at = config(at + 1, 1)) {
      if (config(at, 1) == 0x09 && config(at + 3, 1) == type) {
        return Structure{at, config(at + 4, 1), config(at + 8, 4), config(at + 12, 4)};
      }
    }
    return std::nullopt;
  }
  unsigned find_msix() {
    unsigned at = config(0x34, 1);
    while (at != 0 && config(at, 1) != 0x11) at = config(at + 1, 1);
    return at;
  }
  std::uint32_t config(unsigned offset, unsigned size) { return pci.read_config(offset, size); }
  std::uint32_t bar(std::uint64_t offset, std::size_t size) {
    std::array<std::byte, 4> data{};
    pci.read_bar(0, offset, std::span(data).first(size));
    return load_le<std::uint32_t>(data.data());
  }
  void bar_write(std::uint64_t offset, std::size_t size, std::uint32_t value) {
    std::array<std::byte, 4> data;
    store_le(data.data(), value);
    pci.write_bar(0, offset, std::span(data).first(size));
  }
  // The common structure lies at the start of the BAR (checked by one of the tests).
  void map() {
    pci.write_config(0x10, 4, kBarAddress);
    pci.write_config(0x04, 2, 0x6);
  }
  bool negotiate(std::uint64_t features) {
    bar_write(20, 1, kStatusAcknowledge | kStatusDriver);
    for (std::uint32_t word : {0u, 1u}) {
      bar_write(8, 4, word);
      bar_write(12, 4, static_cast<std::uint32_t>(features >> (32 * word)));
    }
    bar_write(20, 1, kStatusAcknowledge | kStatusDriver | kStatusFeaturesOk);
    return (bar(20, 1) & kStatusFeaturesOk) != 0;
  }
  void enable(std::uint32_t queue, const SplitRing::Layout& layout) {
    bar_write(22, 2, queue);
    bar_write(24, 2, layout.size);
    const std::array<std::uint64_t, 3> addresses{layout.descriptors, layout.driver, layout.device};
    for (unsigned i = 0; i < 3; ++i) {
      bar_write(32 + 8 * i, 4, static_cast<std::uint32_t>(addresses[i]));
      bar_write(36 + 8 * i, 4, static_cast<std::uint32_t>(addresses[i] >> 32));
    }
    bar_write(28, 2, 1);
  }
  void driver_ok() { bar_write(20, 1, bar(20, 1) | kStatusDriverOk); }
  void program_vector(unsigned vector, std::uint32_t data) {
    const std::uint64_t at = PciTransport::kMsixTableOffset + vector * 16;
    bar_write(at, 4, 0xfee00000);
    bar_write(at + 4, 4, 0);
    bar_write(at + 8, 4, data);
    bar_write(at + 12, 4, 0);
  }

  TestGuest guest;
  std::unique_ptr<ExecutorThread> thread;
  EchoDevice device;
  FakePlatform platform;
  FakeLine line;
  PciTransport pci;
  Decoder decoder;
};

TEST_F(PciTest, Header) {
  EXPECT_EQ(config(0x00, 4), 0x106a1af4u);  // 0x1040 + 42
  EXPECT_EQ(config(0x08, 4), 0x01000001u);  // class and revision
  EXPECT_EQ(config(0x2c, 4), 0x11001af4u);
  EXPECT_EQ(config(0x3d, 1), 1u);
  EXPECT_NE(config(0x06, 2) & 0x10, 0u) << "has capabilities";
  pci.write_config(0x00, 4, 0);
  pci.write_config(0x06, 2, 0xffff);
  EXPECT_EQ(config(0x00, 4), 0x106a1af4u) << "read-only";
  pci.write_config(0x3c, 1, 11);
  EXPECT_EQ(config(0x3c, 1), 11u);
}

TEST_F(PciTest, AccessesOutsideConfigurationSpace) {
  EXPECT_EQ(config(0x100, 4), ~0u);
  EXPECT_EQ(config(0x03, 2), ~0u) << "across dwords";
  EXPECT_EQ(config(0xfe, 4), ~0u);
  EXPECT_EQ(config(0, 0), ~0u);
  EXPECT_EQ(config(0, 8), ~0u);
  EXPECT_EQ(config(~0u, 1), ~0u);
  pci.write_config(0xffff, 4, 0);
  pci.write_config(0x10, 8, 0);
}

TEST_F(PciTest, StructuresAreFoundThroughCapabilities) {
  for (std::uint32_t type : {1u, 2u, 3u, 4u, 5u}) {
    const auto s = find(type);
    ASSERT_TRUE(s) << type;
    EXPECT_EQ(s->bar, 0u);
    EXPECT_LE(std::uint64_t{s->offset} + s->length, PciTransport::kBarSize);
    EXPECT_GE(config(s->at + 2, 1), type == 2 || type == 5 ? 20u : 16u);
  }
  EXPECT_EQ(find(1)->offset, 0u);
  EXPECT_GE(find(1)->length, 56u);
  EXPECT_EQ(config(find(2)->at + 16, 4), 4u) << "notify_off_multiplier";
  EXPECT_GE(find(2)->length, 2u * 4u);
  EXPECT_FALSE(find(8));
  const unsigned msix = find_msix();
  EXPECT_EQ(config(msix + 2, 2), 2u) << "three vectors: two queues, configuration";
  EXPECT_EQ(config(msix + 4, 4), PciTransport::kMsixTableOffset);
  EXPECT_EQ(config(msix + 8, 4), PciTransport::kMsixPendingOffset);
}

TEST_F(PciTest, BarTellsItsSizeAndMoves) {
  pci.write_config(0x10, 4, 0xffffffff);
  EXPECT_EQ(config(0x10, 4), ~(PciTransport::kBarSize - 1));
  EXPECT_EQ(config(0x14, 4), 0u) << "no second BAR";
  pci.write_config(0x04, 2, 0x2);
  EXPECT_THAT(decoder.mapped, IsEmpty()) << "still measuring";
  pci.write_config(0x10, 4, kBarAddress);
  EXPECT_EQ(decoder.mapped.at(0),
            (std::pair<std::uint64_t, std::uint64_t>{kBarAddress, PciTransport::kBarSize}));
  const auto bindings = platform.bindings();
  ASSERT_EQ(bindings.size(), 2u);
  EXPECT_EQ(bindings[1].where,
            (NotifyAddress{AddressSpace::kMemory, kBarAddress + 0x3004, 2, std::nullopt}));
  EXPECT_EQ(bindings[1].event_fd, device.kick_fd(1));

  pci.write_config(0x12, 2, 0xe100);
  EXPECT_EQ(decoder.mapped.at(0).first, 0xe1000000u);
  EXPECT_EQ(platform.bindings()[0].where.address, 0xe1003000u);
  pci.write_config(0x04, 2, 0);
  EXPECT_THAT(decoder.mapped, IsEmpty());
  EXPECT_THAT(platform.bindings(), IsEmpty());
}

TEST_F(PciTest, CommonStructure) {
  bar_write(0, 4, 1);
  EXPECT_EQ(bar(0, 4), 1u);
  EXPECT_EQ(bar(4, 4), 1u) << "VERSION_1";
  bar_write(0, 4, 7);
  EXPECT_EQ(bar(4, 4), 0u);
  EXPECT_EQ(bar(18, 2), 2u) << "queues";
  bar_write(22, 2, 1);
  EXPECT_EQ(bar(24, 2), 16u);
  EXPECT_EQ(bar(30, 2), 1u) << "queue_notify_off";
  bar_write(26, 2, 2);
  EXPECT_EQ(bar(26, 2), 2u);
  bar_write(26, 2, 3);
  EXPECT_EQ(bar(26, 2), 0xffffu) << "no such vector";
  bar_write(16, 2, 0xfff0);
  EXPECT_EQ(bar(16, 2), 0xffffu);
  bar_write(22, 2, 2);
  EXPECT_EQ(bar(24, 2), 0u) << "no such queue";
  EXPECT_EQ(bar(28, 2), 0u);
  EXPECT_EQ(bar(26, 2), 0xffffu);
  bar_write(26, 2, 0);
  EXPECT_EQ(bar(56, 4), 0u) << "beyond the structure";
}

// A driver that sets an address at once must not get a ring at the address's lower half.
TEST_F(PciTest, AddressesAreTakenInOnePieceToo) {
  constexpr std::uint64_t kAddress = 0x1'2345'6000;
  std::array<std::byte, 8> wide;
  for (const std::uint64_t field : {32U, 40U, 48U}) {
    store_le(wide.data(), kAddress + field * 16);
    pci.write_bar(0, field, wide);
    EXPECT_EQ(bar(field, 4), (kAddress + field * 16) & 0xffffffff);
    EXPECT_EQ(bar(field + 4, 4), 1U);
    wide.fill(std::byte{0xff});
    pci.read_bar(0, field, wide);
    EXPECT_EQ(load_le<std::uint64_t>(wide.data()), kAddress + field * 16);
  }
  // The last field ends with the structure.
  pci.read_bar(0, 52, wide);
  EXPECT_EQ(load_le<std::uint64_t>(wide.data()), 1U);
}

TEST_F(PciTest, ServesWithMsix) {
  map();
  const unsigned msix = find_msix();
  pci.write_config(msix + 2, 2, 0x8000);
  program_vector(0, 0x30);
  program_vector(1, 0x31);
  program_vector(2, 0x32);
  ASSERT_TRUE(negotiate(kPciFeatures));
  bar_write(16, 2, 0);
  MockRing first(guest, 8, kPciFeatures), second(guest, 8, kPciFeatures);
  enable(0, first.layout());
  bar_write(26, 2, 1);
  enable(1, second.layout());
  bar_write(26, 2, 2);
  driver_ok();
  EXPECT_EQ(bar(20, 1) & kStatusDriverOk, std::uint32_t{kStatusDriverOk});

  const std::uint64_t buffer = guest.allocate(32);
  second.add({{buffer, 4, false}, {buffer + 16, 4, true}});
  second.publish();
  bar_write(PciTransport::kNotifyOffset + 4, 2, 1);
  platform.messages().wait_for(1);
  EXPECT_THAT(platform.sent(), ElementsAre(MsiMessage{0xfee00000, 0x32}));
  EXPECT_EQ(second.take_used()->length, 4u);

  device.change();
  platform.messages().wait_for(2);
  EXPECT_EQ(platform.sent().back(), (MsiMessage{0xfee00000, 0x30}));
  EXPECT_FALSE(line.level()) << "no INTx beside MSI-X";
  EXPECT_EQ(bar(PciTransport::kIsrOffset, 1), std::uint32_t{kInterruptConfig});
}

TEST_F(PciTest, ServesWithTheInterruptLine) {
  map();
  ASSERT_TRUE(negotiate(kPciFeatures));
  MockRing ring(guest, 8, kPciFeatures);
  enable(0, ring.layout());
  driver_ok();
  const std::uint64_t buffer = guest.allocate(32);
  ring.add({{buffer, 4, false}, {buffer + 16, 4, true}});
  ring.publish();
  bar_write(PciTransport::kNotifyOffset, 2, 0);
  line.edges().wait_for(1);
  EXPECT_TRUE(line.level());
  EXPECT_NE(config(0x06, 2) & 0x8, 0u) << "interrupt status";
  EXPECT_EQ(bar(PciTransport::kIsrOffset, 1), std::uint32_t{kInterruptQueue});
  EXPECT_FALSE(line.level());
  EXPECT_EQ(config(0x06, 2) & 0x8, 0u);
  EXPECT_EQ(bar(PciTransport::kIsrOffset, 1), 0u);
  EXPECT_EQ(ring.take_used()->length, 4u);

  device.change();
  EXPECT_TRUE(line.level());
  pci.write_config(0x04, 2, 0x406);
  EXPECT_FALSE(line.level()) << "interrupt disable";
  pci.write_config(0x04, 2, 0x006);
  EXPECT_TRUE(line.level());
  EXPECT_FALSE(line.repeated());
}

TEST_F(PciTest, ResetTakesVectorsAndQueuesBack) {
  map();
  ASSERT_TRUE(negotiate(kPciFeatures));
  MockRing ring(guest, 8, kPciFeatures);
  enable(0, ring.layout());
  bar_write(26, 2, 1);
  bar_write(16, 2, 0);
  driver_ok();
  device.change();
  bar_write(20, 1, 0);
  EXPECT_EQ(bar(20, 1), 0u);
  EXPECT_EQ(bar(28, 2), 0u);
  EXPECT_EQ(bar(26, 2), 0xffffu);
  EXPECT_EQ(bar(16, 2), 0xffffu);
  EXPECT_EQ(bar(32, 4), 0u);
  EXPECT_FALSE(line.level());
  EXPECT_EQ(decoder.mapped.size(), 1u) << "BARs stay";
}

TEST_F(PciTest, FunctionResetUnmapsToo) {
  map();
  ASSERT_TRUE(negotiate(kPciFeatures));
  driver_ok();
  pci.reset_function();
  EXPECT_EQ(device.status(), 0);
  EXPECT_THAT(decoder.mapped, IsEmpty());
  EXPECT_THAT(platform.bindings(), IsEmpty());
  EXPECT_EQ(config(0x10, 4), 0u);
  EXPECT_EQ(config(0x00, 4), 0x106a1af4u);
  EXPECT_TRUE(find(1)) << "capabilities stay";
}

TEST_F(PciTest, WindowReachesTheBar) {
  const unsigned window = find(5)->at;
  pci.write_config(window + 4, 1, 0);
  pci.write_config(window + 8, 4, 18);  // num_queues
  pci.write_config(window + 12, 4, 2);
  EXPECT_EQ(config(window + 16, 2), 2u);
  pci.write_config(window + 8, 4, 20);  // device_status
  pci.write_config(window + 12, 4, 1);
  pci.write_config(window + 16, 1, kStatusAcknowledge);
  EXPECT_EQ(device.status(), kStatusAcknowledge);
  EXPECT_EQ(config(window + 16, 1), std::uint32_t{kStatusAcknowledge});
}

TEST_F(PciTest, WindowRefusesWhatIsNotThere) {
  const unsigned window = find(5)->at;
  device.write_status(kStatusAcknowledge);
  const auto attempt = [&](std::uint32_t in_bar, std::uint32_t offset, std::uint32_t length) {
    pci.write_config(window + 4, 1, in_bar);
    pci.write_config(window + 8, 4, offset);
    pci.write_config(window + 12, 4, length);
    pci.write_config(window + 16, 4, 0);
    config(window + 16, 4);
  };
  attempt(1, 20, 1);
  attempt(255, 20, 1);
  attempt(0, 20, 0);
  attempt(0, 20, 3);
  attempt(0, 20, 0xffffffff);
  attempt(0, 0xfffffffc, 4);
  attempt(0, PciTransport::kBarSize, 4);
  attempt(0, 21, 2);
  EXPECT_EQ(device.status(), kStatusAcknowledge) << "nothing reached the device";
}

TEST_F(PciTest, DeviceConfigurationAndOddBarAccesses) {
  EXPECT_EQ(bar(PciTransport::kDeviceOffset, 4), 0x11111111u);
  EXPECT_EQ(bar(PciTransport::kDeviceOffset + 4, 4), 0x1111u);
  EXPECT_EQ(bar(PciTransport::kDeviceOffset + 0xffc, 4), 0u);
  bar_write(PciTransport::kDeviceOffset + 1, 1, 0x77);
  EXPECT_EQ(device.bytes[1], std::byte{0x77});
  EXPECT_EQ(bar(0x1ffe, 4), 0u);
  EXPECT_EQ(bar(PciTransport::kBarSize - 1, 4), 0u);
  EXPECT_EQ(bar(~std::uint64_t{0} - 1, 4), 0u);
  bar_write(PciTransport::kNotifyOffset + 0xffc, 2, 0);  // a queue that does not exist
  bar_write(PciTransport::kBarSize, 4, 0);
  std::array<std::byte, 8> wide{};
  pci.read_bar(0, 20, wide);
  pci.write_bar(3, 20, wide);
}

}  // namespace
}  // namespace platter::virtio
