// Images that lie, one lie each: opening, checking, mapping and reading them ends soon, in little
// memory, with an error that names what is wrong. Names of tests: numbers of the project's list of
// hostile input (I: image parsing, X: exhaustion).
#include <fmt/format.h>

#include "formats/qcow2/codec.h"
#include "unit/qcow2/engine_support.h"
#include "unit/qcow2/hostile_support.h"

namespace platter::qcow2 {
namespace {

using namespace platter::qcow2::testing;

TEST_F(Hostile, AnHonestImageIsQuiet) { EXPECT_EQ(outcome(), ""); }

TEST_F(Hostile, I1HeaderLength) {
  put32(100, 0xfffffff8);
  EXPECT_THAT(outcome(), HasSubstr("header_length is 4294967288"));
  put32(100, 105);
  EXPECT_THAT(outcome(), HasSubstr("header_length 105"));
}

TEST_F(Hostile, I2Extensions) {
  put32(116, 0xffffffff);
  EXPECT_THAT(outcome(), HasSubstr("Header extension too large"));
  header_.backing_file = "b";
  header_.extensions.unknown = {{0x11111111, std::vector<std::byte>(16)}};
  put_header();
  put32(112 + 8 + 8 * 48 + 4, 64);
  EXPECT_THAT(outcome(), HasSubstr("Header extension too large: type 0x11111111"));
}

TEST_F(Hostile, I3RefcountTable) {
  put32(56, 0x7fffffff);
  EXPECT_THAT(outcome(), HasSubstr("Reference count table too large"));
  put32(56, 0);
  EXPECT_THAT(outcome(), HasSubstr("does not contain a reference count table"));
  put32(56, 1);
  put64(48, 0xffffffffffff0000);
  EXPECT_THAT(outcome(), HasSubstr("Reference count table offset invalid"));
  put64(48, 0x10200);
  EXPECT_THAT(outcome(), HasSubstr("Reference count table offset invalid: 0x10200"));
}

TEST_F(Hostile, I4Snapshots) {
  put64(64, 0x50000);
  put32(60, 0xffffffff);
  EXPECT_THAT(outcome(), HasSubstr("Snapshot table too large: nb_snapshots is 4294967295"));
  put32(60, 65536);
  EXPECT_THAT(outcome(), HasSubstr("Snapshot table lies beyond the end of the file"));
  put32(60, 1);
  put64(64, 0x50001);
  EXPECT_THAT(outcome(), HasSubstr("Snapshot table offset invalid: 0x50001"));
  put64(64, 0xfffffffffff00000);
  EXPECT_THAT(outcome(), HasSubstr("Snapshot table offset invalid"));
  put64(64, 0x50000);
  put32(0x50000 + 36, 1025);
  EXPECT_THAT(outcome(), HasSubstr("Too much extra metadata in snapshot table entry 0"));
  put32(0x50000 + 36, 16);
  put64(64, 0x140000);
  put32(0x140000 + 12, 0xffffffff);
  EXPECT_THAT(outcome(), HasSubstr("Snapshot table entry 0 lies beyond the end of the file"));
}

Task<Result<Edge>> open_hostile(bool writable) {
  OpenRequest request;
  request.filename = "memory:hostile";
  request.format = "qcow2";
  request.flags.read_only = !writable;
  request.permissions = writable ? Permissions::writer() : Permissions::reader();
  return open_node(std::move(request));
}

Task<Result<void>> take_snapshot_of_hostile() {
  auto edge = co_await open_hostile(true);
  PLATTER_CO_TRY(edge);
  auto taken = co_await (*edge)->driver().snapshots()->create("s", 1, 1);
  PLATTER_CO_TRY(taken);
  auto closed = co_await edge->detach();
  co_return closed;
}

// What is said of a snapshot that cannot be shown, and whether the rest goes on as ever.
Task<void> use_oversized_snapshot(std::uint64_t size, std::string* said) {
  auto edge = co_await open_hostile(false);
  CO_OK(edge);
  auto loaded = co_await (*edge)->driver().snapshots()->load("s");
  if (!loaded) *said += loaded.error().message() + "\n";
  auto closed = co_await edge->detach();
  CO_OK(closed);
  edge = co_await open_hostile(true);
  CO_OK(edge);
  BlockNode& node = **edge;
  const std::uint64_t before = node.size();
  auto applied = co_await node.driver().snapshots()->apply("s");
  if (!applied) *said += applied.error().message() + "\n";
  EXPECT_EQ(node.size(), before);
  EXPECT_EQ(node.driver().snapshots()->list().at(0).disk_size, size);
  auto renamed = co_await node.driver().snapshots()->rename("s", "t");
  EXPECT_OK(renamed);
  auto removed = co_await node.driver().snapshots()->remove("t");
  EXPECT_OK(removed);
  EXPECT_TRUE(node.driver().snapshots()->list().empty());
  closed = co_await edge->detach();
  EXPECT_OK(closed);
}

TEST_F(Hostile, I4SizeOfASnapshotsDisk) {
  for (const std::uint64_t size : {~std::uint64_t{511}, std::uint64_t{1} << 62,
                                   std::uint64_t{4} << 40, std::uint64_t{0x12345}}) {
    SCOPED_TRACE(size);
    use("cluster_size=512", kMiB);
    ASSERT_OK(run([] { return take_snapshot_of_hostile(); }));
    std::byte place[8];
    disk_->read(64, IoVec(std::span(place)));
    put64(load_be<std::uint64_t>(place) + 48, size);
    const double start = cpu_seconds();
    const std::uint64_t memory = peak_memory();
    std::string said;
    run([&] { return use_oversized_snapshot(size, &said); });
    const std::string line = fmt::format("disk_size of snapshot '1' .*{}.*\n", size);
    EXPECT_THAT(said, ::testing::MatchesRegex(line + line));
    EXPECT_EQ(outcome(), "");
    EXPECT_LT(cpu_seconds() - start, kSeconds);
    if (!kSanitized) {
      EXPECT_LT(peak_memory() - memory, 64 * kMiB);
    }
  }
}

TEST_F(Hostile, I5L1Tables) {
  put32(36, 0);
  EXPECT_THAT(outcome(), HasSubstr("L1 table is too small: l1_size is 0"));
  put32(36, 0xffffffff);
  EXPECT_THAT(outcome(), HasSubstr("Active L1 table too large"));
  put32(36, 1);
  put64(40, 0x30008);
  EXPECT_THAT(outcome(), HasSubstr("Active L1 table offset invalid: 0x30008"));
  put64(40, 0xffffffffffff0000);
  EXPECT_THAT(outcome(), HasSubstr("Active L1 table offset invalid"));
}

TEST_F(Hostile, I6BackingName) {
  put64(8, 0x1000);
  put32(16, 1024);
  EXPECT_THAT(outcome(), HasSubstr("backing_file_size is 1024"));
  put32(16, 10);
  put64(8, 0x10000 - 5);
  EXPECT_THAT(outcome(), HasSubstr("backing_file_size is 10, at most 5"));
  put64(8, 8);
  EXPECT_THAT(outcome(), HasSubstr("Invalid backing file offset 8"));
}

TEST_F(Hostile, I7EntriesFarAway) {
  put64(kL2, kCopied | (std::uint64_t{1} << 55));
  const std::string said = outcome();
  EXPECT_THAT(said, HasSubstr("offset 0x80000000000000 size 0x10000"));
  put64(kL1, kCopied | (std::uint64_t{1} << 55));
  EXPECT_THAT(outcome(), HasSubstr("offset 0x80000000000000 size 0x10000"));
}

TEST_F(Hostile, I8FieldValues) {
  put32(20, 31);
  EXPECT_THAT(outcome(), HasSubstr("2^31"));
  put32(20, 16);
  put32(96, 63);
  EXPECT_THAT(outcome(), HasSubstr("refcount_order is 63"));
  put32(96, 4);
  put32(32, 9);
  EXPECT_THAT(outcome(), HasSubstr("Unsupported encryption method 9"));
  put32(32, 0);
  put64(72, std::uint64_t{1} << 63);
  EXPECT_THAT(outcome(), HasSubstr("Unsupported qcow2 feature(s): Unknown incompatible feature"));
  put64(72, 8);
  put32(104, 0xff000000);
  EXPECT_THAT(outcome(), HasSubstr("unknown compression type: 255"));
  put32(4, 4);
  EXPECT_THAT(outcome(), HasSubstr("Unsupported qcow2 version 4"));
}

TEST_F(Hostile, I9L1IsL2) {
  put64(kL1, kCopied | kL1);
  EXPECT_THAT(outcome(), HasSubstr("ERROR cluster 3 refcount=1 reference="));
}
TEST_F(Hostile, I9L2IsData) {
  put64(kL2, kCopied | kL2);
  EXPECT_THAT(outcome(), HasSubstr("ERROR cluster 4 refcount=1 reference=2"));
}
TEST_F(Hostile, I9RefcountBlockIsL1) {
  put64(kRefcountTable, kL1);
  EXPECT_THAT(outcome(), HasSubstr("ERROR refcount block 0 refcount=2"));
}
TEST_F(Hostile, I9RefcountBlockIsTheHeader) {
  put64(kRefcountTable + 8, 0x200);
  EXPECT_THAT(outcome(), HasSubstr("refcount block 1 is not cluster aligned"));
}
TEST_F(Hostile, I9UnalignedL2) {
  put64(kL1, kCopied | (kL2 + 0x200));
  EXPECT_THAT(outcome(), HasSubstr("l2_offset=40200: Table is not cluster aligned"));
}
TEST_F(Hostile, I9TwoL1EntriesWithOneL2) {
  use("preallocation=metadata,cluster_size=512", kMiB);
  put64(header_.l1_table_offset + 8,
        kCopied | (header_.l1_table_offset + 32 * 8 / 512 * 512 + 512));
  EXPECT_THAT(outcome(), HasSubstr("ERROR cluster"));
}

TEST_F(Hostile, I10CompressedGarbage) {
  const std::vector<std::byte> garbage(4096, std::byte{0xff});
  put(kData, garbage);
  put64(kL2, compressed_entry(header_.geometry(), kData, 4096));
  EXPECT_THAT(outcome(), HasSubstr("read: "));
}
TEST_F(Hostile, I10CompressedBeyondTheEnd) {
  put64(kL2, compressed_entry(header_.geometry(), std::uint64_t{1} << 40, 4096));
  EXPECT_THAT(outcome(), HasSubstr("exceeding the end of the file"));
}
TEST_F(Hostile, I10CompressedBomb) {
  const std::vector<std::byte> zeroes(2 << 20);
  std::vector<std::byte> packed(65536);
  auto size = deflate_cluster(CompressionType::kZlib, zeroes, packed);
  ASSERT_OK(size);
  put(kData, packed);
  put64(kL2, compressed_entry(header_.geometry(), kData, *size));
  EXPECT_THAT(outcome(), HasSubstr("read: "));
}

TEST_F(Hostile, I11Bitmaps) {
  header_.autoclear_features = autoclear::kBitmaps;
  const auto with = [&](BitmapsExtension extension) {
    header_.extensions.bitmaps = extension;
    put_header();
    return outcome();
  };
  EXPECT_THAT(with({65536, 64, kData}), HasSubstr("65536 bitmaps"));
  EXPECT_THAT(with({1, std::uint64_t{1} << 62, kData}), HasSubstr("directory size"));
  EXPECT_THAT(with({1, 64, kData + 1}), HasSubstr("invalid bitmap directory offset"));
  EXPECT_THAT(with({1, 64, std::uint64_t{1} << 50}), HasSubstr("exceeding the end of the file"));
  EXPECT_THAT(with({1, 64, kData}), HasSubstr("bitmap directory entry 0"));
}

TEST_F(Hostile, I12Refcounts) {
  put16(kRefcountBlock, 0);
  EXPECT_THAT(outcome(), HasSubstr("ERROR cluster 0 refcount=0 reference=1"));
  put16(kRefcountBlock, 0xffff);
  EXPECT_THAT(outcome(), HasSubstr("Leaked cluster 0 refcount=65535 reference=1"));
}

TEST_F(Hostile, X4LargestL1AllAtOneTable) {
  use("cluster_size=2M", std::uint64_t{1} << 61);
  const std::uint64_t l2 = header_.l1_table_offset + header_.l1_table_bytes();
  std::vector<std::byte> l1(header_.l1_table_bytes());
  for (std::size_t i = 0; i < l1.size(); i += 8) store_be(l1.data() + i, l2);
  put(header_.l1_table_offset, l1);
  std::vector<std::byte> table(2 << 20);
  for (std::size_t i = 0; i < table.size(); i += 8) store_be(table.data() + i, l2);
  put(l2, table);
  const std::string said = outcome();
  EXPECT_THAT(said, HasSubstr("ERROR"));
  EXPECT_THAT(said, HasSubstr("map: the L1 table at 0x600000 names the same L2 tables"));
  // Reads are no more work than on any image.
  EXPECT_THAT(said, ::testing::Not(HasSubstr("read: ")));
}

// A few that are named twice are shown as what they say.
TEST_F(Hostile, X4SomeTablesNamedTwiceAreMapped) {
  use("cluster_size=4k", 64 * kMiB);
  const std::uint64_t l2 = header_.l1_table_offset + 4096;
  for (std::uint64_t i = 0; i < 32; ++i) put64(header_.l1_table_offset + i * 8, l2);
  put64(l2, l2 + 4096);
  put64(l2 + 4096, 0);
  const std::string said = outcome();
  EXPECT_THAT(said, HasSubstr("ERROR"));
  EXPECT_THAT(said, ::testing::Not(HasSubstr("map: ")));
}

TEST_F(Hostile, X5SnapshotsWithMuchExtraData) {
  Snapshot s;
  s.id = "1";
  s.name = "s";
  s.unknown_extra.resize(1000);
  s.l1_table_offset = kL1;
  s.l1_size = 1;
  const auto entry = *encode_snapshot_table({s});
  std::vector<std::byte> table;
  for (unsigned i = 0; i < 61000; ++i) table.insert(table.end(), entry.begin(), entry.end());
  put(0x200000, table);
  put32(60, 61000);
  put64(64, 0x200000);
  EXPECT_THAT(outcome(), HasSubstr("L1 table overlaps other metadata"));
  put32(60, 65536);
  EXPECT_THAT(outcome(), HasSubstr("Snapshot table"));
}

TEST_F(Hostile, X6ManyBitmaps) {
  std::vector<BitmapEntry> entries(65535);
  for (std::size_t i = 0; i < entries.size(); ++i) {
    entries[i].table_offset = kL1;
    entries[i].table_size = 1;
    entries[i].name = std::to_string(i);
  }
  const auto bytes = encode_bitmap_directory(entries);
  put(0x200000, bytes);
  header_.autoclear_features = autoclear::kBitmaps;
  header_.extensions.bitmaps = BitmapsExtension{65535, bytes.size(), 0x200000};
  put_header();
  EXPECT_THAT(outcome(), HasSubstr("ERROR"));
}

TEST_F(Hostile, X8RefcountTableAllAtOneBlock) {
  std::vector<std::byte> table(8 << 20);
  for (std::size_t i = 0; i < table.size(); i += 8) store_be(table.data() + i, kRefcountBlock);
  put(0x200000, table);
  put64(48, 0x200000);
  put32(56, 128);
  EXPECT_THAT(outcome(), HasSubstr("ERROR refcount block 1 refcount=2"));
}

TEST_F(Hostile, X9EveryClusterAtTheSamePackedBytes) {
  use("preallocation=metadata", 64 * kMiB);
  std::vector<std::byte> packed(65536);
  const std::vector<std::byte> zeroes(65536);
  auto size = deflate_cluster(CompressionType::kZlib, zeroes, packed);
  ASSERT_OK(size);
  put(kData, packed);
  for (unsigned i = 0; i < 1024; ++i) {
    put64(kL2 + 8 * i, compressed_entry(header_.geometry(), kData, *size));
  }
  EXPECT_THAT(outcome(), HasSubstr("refcount=1 reference=1024"));
}

}  // namespace
}  // namespace platter::qcow2
