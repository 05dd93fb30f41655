// The refcount table when it moves, and what it leaves behind.
#include "block/base/bytes.h"
#include "unit/qcow2/engine_support.h"

namespace platter::qcow2::refcount_table {
namespace {

using namespace qcow2::testing;  // NOLINT: helpers of these tests

constexpr std::uint64_t kTableOffset = 48;  // in the header
constexpr std::uint64_t kTableClusters = 56;
constexpr std::uint64_t kCluster = 512;
constexpr std::uint64_t kCounts =
    kCluster / 8;  // of a block, and entries of a cluster of the table
constexpr std::string_view kSmallest = "cluster_size=512,refcount_bits=64";

std::uint64_t word_at(MemoryDisk& disk, std::uint64_t offset) {
  std::byte bytes[8];
  disk.read(offset, IoVec(std::span(bytes)));
  return load_be<std::uint64_t>(bytes);
}

void put_word(MemoryDisk& disk, std::uint64_t offset, std::uint64_t value) {
  std::byte bytes[8];
  store_be(bytes, value);
  disk.write(offset, IoVec(std::span(bytes)));
}

// With lazy refcounts no counts are on disk yet. A cut, and the table is made anew.
Task<void> outgrow_lazily(const MemoryImage& image, const std::string& copy) {
  auto opened = co_await image.open();
  CO_OK(opened);
  BlockNode& node = **opened;
  // As much as needs a larger table, and then what may be put where the old one was.
  for (const std::uint64_t at : {0u, 6u, 9u}) {
    auto done = co_await fill(node, at << 20, 3 << 20, static_cast<int>(at) + 1);
    CO_OK(done);
    done = co_await node.flush();
    CO_OK(done);
    done = co_await node.discard(at << 20, 1 << 19);
    CO_OK(done);
    done = co_await node.flush();
    CO_OK(done);
  }
  const std::uint64_t size = image.disk().size();
  std::vector<std::byte> bytes(size);
  image.disk().read(0, iov(bytes));
  auto cut = make_memory_disk(copy, size);
  cut->write(0, iov(bytes));
  auto closed = co_await opened->detach();
  CO_OK(closed);
}

Task<void> open_what_was_cut(std::string filename) {
  OpenRequest request;
  request.filename = std::move(filename);
  request.format = "qcow2";
  request.flags.read_only = false;
  request.permissions = Permissions::writer();
  auto opened = co_await open_node(std::move(request));
  CO_OK(opened);
  auto clean = expect_clean(**opened);
  co_await clean;
  const bool there = co_await reads_as(**opened, 7 << 20, 2 << 20, 7);
  EXPECT_TRUE(there);
  auto closed = co_await opened->detach();
  CO_OK(closed);
}

TEST(RefcountTable, ThatMovedIsNamedBeforeItsOldPlaceIsUsedAlsoWithLazyRefcounts) {
  MemoryImage image("table-lazy", 16 << 20, "cluster_size=512,refcount_bits=64,lazy_refcounts=on");
  const std::uint64_t before = word_at(image.disk(), kTableOffset);
  run([&] { return outgrow_lazily(image, "table-cut"); });
  MemoryDisk& cut = *find_memory_disk("table-cut");
  EXPECT_NE(word_at(cut, kTableOffset), before);
  EXPECT_EQ(word_at(cut, word_at(cut, kTableOffset)) % kCluster, 0u);
  run([&] { return open_what_was_cut("memory:table-cut"); });
  remove_memory_disk("table-cut");
}

// A table whose last entry names a block that counts nothing yet, with none before it: larger ones
// that are placed there would replace it.
void leave_an_empty_block(MemoryDisk& disk) {
  constexpr std::uint64_t kEntries = 63 * kCounts;
  constexpr std::uint64_t kFull = kEntries - 3;      // the block that counts the table
  constexpr std::uint64_t kFirst = kFull * kCounts;  // the first cluster that it counts: itself
  constexpr std::uint64_t kEmpty = 40;               // the cluster of the empty block
  const std::uint64_t old_table = word_at(disk, kTableOffset);
  const std::uint64_t first_block = word_at(disk, old_table);
  disk.resize((kFirst + kCounts) * kCluster);
  for (std::uint64_t i = 0; i < kCounts; ++i) put_word(disk, kFirst * kCluster + i * 8, 1);
  const std::uint64_t table = (kFirst + 1) * kCluster;
  put_word(disk, table, first_block);
  put_word(disk, table + kFull * 8, kFirst * kCluster);
  put_word(disk, table + (kEntries - 1) * 8, kEmpty * kCluster);
  put_word(disk, first_block + kEmpty * 8, 1);
  put_word(disk, first_block + old_table / kCluster * 8, 0);
  put_word(disk, kTableOffset, table);
  std::byte clusters[4];
  store_be(clusters, std::uint32_t{63});
  disk.write(kTableClusters, IoVec(std::span(clusters)));
}

Task<void> outgrow(const MemoryImage& image) {
  auto opened = co_await image.open();
  CO_OK(opened);
  auto clean = expect_clean(**opened);
  co_await clean;
  const ResizeRequest larger{.size = 1 << 30};
  auto done = co_await (*opened)->resize(larger);
  CO_OK(done);
  clean = expect_clean(**opened);
  co_await clean;
  done = co_await fill(**opened, 0, 4 << 20, 1);
  CO_OK(done);
  done = co_await opened->detach();
  CO_OK(done);
  auto again = co_await image.open();
  CO_OK(again);
  clean = expect_clean(**again);
  co_await clean;
  done = co_await again->detach();
  CO_OK(done);
}

TEST(RefcountTable, GrowsAroundBlocksThatAreThere) {
  const MemoryImage image("table-empty", 1 << 20, kSmallest);
  leave_an_empty_block(image.disk());
  run([&] { return outgrow(image); });
}

}  // namespace
}  // namespace platter::qcow2::refcount_table
