// Repairs of entries that cannot be right: what is kept, what is lost, and that all agrees then.
#include <gmock/gmock.h>

#include "formats/qcow2/header_io.h"
#include "formats/qcow2/snapshot_table.h"
#include "unit/qcow2/image_support.h"

namespace platter::qcow2 {
namespace {

using namespace platter::qcow2::testing;
using ::testing::HasSubstr;

class Mend : public ::testing::Test {
 protected:
  // As in check_test.cpp: 1 MiB with preallocated metadata and clusters of 64 KiB.
  static constexpr std::uint64_t kRefcountTable = 0x10000;
  static constexpr std::uint64_t kRefcountBlock = 0x20000;
  static constexpr std::uint64_t kL1 = 0x30000;
  static constexpr std::uint64_t kL2 = 0x40000;
  static constexpr std::uint64_t kData = 0x50000;
  static constexpr std::uint64_t kCluster = 0x10000;

  void SetUp() override { use("preallocation=metadata"); }
  void use(const std::string& options) {
    image_ = make_image(options, kMiB);
    for (std::uint64_t i = 0; i < 16; ++i) poke(image_, kData + i * kCluster, 0x1000 + i);
  }
  void put_header() {
    const auto bytes = *encode_header(image_.header);
    ASSERT_OK(run([&] { return image_.node->write(0, IoVec::of_const(bytes)); }));
  }
  std::uint64_t entry(std::uint64_t i) { return peek(image_, kL2 + i * 8); }
  void set_entry(std::uint64_t i, std::uint64_t value) { poke(image_, kL2 + i * 8, value); }

  // Repairs; everything agrees then.
  std::string repair() {
    const Checked before = check(image_);
    EXPECT_OK(before.result);
    EXPECT_NE(before.result->corruptions, 0U);
    const Checked repaired = check(image_, true, true);
    EXPECT_OK(repaired.result);
    if (!repaired.result) return repaired.text();
    EXPECT_EQ(repaired.result->corruptions, 0U) << repaired.text();
    EXPECT_NE(repaired.result->corruptions_fixed, 0U);
    const Checked after = check(image_);
    EXPECT_OK(after.result);
    EXPECT_EQ(after.text(), "") << "after\n" << repaired.text();
    const auto header = run([&] { return read_header(*image_.node); });
    EXPECT_OK(header);
    EXPECT_EQ(*header, image_.header);
    return repaired.text();
  }
  // The entries from `first` on are what they were.
  void expect_kept(std::uint64_t first) {
    for (std::uint64_t i = first; i < 16; ++i) {
      EXPECT_EQ(entry(i), kCopied | (kData + i * kCluster)) << i;
      EXPECT_EQ(peek(image_, kData + i * kCluster), 0x1000 + i) << i;
    }
  }

