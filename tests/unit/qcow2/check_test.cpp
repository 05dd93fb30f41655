#include "formats/qcow2/check.h"

#include <gmock/gmock.h>

#include "formats/qcow2/refcount_map.h"
#include "formats/qcow2/snapshot_table.h"
#include "unit/qcow2/image_support.h"

namespace platter::qcow2 {
namespace {

using namespace platter::qcow2::testing;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Places in an image of 1 MiB with preallocated metadata and 64 KiB clusters: header 0, refcount
// table 1, refcount block 2, L1 3, L2 4, data 5 to 20.
constexpr std::uint64_t kRefcountTable = 0x10000;
constexpr std::uint64_t kRefcountBlock = 0x20000;
constexpr std::uint64_t kL1 = 0x30000;
constexpr std::uint64_t kL2 = 0x40000;
constexpr std::uint64_t kData = 0x50000;

Image preallocated() { return make_image("preallocation=metadata", kMiB); }

void expect_clean(Image& image) {
  const Checked checked = check(image);
  ASSERT_OK(checked.result);
  EXPECT_EQ(checked.text(), "");
  EXPECT_EQ(checked.result->corruptions, 0U);
  EXPECT_EQ(checked.result->leaks, 0U);
}

TEST(Check, LeaksAreFoundAndRepaired) {
  Image image = preallocated();
  poke(image, kL2 + 8, 0);
  poke16(image, kRefcountBlock + 2 * 7, 3);
  Checked checked = check(image);
  ASSERT_OK(checked.result);
  EXPECT_THAT(checked.lines,
              ElementsAre("Leaked cluster 6 refcount=1 reference=0",
                          "Leaked cluster 7 refcount=3 reference=1",
                          "ERROR OFLAG_COPIED data cluster: l2_entry=8000000000070000 refcount=3"));
  EXPECT_EQ(checked.result->leaks, 2U);
  EXPECT_EQ(checked.result->corruptions, 1U);
  EXPECT_EQ(checked.result->allocated_clusters, 15U);
  EXPECT_EQ(checked.result->fragmented_clusters, 1U);

  checked = check(image, true);
  ASSERT_OK(checked.result);
  EXPECT_THAT(checked.lines, ElementsAre("Leaked cluster 6 refcount=1 reference=0",
                                         "Leaked cluster 7 refcount=3 reference=1",
                                         "Repairing cluster 6 refcount=1 reference=0",
                                         "Repairing cluster 7 refcount=3 reference=1"));
  EXPECT_EQ(checked.result->leaks_fixed, 2U);
  EXPECT_EQ(checked.result->leaks, 0U);
  expect_clean(image);
}

TEST(Check, TooLowRefcountsAreErrorsAndRepaired) {
  Image image = preallocated();
  // Two guest clusters at one host cluster.
  poke(image, kL2 + 8, kData);
  poke(image, kL2, kData);
  Checked checked = check(image);
  ASSERT_OK(checked.result);
  EXPECT_THAT(checked.lines,
              ElementsAre("ERROR cluster 5 refcount=1 reference=2",
                          "Leaked cluster 6 refcount=1 reference=0",
                          "ERROR OFLAG_COPIED data cluster: l2_entry=50000 refcount=1",
                          "ERROR OFLAG_COPIED data cluster: l2_entry=50000 refcount=1"));
  EXPECT_EQ(checked.result->corruptions, 3U);
  EXPECT_EQ(checked.result->leaks, 1U);
  checked = check(image, true, true);
  ASSERT_OK(checked.result);
  EXPECT_EQ(checked.result->corruptions_fixed, 1U) << checked.text();
  EXPECT_EQ(checked.result->leaks_fixed, 1U);
  expect_clean(image);
}

TEST(Check, CopiedFlagsAreRepaired) {
  Image image = preallocated();
  poke(image, kL1, kL2);
  poke(image, kL2 + 16, kData + 0x20000);
  Checked checked = check(image, false, true);
  ASSERT_OK(checked.result);
  EXPECT_THAT(checked.lines,
              ElementsAre("Repairing OFLAG_COPIED L2 cluster: l1_index=0 l1_entry=40000 refcount=1",
                          "Repairing OFLAG_COPIED data cluster: l2_entry=70000 refcount=1"));
  EXPECT_EQ(checked.result->corruptions_fixed, 2U);
  EXPECT_EQ(peek(image, kL1), kL2 | kCopied);
  expect_clean(image);
}

TEST(Check, RefcountZeroRebuildsTheStructure) {
  Image image = preallocated();
  poke16(image, kRefcountBlock + 2 * 9, 0);
  Checked checked = check(image);
  ASSERT_OK(checked.result);
  EXPECT_THAT(checked.lines,
              ElementsAre("ERROR cluster 9 refcount=0 reference=1",
                          "ERROR OFLAG_COPIED data cluster: l2_entry=8000000000090000 refcount=0"));

  checked = check(image, true, false);
  ASSERT_FALSE(checked.result) << "leak repair alone must not trust this structure";
  EXPECT_THAT(checked.lines, ::testing::Contains("ERROR need to rebuild refcount structures"));

  const std::uint64_t old_table = image.header.refcount_table_offset;
  checked = check(image, true, true);
  ASSERT_OK(checked.result);
  EXPECT_THAT(checked.text(), HasSubstr("Rebuilding refcount structure"));
  EXPECT_EQ(checked.result->corruptions, 0U);
  EXPECT_EQ(checked.result->corruptions_fixed, 1U);
  EXPECT_NE(image.header.refcount_table_offset, old_table);
  auto header = run([&] { return read_header(*image.node); });
  ASSERT_OK(header);
  EXPECT_EQ(*header, image.header) << "the header in memory is the one on disk";
  expect_clean(image);
}

TEST(Check, AllRefcountsLostAreRebuiltForEveryWidth) {
  for (const unsigned bits : {9u, 12u, 16u}) {
    for (unsigned width = 1; width <= 64; width *= 2) {
      SCOPED_TRACE(fmt::format("{} {}", bits, width));
      Image image = make_image(
          fmt::format("preallocation=metadata,cluster_size={},refcount_bits={}", 1u << bits, width),
          std::uint64_t{100} << bits);
      ASSERT_OK(run([&] {
        return image.node->write_zeroes(image.header.refcount_table_offset,
                                        image.header.cluster_size());
      }));
      const Checked checked = check(image, true, true);
      ASSERT_OK(checked.result);
      EXPECT_EQ(checked.result->corruptions, 0U);
      expect_clean(image);
    }
  }
}

TEST(Check, ARefcountTableThatTheHeaderLostIsMadeAnew) {
  struct Loss {
    std::uint64_t at;
    std::uint64_t value;  // of a table's place; otherwise of its clusters
    const char* said;
  };
  for (const Loss& loss :
       {Loss{48, 0, "(refcount_table_offset is 0)"}, Loss{56, 0, "(refcount_table_clusters is 0)"},
        Loss{48, kRefcountTable + 8, "Reference count table offset invalid"},
        Loss{48, std::uint64_t{1} << 40, "lies beyond the end of the file"},
        Loss{56, 0xffffffff, "Reference count table too large"}}) {
    SCOPED_TRACE(loss.said);
    Image image = preallocated();
    poke(image, loss.at, loss.at == 56 ? loss.value << 32 | image.header.nb_snapshots : loss.value);
    auto header = run([&] { return read_header(*image.node); });
    ASSERT_OK(header);
    image.header = *header;
    Checked checked = check(image);
    ASSERT_OK(checked.result);
    EXPECT_THAT(checked.text(), HasSubstr(loss.said));
    EXPECT_EQ(checked.result->corruptions, 21u + 17u - 2u);
    checked = check(image, true, true);
    ASSERT_OK(checked.result);
    EXPECT_EQ(checked.result->corruptions, 0u) << checked.text();
    header = run([&] { return read_header(*image.node); });
    ASSERT_OK(header);
    EXPECT_NE(header->refcount_table_clusters, 0U);
    EXPECT_EQ(*header, image.header);
    expect_clean(image);
  }
}

TEST(Check, BrokenRefcountTableEntriesAreNamed) {
  Image image = preallocated();
  poke(image, kRefcountTable + 8, 0x12345600);
  poke(image, kRefcountTable + 16, 0x30001);
  poke(image, kRefcountTable + 24, std::uint64_t{1} << 40);
  poke(image, kRefcountTable + 32, kL1);
  Checked checked = check(image);
  ASSERT_OK(checked.result);
  EXPECT_THAT(
      checked.text(),
      HasSubstr("ERROR refcount block 1 is not cluster aligned; refcount table entry corrupted"));
  EXPECT_THAT(checked.text(), HasSubstr("ERROR refcount table entry 2 has reserved bits set"));
  EXPECT_THAT(checked.text(), HasSubstr("ERROR refcount block 3 is outside image"));
  EXPECT_THAT(checked.text(), HasSubstr("ERROR refcount block 4 refcount=2"));
  checked = check(image, true, true);
  ASSERT_OK(checked.result);
  expect_clean(image);
}

TEST(Check, EntriesThatLeaveTheFileOrTheGridAreNamed) {
  Image image = preallocated();
  poke(image, kL2, kCopied | (std::uint64_t{1} << 50));
  poke(image, kL2 + 8, kCopied | 0x60200);
  poke(image, kL2 + 16, kCopied | 0x70004);
  poke(image, kL2 + 24, kCompressedBit | kCopied | 0x80000);
  Checked checked = check(image);
  ASSERT_OK(checked.result);
  EXPECT_THAT(checked.text(),
              HasSubstr("ERROR: counting reference for region exceeding the end of the file by one "
                        "cluster or more: offset 0x4000000000000 size 0x10000"));
  EXPECT_THAT(checked.text(), HasSubstr("ERROR offset=60200: Data cluster is not properly aligned; "
                                        "L2 entry corrupted."));
  EXPECT_THAT(checked.text(),
              HasSubstr("ERROR found l2 entry with reserved bits set: 8000000000070004"));
  EXPECT_THAT(checked.text(), HasSubstr("copied flag must never be set for compressed clusters"));
}

TEST(Check, UnalignedPreallocatedZeroesAreRepaired) {
  Image image = preallocated();
  poke(image, kL2 + 8, kCopied | 0x60200 | kZeroBit);
  const Checked checked = check(image, true, true);
  ASSERT_OK(checked.result);
  EXPECT_THAT(checked.text(),
              HasSubstr("ERROR offset=60200: Preallocated cluster is not properly aligned"));
  EXPECT_THAT(checked.text(), HasSubstr("Repairing l2_entry=8000000000060201 at 0x40008: "
                                        "preallocated space that cannot be is given up"));
  EXPECT_EQ(checked.result->corruptions, 0U);
  EXPECT_EQ(checked.result->corruptions_fixed, 1U);
  EXPECT_EQ(peek(image, kL2 + 8), kZeroBit);
  expect_clean(image);
}

TEST(Check, ReservedBitsOfL1AreNamed) {
  Image image = preallocated();
  poke(image, kL1, kCopied | kL2 | 2);
  Checked checked = check(image);
  ASSERT_OK(checked.result);
  EXPECT_THAT(checked.text(),
              HasSubstr("ERROR found L1 entry with reserved bits set: 8000000000040002"));
  poke(image, kL1, kCopied | (kL2 + 512));
  checked = check(image);
  ASSERT_OK(checked.result);
  EXPECT_THAT(checked.text(),
              HasSubstr("ERROR l2_offset=40200: Table is not cluster aligned; L1 entry corrupted"));
}

// A snapshot table with one snapshot that shares all of the active tables, at the file's end.
Image with_snapshot(bool bump_refcounts) {
  Image image = preallocated();
  const std::uint64_t l1 = kData + 16 * 0x10000;
  const std::uint64_t table = l1 + 0x10000;
  Snapshot s;
  s.l1_table_offset = l1;
  s.l1_size = 1;
  s.id = "1";
  s.name = "s";
  s.disk_size = kMiB;
  const auto bytes = *encode_snapshot_table({s});
  std::vector<std::byte> cluster(0x10000);
  std::copy(bytes.begin(), bytes.end(), cluster.begin());
  EXPECT_OK(run([&] { return image.node->write(table, IoVec::of_const(cluster)); }));
  poke(image, l1, kL2);
  image.header.nb_snapshots = 1;
  image.header.snapshots_offset = table;
  const auto header = *encode_header(image.header);
  EXPECT_OK(run([&] { return image.node->write(0, IoVec::of_const(header)); }));
  poke16(image, kRefcountBlock + 2 * 21, 1);
  poke16(image, kRefcountBlock + 2 * 22, 1);
  if (bump_refcounts) {
    poke(image, kL1, kL2);
    for (unsigned i = 0; i < 17; ++i) {
      poke16(image, kRefcountBlock + 2 * (4 + i), 2);
      if (i < 16) poke(image, kL2 + 8 * i, kData + i * 0x10000);
    }
  }
  return image;
}

TEST(Check, SnapshotsAreCounted) {
  Image image = with_snapshot(true);
  expect_clean(image);
  image = with_snapshot(false);
  Checked checked = check(image);
  ASSERT_OK(checked.result);
  EXPECT_EQ(checked.result->corruptions, 17U) << checked.text();
  checked = check(image, true, true);
  ASSERT_OK(checked.result);
  EXPECT_EQ(checked.result->corruptions, 0U);
  expect_clean(image);
  EXPECT_EQ(peek(image, kL2), kData) << "shared clusters lose their copied flag";
}

TEST(Check, SnapshotL1OverOtherMetadataIsNotFollowedNorRepaired) {
  Image image = with_snapshot(true);
  poke(image, image.header.snapshots_offset, kL1);
  Checked checked = check(image);
  ASSERT_OK(checked.result);
  EXPECT_THAT(checked.text(), HasSubstr("L1 table overlaps other metadata or data"));
  EXPECT_EQ(checked.result->check_errors, 1U);
  checked = check(image, true, true);
  EXPECT_FALSE(checked.result);
}

TEST(Check, SnapshotL1LiesAreNamed) {
  Image image = with_snapshot(true);
  poke(image, image.header.snapshots_offset, 0x150100);
  EXPECT_THAT(
      check(image).text(),
      HasSubstr("ERROR snapshot 1 (s) l1_offset=0x150100: L1 table is not cluster aligned"));
  image = with_snapshot(true);
  poke(image, image.header.snapshots_offset + 8, 0xffffffff'00010001);
  EXPECT_THAT(check(image).text(),
              HasSubstr("ERROR snapshot 1 (s) l1_size=0xffffffff: L1 table is too large"));
}

TEST(Check, DirtyAndCorruptBitsGoWithTheLastError) {
  Image image = preallocated();
  image.header.incompatible_features = incompatible::kDirty | incompatible::kCorrupt;
  const auto header = *encode_header(image.header);
  ASSERT_OK(run([&] { return image.node->write(0, IoVec::of_const(header)); }));
  ASSERT_OK(check(image).result);
  EXPECT_TRUE(image.header.dirty()) << "a check alone changes nothing";
  ASSERT_OK(run([&] { return rebuild_refcounts(*image.node, image.header); }));
  EXPECT_EQ(image.header.incompatible_features, 0U);
  EXPECT_EQ(*run([&] { return read_header(*image.node); }), image.header);
}

TEST(Check, OverflowOfNarrowRefcountsIsAnError) {
  Image image = make_image("preallocation=metadata,refcount_bits=1", kMiB);
  poke(image, kL2 + 8, kData);
  const Checked checked = check(image);
  ASSERT_OK(checked.result);
  EXPECT_THAT(checked.text(), HasSubstr("ERROR: overflow cluster offset=0x50000"));
  EXPECT_GE(checked.result->corruptions, 1U);
}

TEST(Check, CompressedClustersAreCountedByTheirSectors) {
  Image image = make_image("preallocation=metadata", kMiB);
  const Geometry g = image.header.geometry();
  // From the middle of host cluster 5 into cluster 6.
  poke(image, kL2 + 8, compressed_entry(g, kData + 0xff00, 0x300));
  poke(image, kL2 + 0, compressed_entry(g, kData, 0x300));
  poke16(image, kRefcountBlock + 2 * 5, 2);
  const Checked checked = check(image);
  ASSERT_OK(checked.result);
  EXPECT_EQ(checked.text(), "");
  EXPECT_EQ(checked.result->compressed_clusters, 2U);
  EXPECT_EQ(checked.result->allocated_clusters, 16U);
  EXPECT_EQ(checked.result->fragmented_clusters, 2U);
}

TEST(Check, OneTableReferencedFromEverywhereIsReadOnce) {
  // A million L1 entries that all name one L2 table: hours of work for who follows each.
  Image image = make_image("cluster_size=2M", std::uint64_t{1} << 59);
  const std::uint64_t l2 = image.header.l1_table_offset + image.header.l1_table_bytes();
  std::vector<std::byte> l1(image.header.l1_table_bytes());
  for (std::size_t i = 0; i < l1.size(); i += 8) store_be(l1.data() + i, l2 | kCopied);
  ASSERT_OK(
      run([&] { return image.node->write(image.header.l1_table_offset, IoVec::of_const(l1)); }));
  std::vector<std::byte> table(2 << 20);
  for (std::size_t i = 0; i < table.size(); i += 8)
    store_be(table.data() + i, (l2 + 0x200000) | kCopied);
  ASSERT_OK(run([&] { return image.node->write(l2, IoVec::of_const(table)); }));
  poke(image, l2 + 0x200000, 1);
  const Checked checked = check(image);
  ASSERT_OK(checked.result);
  EXPECT_GT(checked.result->corruptions, 0U);
  EXPECT_LE(checked.lines.size(), 100001U);
}

// What lies beyond the file is one error, whatever flag its entry has: the stored refcount agrees.
TEST(Check, ReferencesBeyondTheFileAreCountedOnce) {
  Image image = preallocated();
  const std::uint64_t last = kData + 15 * 0x10000;
  ASSERT_OK(run([&] { return image.node->resize({.size = last}); }));
  const Checked checked = check(image);
  ASSERT_OK(checked.result);
  EXPECT_EQ(checked.result->corruptions, 1U) << checked.text();
  EXPECT_EQ(checked.result->leaks, 0U);
}

TEST(Check, CutOffL1TableIsAnErrorAndNothingIsFreed) {
  Image image = preallocated();
  ASSERT_OK(run([&] { return image.node->resize({.size = kL1}); }));
  Checked checked = check(image);
  ASSERT_OK(checked.result);
  EXPECT_EQ(checked.result->corruptions, 1U) << checked.text();
  checked = check(image, true, true);
  ASSERT_FALSE(checked.result);
  EXPECT_THAT(checked.result.error().message(), HasSubstr("was cut off within its L1"));
}

TEST(RefcountMap, CountsBeyondItsCells) {
  RefcountMap map(10);
  bool overflow = false;
  EXPECT_EQ(map.get(1 << 30), 0U);
  EXPECT_EQ(map.add(5, 0xfffe, ~std::uint64_t{0}, overflow), 0xfffeU);
  EXPECT_EQ(map.add(5, 1, ~std::uint64_t{0}, overflow), 0xffffU);
  EXPECT_EQ(map.get(5), 0xffffU);
  EXPECT_EQ(map.add(5, std::uint64_t{1} << 40, ~std::uint64_t{0}, overflow), 0x1000000ffffU);
  EXPECT_FALSE(overflow);
  EXPECT_EQ(map.add(5, ~std::uint64_t{0}, ~std::uint64_t{0}, overflow), ~std::uint64_t{0});
  EXPECT_TRUE(overflow);
  map.set(5, 3);
  EXPECT_EQ(map.get(5), 3U);
  EXPECT_EQ(map.add(5, 1, 3, overflow), 3U);
  EXPECT_TRUE(overflow);
  EXPECT_EQ(map.clusters(), 10U);
  map.set(5000, 1);
  EXPECT_EQ(map.clusters(), 5001U);
}

}  // namespace
}  // namespace platter::qcow2
