#include "tools/run/bus.h"

#include <gtest/gtest.h>

#include <array>
#include <thread>
#include <vector>

namespace platter::run {
namespace {

class Recorder final : public BusDevice {
 public:
  void read(std::uint64_t offset, std::span<std::byte> data) override {
    for (std::byte& byte : data) byte = static_cast<std::byte>(offset++);
  }
  void write(std::uint64_t offset, std::span<const std::byte> data) override {
    writes.emplace_back(offset, data.size());
  }
  std::vector<std::pair<std::uint64_t, std::size_t>> writes;
};

TEST(Bus, AccessesReachTheDeviceWithTheirOffset) {
  Bus bus;
  auto device = std::make_shared<Recorder>();
  ASSERT_TRUE(bus.add(0x100, 0x10, "device", device));
  std::array<std::byte, 2> data{};
  EXPECT_TRUE(bus.read(0x104, data));
  EXPECT_EQ(data[0], std::byte{4});
  EXPECT_EQ(data[1], std::byte{5});
  EXPECT_TRUE(bus.write(0x10e, data));
  ASSERT_EQ(device->writes.size(), 1U);
  EXPECT_EQ(device->writes[0], std::pair(std::uint64_t{0xe}, std::size_t{2}));
}

TEST(Bus, WhatNobodyHoldsReadsAsOnes) {
  Bus bus;
  auto device = std::make_shared<Recorder>();
  ASSERT_TRUE(bus.add(0x100, 0x10, "device", device));
  std::array<std::byte, 4> data{};
  EXPECT_FALSE(bus.read(0xfe, data)) << "reaches in from below";
  EXPECT_EQ(data[3], std::byte{0xff});
  EXPECT_FALSE(bus.read(0x10e, data)) << "reaches out at the end";
  EXPECT_FALSE(bus.write(0x110, data));
  EXPECT_FALSE(bus.write(~std::uint64_t{0}, data));
  EXPECT_TRUE(device->writes.empty());
}

TEST(Bus, OverlapsAreRefusedWithBothRanges) {
  Bus bus;
  auto device = std::make_shared<Recorder>();
  ASSERT_TRUE(bus.add(0x100, 0x10, "first", device));
  for (auto [base, size] : {std::pair{0x0fful, 2ul},
                            {0x10ful, 1ul},
                            {0x100ul, 0x10ul},
                            {0x90ul, 0x100ul},
                            {0x104ul, 4ul}}) {
    const auto added = bus.add(base, size, "second", device);
    ASSERT_FALSE(added) << std::hex << base;
    EXPECT_EQ(added.error().code(), EEXIST);
    EXPECT_NE(added.error().message().find("'first' [0x100, 0x110)"), std::string::npos);
  }
  EXPECT_TRUE(bus.add(0x110, 1, "after", device));
  EXPECT_TRUE(bus.add(0xff, 1, "before", device));
  EXPECT_FALSE(bus.add(0x200, 0, "empty", device));
  EXPECT_FALSE(bus.add(~std::uint64_t{0}, 2, "wrapping", device));
}

// A device whose handler removes its own entry must live until the handler returns.
TEST(Bus, ADeviceOutlivesTheAccessThatRemovesIt) {
  Bus bus;
  struct Suicidal final : BusDevice {
    Suicidal(Bus& b, bool& g) : bus(b), gone(g) {}
    ~Suicidal() override { gone = true; }
    void read(std::uint64_t, std::span<std::byte>) override {}
    void write(std::uint64_t, std::span<const std::byte>) override {
      EXPECT_TRUE(bus.remove(0x10));
      EXPECT_FALSE(gone);
    }
    Bus& bus;
    bool& gone;
  };
  bool gone = false;
  ASSERT_TRUE(bus.add(0x10, 1, "suicidal", std::make_shared<Suicidal>(bus, gone)));
  std::array<std::byte, 1> data{};
  EXPECT_TRUE(bus.write(0x10, data));
  EXPECT_TRUE(gone);
  EXPECT_FALSE(bus.remove(0x10));
}

TEST(Bus, EntriesComeAndGoUnderAccess) {
  Bus bus;
  std::thread changer([&bus] {
    for (int i = 0; i < 2000; ++i) {
      ASSERT_TRUE(bus.add(0x40, 4, "moving", std::make_shared<Recorder>()));
      ASSERT_TRUE(bus.remove(0x40));
    }
  });
  std::array<std::byte, 4> data{};
  for (int i = 0; i < 2000; ++i) {
    bus.read(0x40, data);
    EXPECT_TRUE(data[0] == std::byte{0} || data[0] == std::byte{0xff});
  }
  changer.join();
}

}  // namespace
}  // namespace platter::run
