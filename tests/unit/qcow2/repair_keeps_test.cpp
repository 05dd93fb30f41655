// What no repair may touch: data that a damaged entry still names, or may name; and images that it
// cannot know enough of.
#include <gmock/gmock.h>

#include "block/filters/fault.h"
#include "formats/qcow2/header_io.h"
#include "formats/qcow2/snapshot_table.h"
#include "unit/qcow2/image_support.h"

namespace platter::qcow2 {
namespace {

using namespace platter::qcow2::testing;
using ::testing::HasSubstr;

class RepairKeeps : public ::testing::Test {
 protected:
  // As in check_test.cpp: 1 MiB with preallocated metadata and clusters of 64 KiB.
  static constexpr std::uint64_t kRefcountBlock = 0x20000;
  static constexpr std::uint64_t kL1 = 0x30000;
  static constexpr std::uint64_t kL2 = 0x40000;
  static constexpr std::uint64_t kData = 0x50000;
  static constexpr std::uint64_t kCluster = 0x10000;
  static constexpr std::uint64_t kEnd = kData + 16 * kCluster;

  void SetUp() override { use("preallocation=metadata"); }
  void use(const std::string& options) { image_ = make_image(options, kMiB); }
  std::uint64_t entry(std::uint64_t i) { return peek(image_, kL2 + i * 8); }
  void set_entry(std::uint64_t i, std::uint64_t value) { poke(image_, kL2 + i * 8, value); }
  void put_header() {
    const auto bytes = *encode_header(image_.header);
    ASSERT_OK(run([&] { return image_.node->write(0, IoVec::of_const(bytes)); }));
  }
  void cut(std::uint64_t size) {
    ASSERT_OK(run([&] { return image_.node->resize({.size = size}); }));
  }
  std::vector<std::byte> file() {
    std::vector<std::byte> bytes(image_.node->size());
    EXPECT_OK(run([&] { return read_padded(*image_.node, 0, bytes); }));
    return bytes;
  }
  // The repair of opening it for writing.
  Result<void> open_dirty() {
    image_.header.incompatible_features |= incompatible::kDirty;
    put_header();
    return run([&] { return rebuild_refcounts(*image_.node, image_.header); });
  }
  std::string repair() {
    const Checked repaired = check(image_, true, true);
    EXPECT_OK(repaired.result);
    if (!repaired.result) return repaired.text();
    EXPECT_EQ(repaired.result->corruptions, 0U) << repaired.text();
    EXPECT_EQ(check(image_).text(), "") << "after\n" << repaired.text();
    return repaired.text();
  }
  void expect_refused(std::string_view why) {
    const std::vector<std::byte> before = file();
    for (const bool all : {false, true}) {
      const Checked refused = check(image_, true, all);
      ASSERT_FALSE(refused.result) << refused.text();
      EXPECT_THAT(refused.result.error().message(), HasSubstr(why));
      EXPECT_TRUE(file() == before);
    }
  }
  // Packed data in the file's last kilobyte, whose length claims more.
  void pack_last() {
    const auto field = image_.header.geometry().compressed_offset_bits();
    poke(image_, kEnd - 1024, 0x7777);
    poke(image_, kEnd - 8, 0x7778);
    set_entry(15, kCompressedBit | (kEnd - 1024) | std::uint64_t{255} << field);
  }
  // A snapshot behind the data, of an empty disk. Gives the end of its table, which is the file's.
  std::uint64_t take_snapshot(std::uint64_t l1, std::uint32_t l1_size, std::string name) {
    Snapshot s;
    s.l1_table_offset = l1;
    s.l1_size = l1_size;
    s.id = "1";
    s.name = std::move(name);
    s.disk_size = kMiB;
    const auto bytes = *encode_snapshot_table({s});
    EXPECT_OK(run([&] { return image_.node->write(kEnd + kCluster, IoVec::of_const(bytes)); }));
    image_.header.nb_snapshots = 1;
    image_.header.snapshots_offset = kEnd + kCluster;
    put_header();
    return kEnd + kCluster + bytes.size();
  }