  Image image_;
};

TEST_F(Mend, WhatLeadsNowhereIsLost) {
  set_entry(0, kCopied | std::uint64_t{1} << 50);
  set_entry(1, kCopied | (kData + kCluster + 512));
  set_entry(2, kCompressedBit | std::uint64_t{1} << 45);
  set_entry(3, kCopied | std::uint64_t{1} << 50 | kZeroBit);
  EXPECT_THAT(repair(),
              HasSubstr("Repairing l2_entry=8004000000000000 at 0x40000: data outside the "
                        "file is lost"));
  for (std::uint64_t i = 0; i < 4; ++i) EXPECT_EQ(entry(i), kZeroBit) << i;
  expect_kept(4);
}

TEST_F(Mend, ReservedBitsGoAndTheDataStays) {
  set_entry(0, kCopied | kData | 0x2000'0000'0000'0104);
  poke(image_, kL1, kCopied | kL2 | std::uint64_t{1} << 60 | 2);
  EXPECT_THAT(repair(), HasSubstr("reserved bits are cleared"));
  EXPECT_EQ(peek(image_, kL1), kCopied | kL2);
  expect_kept(0);
}

TEST_F(Mend, DataInATableGetsACopy) {
  const std::uint64_t magic = peek(image_, 0);
  set_entry(0, kCopied);  // which leads nowhere, and is nothing bad
  set_entry(1, kCopied | kL1);
  set_entry(2, kCopied | kL1);
  EXPECT_THAT(repair(), HasSubstr("data in a table is copied elsewhere"));
  EXPECT_EQ(peek(image_, 0), magic);
  EXPECT_EQ(peek(image_, kL1), kCopied | kL2);
  EXPECT_GT(entry(1) & kOffsetMask, kData + 15 * kCluster);
  EXPECT_EQ(peek(image_, entry(1) & kOffsetMask), kCopied | kL2) << "what the L1 table has";
  EXPECT_EQ(entry(1), entry(2)) << "two that share stay together";
  EXPECT_EQ(entry(1) & kCopied, 0U);
  expect_kept(3);
}

TEST_F(Mend, ATableInDataMoves) {
  set_entry(1, kCopied | kL2);
  set_entry(2, kCompressedBit | kL2);
  set_entry(3, kCopied | std::uint64_t{1} << 50);
  EXPECT_THAT(repair(), HasSubstr("the table lies in something else and is copied elsewhere"));
  const std::uint64_t table = peek(image_, kL1) & kOffsetMask;
  EXPECT_GT(table, kData + 15 * kCluster);
  EXPECT_EQ(peek(image_, table + 8), kL2);
  EXPECT_EQ(peek(image_, table + 16), kCompressedBit | kL2);
  EXPECT_EQ(peek(image_, table + 24), kZeroBit);
  EXPECT_EQ(entry(3), kCopied | std::uint64_t{1} << 50) << "what may be data is left as it was";
  for (std::uint64_t i = 4; i < 16; ++i)
    EXPECT_EQ(peek(image_, table + i * 8), kCopied | (kData + i * kCluster)) << i;
}

TEST_F(Mend, DataInTheRefcountStructureStaysAndThatMoves) {
  set_entry(0, kCopied | kRefcountBlock);
  set_entry(1, kCopied | kRefcountTable);
  const std::string said = repair();
  EXPECT_THAT(said, HasSubstr("Rebuilding refcount structure"));
  EXPECT_EQ(entry(0), kCopied | kRefcountBlock);
  EXPECT_EQ(entry(1), kCopied | kRefcountTable);
  EXPECT_GT(image_.header.refcount_table_offset, kData);
  expect_kept(2);
}

TEST_F(Mend, FlagsOfAnL1EntryWithoutATableGo) {
  use("preallocation=metadata,cluster_size=512");
  const std::uint64_t l1 = image_.header.l1_table_offset;
  poke(image_, l1 + 8, kCopied);
  EXPECT_THAT(repair(), HasSubstr("Repairing l1_index=1 l1_entry=8000000000000000: flags without a "
                                  "table are cleared"));
  EXPECT_EQ(peek(image_, l1 + 8), 0U);
}

TEST_F(Mend, TablesThatCannotBeAreLost) {
  for (const bool backing : {false, true}) {
    SCOPED_TRACE(backing);
    use("preallocation=metadata,cluster_size=512");
    if (backing) {
      image_.header.backing_file = "b";
      put_header();
    }
    const std::uint64_t l1 = image_.header.l1_table_offset;
    const std::uint64_t kept = peek(image_, l1);
    const std::uint64_t first = peek(image_, kept & kOffsetMask);
    const std::uint64_t bad[] = {kCopied | std::uint64_t{1} << 50, kCopied | l1,
                                 kCopied | (kept & kOffsetMask) << 12 | 512};
    for (std::uint64_t i = 0; i < 3; ++i) poke(image_, l1 + 8 * (i + 1), bad[i]);
    repair();
    EXPECT_EQ(peek(image_, peek(image_, l1) & kOffsetMask), first);
    for (std::uint64_t i = 1; i < 4; ++i) {
      const std::uint64_t now = peek(image_, l1 + 8 * i);
      if (!backing) {
        EXPECT_EQ(now, 0U);
      } else {
        ASSERT_NE(now, 0U);
        EXPECT_EQ(peek(image_, now + 8), kZeroBit) << "the backing file's data is not shown";
      }
    }
  }
}

TEST_F(Mend, Version2OverABackingFileCannotSayThatSomethingIsLost) {
  for (const bool backing : {false, true}) {
    use("preallocation=metadata,compat=0.10");
    if (backing) {
      image_.header.backing_file = "b";
      put_header();
    }
    const std::uint64_t bad = kCopied | std::uint64_t{1} << 50;
    set_entry(0, bad);
    set_entry(1, kCopied | (kData + kCluster) | kZeroBit);
    if (!backing) {
      repair();
      EXPECT_EQ(entry(0), 0U);
    } else {
      const Checked repaired = check(image_, true, true);
      ASSERT_OK(repaired.result);
      EXPECT_EQ(repaired.result->corruptions, 1U) << repaired.text();
      EXPECT_EQ(entry(0) & kOffsetMask, bad & kOffsetMask);
    }
    expect_kept(1);
  }
}

TEST_F(Mend, PackedDataKeepsWhatIsIts) {
  const auto field = image_.header.geometry().compressed_offset_bits();
  const std::uint64_t sectors = std::uint64_t{255} << field;  // far too many
  const std::uint64_t end = kData + 16 * kCluster;
  set_entry(0, kCompressedBit | kCopied | kData);
  set_entry(15, kCompressedBit | (end - 1024) | sectors);
  set_entry(1, kCompressedBit | kL1);
  poke16(image_, kRefcountBlock + 2 * 6, 0);
  repair();
  EXPECT_EQ(entry(0), kCompressedBit | kData);
  EXPECT_EQ(entry(15), kCompressedBit | (end - 1024) | std::uint64_t{1} << field);
  EXPECT_EQ(entry(1), kZeroBit);
}

TEST_F(Mend, Subclusters) {
  use("preallocation=metadata,extended_l2=on");
  const auto word = [](std::uint64_t i) { return kL2 + i * 16; };
  ASSERT_EQ(peek(image_, word(1)), kCopied | (kData + kCluster));
  constexpr std::uint64_t kZero = std::uint64_t{0xf0} << 32;
  poke(image_, word(0), 0);
  poke(image_, word(0) + 8, kZero | 0x3);
  poke(image_, word(1) + 8, kZero | 0x1ff);
  poke(image_, word(2), kCopied | std::uint64_t{1} << 50);
  poke(image_, word(2) + 8, kZero | 0x3);
  poke(image_, word(3), kCopied | kL1);
  poke(image_, word(3) + 8, kZero);
  poke(image_, word(4), kCopied | kL1);
  poke(image_, word(4) + 8, 0x3);
  repair();
  EXPECT_EQ(peek(image_, word(0) + 8), std::uint64_t{0xf3} << 32);
  EXPECT_EQ(peek(image_, word(1)), kCopied | (kData + kCluster));
  EXPECT_EQ(peek(image_, word(1) + 8), 0x1ffU);
  EXPECT_EQ(peek(image_, word(2)), 0U);
  EXPECT_EQ(peek(image_, word(2) + 8), std::uint64_t{0xf3} << 32);
  EXPECT_EQ(peek(image_, word(3)), 0U);
  EXPECT_EQ(peek(image_, word(3) + 8), kZero);
  EXPECT_NE(peek(image_, word(4)) & kOffsetMask, kL1);
  EXPECT_EQ(peek(image_, word(4) + 8), 0x3U);
}

TEST_F(Mend, NarrowRefcountsTakeACopyForEach) {
  use("preallocation=metadata,refcount_bits=1");
  set_entry(0, kCopied | kL1);
  set_entry(1, kCopied | kL1);
  const Checked repaired = check(image_, true, true);
  ASSERT_OK(repaired.result);
  EXPECT_EQ(check(image_).text(), "") << "after\n" << repaired.text();
  EXPECT_NE(entry(0), entry(1));
  expect_kept(2);
}

TEST_F(Mend, NarrowRefcountsPartDataInOnePlace) {
  use("preallocation=metadata,refcount_bits=1");
  const std::uint64_t one = entry(0);
  set_entry(1, one);
  set_entry(2, one);
  const Checked repaired = check(image_, true, true);
  ASSERT_OK(repaired.result);
  EXPECT_THAT(repaired.text(), HasSubstr("data in the place of other data is copied elsewhere"));
  EXPECT_EQ(check(image_).text(), "");
  EXPECT_EQ(entry(0), one);
  EXPECT_NE(entry(1), one);
  EXPECT_NE(entry(2), one);
  EXPECT_NE(entry(1), entry(2));
  for (std::uint64_t i = 0; i < 3; ++i) EXPECT_EQ(peek(image_, entry(i) & kOffsetMask), 0x1000u);
  expect_kept(3);
}

TEST_F(Mend, OpeningADirtyImageLosesNothing) {
  image_.header.incompatible_features |= incompatible::kDirty;
  put_header();
  const std::uint64_t bad = kCopied | std::uint64_t{1} << 50;
  set_entry(0, bad);
  EXPECT_FALSE(run([&] { return rebuild_refcounts(*image_.node, image_.header); }));
  EXPECT_EQ(entry(0) & kOffsetMask, bad & kOffsetMask);
}

TEST_F(Mend, IncompleteSnapshotTablesAreWrittenAnew) {
  const std::uint64_t l1 = kData + 16 * kCluster;
  const std::uint64_t table = l1 + kCluster;
  poke(image_, table, l1);
  poke(image_, table + 8, std::uint64_t{1} << 32 | 1 << 16 | 1);  // l1_size, sizes of id and name
  poke(image_, table + 40, 0x3173000000000000);                   // "1", "s"
  poke(image_, table + kCluster - 8, 0);
  poke(image_, l1, kL2);
  image_.header.nb_snapshots = 1;
  image_.header.snapshots_offset = table;
  put_header();
  EXPECT_THAT(repair(), HasSubstr("Repairing snapshot table entry 0 is incomplete"));
  EXPECT_NE(image_.header.snapshots_offset, table);
  const auto read = run([&] { return read_snapshot_table(*image_.node, image_.header, true); });
  ASSERT_OK(read);
  EXPECT_FALSE(read->snapshots[0].incomplete);
  EXPECT_EQ(read->snapshots[0].disk_size, kMiB);
  EXPECT_EQ(read->snapshots[0].name, "s");
}

}  // namespace
}  // namespace platter::qcow2
