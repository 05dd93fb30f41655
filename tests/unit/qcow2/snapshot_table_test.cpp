#include "formats/qcow2/snapshot_table.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "block/base/bytes.h"

namespace platter::qcow2 {
namespace {

using ::testing::HasSubstr;

Snapshot sample(std::string id, std::string name) {
  Snapshot s;
  s.l1_table_offset = 0x40000;
  s.l1_size = 2;
  s.id = std::move(id);
  s.name = std::move(name);
  s.date_seconds = 1700000000;
  s.date_nanoseconds = 5;
  s.vm_clock_nanoseconds = 77;
  s.vm_state_size = std::uint64_t{5} << 32;
  s.disk_size = 1 << 20;
  return s;
}

TEST(SnapshotTable, RoundTrips) {
  std::vector<Snapshot> list{sample("1", "first"), sample("22", ""), sample("3", "a longer name")};
  list[1].icount = 9;
  list[2].unknown_extra.assign(11, std::byte{4});
  auto bytes = encode_snapshot_table(list);
  ASSERT_TRUE(bytes);
  EXPECT_EQ(bytes->size() % 8, 0U);
  SnapshotTableParser parser(3, 3);
  auto used = parser.feed(*bytes, true);
  ASSERT_TRUE(used) << used.error().message();
  EXPECT_EQ(*used, bytes->size());
  EXPECT_EQ(parser.table_bytes(), bytes->size());
  ASSERT_TRUE(parser.done());
  EXPECT_EQ(parser.take(), list);
}

TEST(SnapshotTable, IsTakenInPieces) {
  const std::vector<Snapshot> list{sample("1", "one"), sample("2", "two"), sample("3", "three")};
  const auto bytes = encode_snapshot_table(list);
  ASSERT_TRUE(bytes);
  SnapshotTableParser parser(3, 3);
  std::size_t start = 0;
  for (std::size_t end = 0; end <= bytes->size(); ++end) {
    auto used = parser.feed(std::span(*bytes).subspan(start, end - start), end == bytes->size());
    ASSERT_TRUE(used);
    start += *used;
  }
  ASSERT_TRUE(parser.done());
  EXPECT_EQ(parser.take(), list);
}

TEST(SnapshotTable, OldEntriesWithoutExtraDataAreMarkedInVersion3) {
  const std::vector<Snapshot> list{sample("1", "one")};
  auto bytes = encode_snapshot_table(list);
  ASSERT_TRUE(bytes);
  store_be(bytes->data() + 36, std::uint32_t{0});
  for (const unsigned version : {2u, 3u}) {
    SnapshotTableParser parser(1, version);
    ASSERT_TRUE(parser.feed(*bytes, true));
    const auto parsed = parser.take();
    EXPECT_FALSE(parsed[0].disk_size);
    EXPECT_EQ(parsed[0].incomplete, version == 3);
  }
}

TEST(SnapshotTable, TooMuchExtraDataIsRefused) {
  auto bytes = encode_snapshot_table({sample("1", "one")});
  ASSERT_TRUE(bytes);
  for (const std::uint32_t size : {1025u, 0xffffffffu}) {
    store_be(bytes->data() + 36, size);
    SnapshotTableParser parser(1, 3);
    auto used = parser.feed(*bytes, true);
    ASSERT_FALSE(used);
    EXPECT_THAT(used.error().message(),
                HasSubstr("Too much extra metadata in snapshot table entry 0"));
  }
}

TEST(SnapshotTable, AnEntryCutOffByTheEndIsRefused) {
  const auto bytes = encode_snapshot_table({sample("1", "one"), sample("2", "two")});
  ASSERT_TRUE(bytes);
  for (std::size_t n = 0; n + 8 <= bytes->size(); ++n) {
    SnapshotTableParser parser(2, 3);
    EXPECT_FALSE(parser.feed(std::span(*bytes).first(n), true)) << n;
  }
}

TEST(SnapshotTable, ATableAboveTheLimitIsRefused) {
  Snapshot big = sample("1", std::string(65535, 'n'));
  const auto entry = encode_snapshot_table({big});
  ASSERT_TRUE(entry);
  SnapshotTableParser parser(65536, 3);
  for (unsigned i = 0;; ++i) {
    ASSERT_LT(i, 1100u);
    auto used = parser.feed(*entry, false);
    if (used) continue;
    EXPECT_EQ(used.error().code(), EFBIG);
    EXPECT_THAT(used.error().message(), HasSubstr("Snapshot table is too large"));
    break;
  }
}

TEST(SnapshotTable, L1PlacesAreValidated) {
  Header header;
  const auto refusal = [&](std::uint64_t offset, std::uint32_t size) {
    Snapshot s = sample("7", "x");
    s.l1_table_offset = offset;
    s.l1_size = size;
    auto valid = validate_snapshot_l1(s, header, 1 << 20);
    return valid ? std::string() : valid.error().message();
  };
  EXPECT_EQ(refusal(0x40000, 2), "");
  EXPECT_THAT(refusal(0x40008, 2), HasSubstr("Snapshot L1 table of '7' offset invalid: 0x40008"));
  EXPECT_THAT(refusal(0x40000, 0xffffffff), HasSubstr("too large: 4294967295 entries"));
  EXPECT_THAT(refusal(0x1000000, 2), HasSubstr("beyond the end of the file"));
}

TEST(SnapshotTable, DiskSizesAreValidated) {
  Header header;
  header.size = 1000;
  header.cluster_bits = kMinClusterBits;
  Snapshot s = sample("7", "x");
  const auto refusal = [&](std::uint64_t size) {
    s.disk_size = size;
    auto valid = validate_disk_size(s, header);
    return valid ? std::to_string(*valid) : valid.error().message();
  };
  const std::uint64_t largest = kMaxL1Bytes / 8 * header.geometry().l2_coverage();
  EXPECT_EQ(refusal(0), "0");
  EXPECT_EQ(refusal(512), "512");
  EXPECT_EQ(refusal(1000), "1000") << "the disk itself has it";
  EXPECT_EQ(refusal(largest), std::to_string(largest));
  EXPECT_THAT(refusal(1001), HasSubstr("disk_size of snapshot '7' invalid: 1001"));
  for (const std::uint64_t size : {largest + 512, std::uint64_t{1} << 62, ~std::uint64_t{511}})
    EXPECT_THAT(refusal(size), HasSubstr("disk_size of snapshot '7' too large"));
  s.disk_size.reset();
  EXPECT_EQ(validate_disk_size(s, header).value_or(0), 1000u);
}

}  // namespace
}  // namespace platter::qcow2
