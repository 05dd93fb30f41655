#include "formats/qcow2/bitmap_directory.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace platter::qcow2 {
namespace {

using ::testing::HasSubstr;

BitmapEntry sample(std::string name) {
  BitmapEntry e;
  e.table_offset = 0x50000;
  e.table_size = 1;
  e.flags = bitmap_flag::kAuto;
  e.name = std::move(name);
  return e;
}

Result<std::vector<BitmapEntry>> parse(const std::vector<BitmapEntry>& entries) {
  Header header;
  header.size = std::uint64_t{1} << 30;
  const auto bytes = encode_bitmap_directory(entries);
  return parse_bitmap_directory(
      bytes, {static_cast<std::uint32_t>(entries.size()), bytes.size(), 0x40000}, header);
}

std::string refusal(const BitmapEntry& entry) {
  auto parsed = parse({entry});
  return parsed ? std::string() : parsed.error().message();
}

TEST(BitmapDirectory, RoundTrips) {
  std::vector<BitmapEntry> entries{sample("a"), sample("longer name"), sample("third")};
  entries[1].extra.assign(5, std::byte{9});
  auto parsed = parse(entries);
  ASSERT_TRUE(parsed) << parsed.error().message();
  EXPECT_EQ(*parsed, entries);
}

TEST(BitmapDirectory, EachLieIsNamed) {
  BitmapEntry e = sample("b");
  EXPECT_EQ(refusal(e), "");
  e.table_size = 0;
  EXPECT_THAT(refusal(e), HasSubstr("bitmap_table_size is 0"));
  e.table_size = 0xffffffff;
  EXPECT_THAT(refusal(e), HasSubstr("bitmap_table_size is 4294967295"));
  e.table_size = 0x4000;
  EXPECT_THAT(refusal(e), HasSubstr("16384 table entries make 1073741824 bytes"));
  e = sample("b");
  e.table_offset = 0x50001;
  EXPECT_THAT(refusal(e), HasSubstr("bitmap_table_offset 0x50001"));
  e.table_offset = 0xffffffffffff0000;
  EXPECT_THAT(refusal(e), HasSubstr("bitmap_table_offset"));
  e = sample("b");
  e.granularity_bits = 63;
  EXPECT_THAT(refusal(e), HasSubstr("granularity_bits is 63"));
  e.granularity_bits = 8;
  EXPECT_THAT(refusal(e), HasSubstr("granularity_bits is 8"));
  e.granularity_bits = 9;
  e.table_size = 1;
  EXPECT_THAT(refusal(e), HasSubstr("do not cover a disk"));
  e = sample("b");
  e.flags = 8;
  EXPECT_THAT(refusal(e), HasSubstr("reserved flags 0x8"));
  EXPECT_THAT(refusal(sample(std::string(1024, 'n'))), HasSubstr("name_size is 1024"));
  EXPECT_THAT(refusal(sample("")), HasSubstr("name_size is 0"));
  auto twice = parse({sample("same"), sample("same")});
  ASSERT_FALSE(twice);
  EXPECT_THAT(twice.error().message(), HasSubstr("twice"));
}

TEST(BitmapDirectory, CountAndLengthMustAgree) {
  Header header;
  const auto bytes = encode_bitmap_directory({sample("a"), sample("b")});
  EXPECT_FALSE(parse_bitmap_directory(bytes, {1, bytes.size(), 0x40000}, header));
  EXPECT_FALSE(parse_bitmap_directory(bytes, {3, bytes.size(), 0x40000}, header));
  for (std::size_t n = 0; n < bytes.size(); ++n) {
    EXPECT_FALSE(parse_bitmap_directory(std::span(bytes).first(n), {2, n, 0x40000}, header)) << n;
  }
}

}  // namespace
}  // namespace platter::qcow2
