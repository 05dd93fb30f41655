// Bytes of firmware tables.
#include "tools/run/table_bytes.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "unit/run/checksum.h"

namespace platter::run {
namespace {

TEST(TableBytes, NumbersTextAndZeroes) {
  TableBytes table;
  table.put(std::uint16_t{0x1234});
  table.text("abc", 2);
  table.text("d", 3, '.');
  table.zeroes(2);
  table.append("e");
  const std::string_view expected(
      "\x34\x12"
      "abd..\0\0e",
      10);
  EXPECT_EQ(table.size(), expected.size());
  const std::vector<std::byte> bytes = std::move(table).bytes();
  EXPECT_TRUE(std::ranges::equal(bytes, std::as_bytes(std::span(expected))));
}

TEST(TableBytes, ChecksumMakesTheSumZero) {
  for (const unsigned first : {0U, 1U, 0x80U, 0xffU}) {
    std::vector<std::byte> bytes{static_cast<std::byte>(first), std::byte{0}, std::byte{0x7f}};
    bytes[1] = checksum_of(bytes);
    EXPECT_EQ(sum(bytes), 0U);
  }
}

}  // namespace
}  // namespace platter::run
