#include "block/base/bytes.h"

#include <gtest/gtest.h>

#include <array>

#include "block/base/checked.h"
#include "block/base/error.h"

namespace platter {
namespace {

TEST(Reader, ReadsBothByteOrders) {
  const std::array<std::byte, 6> raw{std::byte{0x12}, std::byte{0x34}, std::byte{0x78},
                                     std::byte{0x56}, std::byte{0x34}, std::byte{0x12}};
  Reader reader(raw);
  EXPECT_EQ(reader.be<std::uint16_t>(), 0x1234);
  EXPECT_EQ(reader.le<std::uint32_t>(), 0x12345678U);
  EXPECT_TRUE(reader.ok());
  EXPECT_EQ(reader.remaining(), 0U);
}

TEST(Reader, PastTheEndGivesZeroAndStaysFailed) {
  const std::array<std::byte, 3> raw{std::byte{1}, std::byte{2}, std::byte{3}};
  Reader reader(raw);
  EXPECT_EQ(reader.be<std::uint32_t>(), 0U);
  EXPECT_FALSE(reader.ok());
  EXPECT_EQ(reader.be<std::uint8_t>(), 0U) << "a failed reader gives nothing more";
}

TEST(Writer, RoundTripsThroughReader) {
  std::array<std::byte, 15> raw{};
  Writer writer(raw);
  writer.be<std::uint64_t>(0x1122334455667788);
  writer.le<std::uint32_t>(0xa0b0c0d0);
  writer.zeroes(3);
  ASSERT_TRUE(writer.ok());
  writer.be<std::uint8_t>(1);
  EXPECT_FALSE(writer.ok());
  Reader reader(raw);
  EXPECT_EQ(reader.be<std::uint64_t>(), 0x1122334455667788U);
  EXPECT_EQ(reader.le<std::uint32_t>(), 0xa0b0c0d0U);
}

TEST(Checked, OverflowIsAnAnswer) {
  EXPECT_FALSE(checked_add<std::uint64_t>(~0ULL, 1));
  EXPECT_FALSE(checked_mul<std::uint64_t>(1ULL << 40, 1ULL << 40));
  EXPECT_EQ(checked_add<std::uint64_t>(2, 3), 5U);
  EXPECT_TRUE(range_within(10, 0, 10));
  EXPECT_FALSE(range_within(10, 1, 10));
  EXPECT_FALSE(range_within(1, ~0ULL, 10)) << "offset + length wraps";
  EXPECT_TRUE(ranges_overlap(0, 10, 9, 1));
  EXPECT_FALSE(ranges_overlap(0, 10, 10, 1));
  EXPECT_EQ(div_round_up<std::uint64_t>(~0ULL, 2), 1ULL << 63);
}

TEST(Error, TellsTheStoryOutermostFirst) {
  Result<int> inner = fail_errno(ENOENT);
  Result<void> middle = forward_error(inner, "could not open its backing file '{}'", "b.raw");
  const Error outer = middle.error().in("could not open 'a.qcow2'");
  EXPECT_EQ(outer.code(), ENOENT);
  EXPECT_EQ(outer.message(),
            "could not open 'a.qcow2': could not open its backing file 'b.raw': "
            "No such file or directory");
}

}  // namespace
}  // namespace platter
