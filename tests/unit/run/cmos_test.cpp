#include "tools/run/cmos.h"

#include <gtest/gtest.h>

#include <array>

#include "tools/run/memory.h"

namespace platter::run {
namespace {

// 2026-11-22 14:05:09 UTC, a Sunday.
constexpr std::time_t kNow = 1795356309;

std::uint8_t get(Cmos& cmos, std::uint8_t index) {
  const std::array<std::byte, 1> select{std::byte{index}};
  cmos.write(0, select);
  std::array<std::byte, 1> value{};
  cmos.read(1, value);
  return std::to_integer<std::uint8_t>(value[0]);
}
void set(Cmos& cmos, std::uint8_t index, std::uint8_t value) {
  const std::array<std::byte, 1> select{std::byte{index}};
  cmos.write(0, select);
  const std::array<std::byte, 1> data{std::byte{value}};
  cmos.write(1, data);
}

TEST(Cmos, ClockInBcdAndBinaryInTwelveAndTwentyFourHours) {
  Cmos cmos({64 * kMiB, 0, 1}, [] { return kNow; });
  EXPECT_EQ(get(cmos, 0x00), 0x09);
  EXPECT_EQ(get(cmos, 0x02), 0x05);
  EXPECT_EQ(get(cmos, 0x04), 0x14);
  EXPECT_EQ(get(cmos, 0x06), 0x01);
  EXPECT_EQ(get(cmos, 0x07), 0x22);
  EXPECT_EQ(get(cmos, 0x08), 0x11);
  EXPECT_EQ(get(cmos, 0x09), 0x26);
  EXPECT_EQ(get(cmos, 0x32), 0x20);
  set(cmos, 0x0b, 0x04);
  EXPECT_EQ(get(cmos, 0x04), 0x82) << "2 in the afternoon";
  EXPECT_EQ(get(cmos, 0x07), 22);
}

TEST(Cmos, MemorySizesAsFirmwareReadsThem) {
  Cmos cmos({kLowRamLimit, 5 * kGiB, 3}, [] { return kNow; });
  const auto word = [&cmos](std::uint8_t index) {
    return get(cmos, index) | get(cmos, static_cast<std::uint8_t>(index + 1)) << 8;
  };
  EXPECT_EQ(word(0x15), 640);
  EXPECT_EQ(word(0x17), 0xffff) << "capped";
  EXPECT_EQ(word(0x34), static_cast<int>((kLowRamLimit - 16 * kMiB) / (64 * kKiB)));
  EXPECT_EQ(word(0x5b), (5 * 16384) & 0xffff);
  EXPECT_EQ(get(cmos, 0x5d), (5 * 16384) >> 16);
  EXPECT_EQ(get(cmos, 0x5f), 2);
}

TEST(Cmos, StatusRegistersKeepWhatTheyMust) {
  Cmos cmos({64 * kMiB, 0, 1}, [] { return kNow; });
  set(cmos, 0x0a, 0xff);
  EXPECT_EQ(get(cmos, 0x0a) & 0x80, 0) << "no update is ever in progress";
  set(cmos, 0x0d, 0);
  EXPECT_EQ(get(cmos, 0x0d), 0x80) << "the battery is good";
  set(cmos, 0x8f, 0x05);
  EXPECT_EQ(get(cmos, 0x0f), 0x05) << "bit 7 of the index is not part of it";
}

}  // namespace
}  // namespace platter::run