  Image image_;
};

TEST_F(RepairKeeps, DataThatAnL1EntryNamesAsATable) {
  for (const bool dirty : {false, true}) {
    SCOPED_TRACE(dirty);
    use("preallocation=metadata,cluster_size=512");
    const std::uint64_t l1 = image_.header.l1_table_offset;
    const std::uint64_t first = peek(image_, peek(image_, l1) & kOffsetMask);
    const std::uint64_t data = first & kOffsetMask;
    // An L2 table of this would name preallocated zeroes between clusters.
    constexpr std::uint64_t kPattern = 0x0303030303030303;
    for (std::uint64_t at = 0; at < 512; at += 8) poke(image_, data + at, kPattern);
    poke(image_, l1 + 8, kCopied | data);
    if (dirty) {
      const std::vector<std::byte> before = file();
      EXPECT_FALSE(open_dirty());
      image_.header.incompatible_features = 0;
      put_header();
      EXPECT_TRUE(file() == before);
    } else {
      repair();
      EXPECT_EQ(peek(image_, peek(image_, l1) & kOffsetMask), first);
    }
    for (std::uint64_t at = 0; at < 512; at += 8) EXPECT_EQ(peek(image_, data + at), kPattern);
  }
}

// Refcounts that agree do not make it a table: what would be flags of one is data.
TEST_F(RepairKeeps, DataThatIsCountedAsATableToo) {
  use("preallocation=metadata,cluster_size=512");
  const std::uint64_t l1 = image_.header.l1_table_offset;
  const std::uint64_t table = peek(image_, l1) & kOffsetMask;
  const std::uint64_t data = peek(image_, table) & kOffsetMask;
  const std::uint64_t other = peek(image_, table + 8) & kOffsetMask;
  poke(image_, l1 + 8, 0);
  ASSERT_OK(check(image_, true).result);
  poke(image_, l1 + 8, data);
  poke(image_, table, data);
  poke(image_, table + 8, other);
  poke(image_, data, kCopied | other);
  for (const std::uint64_t shared : {data, other}) {
    const std::uint64_t block = shared >> 17 << 3;  // 256 counts of 512 bytes each
    poke16(image_, peek(image_, image_.header.refcount_table_offset + block) + (shared >> 8) % 512,
           2);
  }
  const Checked repaired = check(image_, true);
  ASSERT_OK(repaired.result);
  EXPECT_EQ(repaired.result->leaks_fixed, 0U) << repaired.text();
  EXPECT_EQ(repaired.result->corruptions, 1U) << repaired.text();
  EXPECT_EQ(peek(image_, data), kCopied | other);
}

TEST_F(RepairKeeps, PackedDataThatClaimsToEndOutside) {
  pack_last();
  set_entry(3, kCopied | kL2);  // so that the table is copied elsewhere
  EXPECT_THAT(repair(), HasSubstr("packed data ends where the file does"));
  EXPECT_EQ(peek(image_, kEnd - 1024), 0x7777U);
  EXPECT_EQ(peek(image_, kEnd - 8), 0x7778U);
}

TEST_F(RepairKeeps, PackedDataThatClaimsToEndOutsideFromLeaks) {
  pack_last();
  const Checked repaired = check(image_, true, false);
  ASSERT_OK(repaired.result);
  EXPECT_EQ(repaired.result->corruptions, 1U);
  EXPECT_EQ(peek(image_, kRefcountBlock + 2 * 20) >> 48, 1U) << "still in use";
}

TEST_F(RepairKeeps, AllOfADirtyImageWithEntriesThatCannotBeRight) {
  pack_last();
  poke16(image_, kRefcountBlock + 2 * 7, 0);
  const std::vector<std::byte> before = file();
  EXPECT_FALSE(open_dirty());
  image_.header.incompatible_features = 0;
  put_header();
  EXPECT_TRUE(file() == before);
}

TEST_F(RepairKeeps, SubclustersBothAllocatedAndZeroAtTheEnd) {
  use("preallocation=metadata,extended_l2=on");
  poke(image_, kL2 + 15 * 16 + 8, std::uint64_t{1} << 32 | 0xffffffff);
  poke(image_, kData + 15 * kCluster, 0x7777);
  poke(image_, kL2 + 3 * 16, kCopied | kL2);
  repair();
  EXPECT_EQ(peek(image_, kData + 15 * kCluster), 0x7777U);
}

// An interrupted repair leaves some of these entries, and none may lead to what it put away.
TEST_F(RepairKeeps, PlacesThatLostEntriesLedToFree) {
  cut(kData + 8 * kCluster);
  set_entry(3, kCopied | kL2);
  repair();
  EXPECT_GE(peek(image_, kL1) & kOffsetMask, kEnd);
  EXPECT_GE(image_.header.refcount_table_offset, kEnd);
}

// The first eight bytes of every cluster of the disk.
std::vector<std::uint64_t> disk_of(Image& image) {
  std::vector<std::uint64_t> words;
  const std::uint64_t table = peek(image, image.header.l1_table_offset) & kOffsetMask;
  for (std::uint64_t at = table; at < table + 16 * 8; at += 8) {
    const std::uint64_t entry = peek(image, at);
    words.push_back((entry & kZeroBit) != 0 ? 0 : peek(image, entry & kOffsetMask));
  }
  return words;
}

TEST_F(RepairKeeps, AllThatWasReadWhereverItIsInterrupted) {
  for (const bool cut_off : {true, false}) {
    SCOPED_TRACE(cut_off ? "tables move, and entries lead outside" : "the L1 table is data");
    SetUp();
    for (std::uint64_t i = 0; i < 16; ++i) poke(image_, kData + i * kCluster, 0x1000 + i);
    if (cut_off) {
      cut(kData + 8 * kCluster);
      set_entry(3, kCopied | kL2);
    } else {
      poke(image_, kL1, peek(image_, kL1) | 2);  // reserved
      set_entry(3, kCopied | kL1);
    }
    const std::vector<std::byte> before = file();
    const std::vector<std::uint64_t> disk = disk_of(image_);
    bool whole = false;
    for (std::uint64_t n = 0; !whole; ++n) {
      SCOPED_TRACE(n);
      Image image{make_memory_node("image", 0), {}};
      ASSERT_OK(run([&] { return image.node->write(0, IoVec::of_const(before)); }));
      auto faults = run([&] { return make_fault_node("faults", image.node); });
      ASSERT_OK(faults);
      Image failing{*faults, image_.header};
      fault_points_of(*failing.node)
          ->add({.operations = fault_op::kWrite | fault_op::kFlush, .skip = n, .error = EIO});
      whole = check(failing, true, true).result.has_value();
      EXPECT_LT(n, 100U);
      image.header = *run([&] { return read_header(*image.node); });
      EXPECT_EQ(disk_of(image), disk);
      EXPECT_OK(check(image, true, true).result);
      EXPECT_EQ(check(image).text(), "");
      EXPECT_EQ(disk_of(image), disk);
    }
  }
}

TEST_F(RepairKeeps, PlacesThatEntriesStillLeadToFree) {
  use("preallocation=metadata,compat=0.10");
  image_.header.backing_file = "b";  // so nothing can be lost
  put_header();
  cut(kData + 8 * kCluster);
  poke16(image_, kRefcountBlock + 2 * 5, 0);
  repair();
  EXPECT_GE(image_.header.refcount_table_offset, kEnd);
  for (std::uint64_t i = 8; i < 16; ++i) {
    EXPECT_EQ(entry(i) & kOffsetMask, kData + i * kCluster);
    EXPECT_EQ(peek(image_, kData + i * kCluster), 0U) << "as before";
  }
}

TEST_F(RepairKeeps, AFileWithoutTheEndOfItsL1Table) {
  use("preallocation=metadata,cluster_size=512");
  cut(image_.header.l1_table_offset + 4 * 8);
  expect_refused("was cut off within its L1 or snapshot table");
}

TEST_F(RepairKeeps, AFileWithoutTheEndOfItsSnapshotTable) {
  poke(image_, kEnd, 0);
  const std::uint64_t end = take_snapshot(kEnd, 1, "name");
  cut(end - 3);  // the padding need not be there
  repair();
  cut(kEnd + kCluster + 20);
  expect_refused("was cut off within its L1 or snapshot table");
}

TEST_F(RepairKeeps, ClustersOfASnapshotWhoseL1TableIsNotFound) {
  struct Lie {
    std::uint64_t l1;
    std::uint32_t size;
  };
  for (const Lie& lie : {Lie{kEnd + 512, 1}, Lie{kEnd, 0xffffffff}, Lie{1ULL << 50, 1}}) {
    SetUp();
    poke(image_, kEnd, 0);
    take_snapshot(lie.l1, lie.size, "name");
    expect_refused("the L1 table of a snapshot is not in the file");
  }
}

TEST_F(RepairKeeps, NarrowRefcountsAreRepairedAtOnce) {
  use("preallocation=metadata,refcount_bits=1");
  const std::uint64_t one = entry(0);
  set_entry(0, one | 4);  // reserved
  set_entry(1, one);
  repair();
  EXPECT_EQ(entry(0), one);
}

TEST_F(RepairKeeps, NarrowRefcountsPartDataFromTheRefcounts) {
  for (const bool table : {false, true}) {
    SCOPED_TRACE(table);
    use("preallocation=metadata,refcount_bits=1");
    const std::uint64_t place = table ? image_.header.refcount_table_offset : kRefcountBlock;
    const std::uint64_t word = peek(image_, place);
    set_entry(0, kCopied | place);
    const std::string said = repair();
    EXPECT_EQ(entry(0), kCopied | place) << said;
    EXPECT_EQ(peek(image_, place), word);
    EXPECT_NE(image_.header.refcount_table_offset, place);
    const std::uint64_t block = peek(image_, image_.header.refcount_table_offset);
    EXPECT_NE(block, place);
  }
}

}  // namespace
}  // namespace platter::qcow2
