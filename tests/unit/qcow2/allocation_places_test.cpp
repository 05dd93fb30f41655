// Where clusters are taken from when the map of free ones and the end of the file compete.
#include "formats/qcow2/driver.h"
#include "unit/qcow2/engine_support.h"

namespace platter::qcow2 {
namespace {

using namespace testing;  // NOLINT: helpers of these tests
using platter::testing::message_of;

// A table of several clusters, asked for while holes are free and the file's end stands at every
// place of a refcount block: also where the next one does not exist yet.
Task<void> tables_at_every_place(BlockNode& node) {
  std::vector<std::byte> cluster(512, std::byte{1});
  SnapshotAbility& snapshots = *node.driver().snapshots();
  for (const char letter : {'a', 'b', 'c'}) {
    const std::string name(kMaxSnapshotName, letter);
    auto made = co_await snapshots.create(name, 1, 2);
    EXPECT_OK(made);
  }
  const std::string long_name(kMaxSnapshotName, 'n');
  for (std::uint64_t i = 0; i < 600; ++i) {
    auto written = co_await node.write(i * 512, iov(cluster));
    EXPECT_OK(written);
    if (i % 100 == 50) {
      auto hole = co_await node.discard((i - 2) * 512, 512);
      EXPECT_OK(hole);
    }
    auto made = co_await snapshots.create(long_name, 1, 2);
    EXPECT_OK(made);
    auto removed = co_await snapshots.remove(long_name);
    EXPECT_OK(removed);
    if (::testing::Test::HasFailure()) co_return;
  }
  auto checked = co_await check(node);
  EXPECT_OK(checked);
  if (checked) {
    EXPECT_EQ(checked->corruptions + checked->leaks, 0u);
  }
}

TEST(AllocationPlaces, TablesOfSeveralClustersAreFoundWhereverTheFileEnds) {
  MemoryImage image("places", 1 << 20, "cluster_size=512");
  run([&]() -> Task<void> {
    auto edge = co_await image.open();
    EXPECT_OK(edge);
    auto tables = tables_at_every_place(**edge);
    co_await tables;
    auto closed = co_await edge->detach();
    EXPECT_OK(closed);
  });
}

// Behind what is counted the file holds what somebody has left there: new refcount blocks, and
// those of a larger table, count nothing of it.
TEST(AllocationPlaces, BlocksWhereTheFileHoldsSomethingStartEmpty) {
  // A block counts 128 clusters, and the first table 128 blocks: at some step only a part of a new
  // block is in use.
  MemoryImage image("leavings", 20 << 20, "cluster_size=1k,refcount_bits=64");
  std::vector<std::byte> leavings(24 << 20, std::byte{0x11});
  image.disk().write(image.disk().size(), IoVec(std::span(leavings)));
  run([&]() -> Task<void> {
    auto edge = co_await image.open();
    EXPECT_OK(edge);
    auto data = pattern(176 << 10, 1);
    for (std::uint64_t at = 0; at < (18 << 20) && !::testing::Test::HasFailure();
         at += data.size()) {
      auto written = co_await (*edge)->write(at, iov(data));
      EXPECT_OK(written);
      auto clean = expect_clean(**edge);
      co_await clean;
    }
    auto closed = co_await edge->detach();
    EXPECT_OK(closed);
  });
}

// The same for what is read of a new block only later: its second half, which counts the clusters
// behind those that the table itself takes.
TEST(AllocationPlaces, BlocksOfALargerTableStartEmptyAsAWhole) {
  // The table is full at 8 GiB; what is preallocated ends just before.
  constexpr std::uint64_t kAllocated = 1'046'000 * std::uint64_t{8192};
  constexpr std::uint64_t kMore = 14 << 20;
  MemoryImage image("larger_table", kAllocated,
                    "cluster_size=8k,refcount_bits=64,preallocation=metadata");
  std::vector<std::byte> leavings(32 << 20, std::byte{0x11});
  image.disk().write(image.disk().size(), IoVec(std::span(leavings)));
  run([&]() -> Task<void> {
    auto edge = co_await image.open();
    EXPECT_OK(edge);
    const ResizeRequest request{.size = kAllocated + kMore};
    auto grown = co_await (*edge)->resize(request);
    EXPECT_OK(grown);
    auto& core = static_cast<Qcow2Driver&>((*edge)->driver()).core();
    const std::uint32_t before = core.header.refcount_table_clusters;
    auto data = pattern(1 << 20, 1);
    for (std::uint64_t at = 0; at < kMore; at += data.size()) {
      auto written = co_await (*edge)->write(kAllocated + at, iov(data));
      EXPECT_OK(written);
    }
    auto flushed = co_await (*edge)->flush();
    EXPECT_OK(flushed);
    EXPECT_GT(core.header.refcount_table_clusters, before) << "the table was to be too small";
    auto clean = expect_clean(**edge);
    co_await clean;
    auto closed = co_await edge->detach();
    EXPECT_OK(closed);
  });
}

// Tables that are longer than what one refcount block counts.
struct LongTable {
  const char* options;
  std::uint64_t size;
  std::uint64_t larger;
};

class LongTables : public ::testing::TestWithParam<LongTable> {};

TEST_P(LongTables, FindTheirPlace) {
  const LongTable& p = GetParam();
  MemoryImage image("long", p.size, p.options);
  run([&]() -> Task<void> {
    auto edge = co_await image.open();
    EXPECT_OK(edge);
    BlockNode& node = **edge;
    std::vector<std::byte> data(4096, std::byte{7});
    auto written = co_await node.write(p.size - data.size(), iov(data));
    EXPECT_OK(written);
    SnapshotAbility& snapshots = *node.driver().snapshots();
    auto made = co_await snapshots.create("before", 1, 2);
    EXPECT_OK(made);
    auto resized = co_await node.resize(ResizeRequest{.size = p.larger});
    EXPECT_OK(resized);
    made = co_await snapshots.create("after", 1, 2);
    EXPECT_OK(made);
    written = co_await node.write(p.larger - data.size(), iov(data));
    EXPECT_OK(written);
    for (const std::uint64_t at : {p.size, p.larger}) {
      std::vector<std::byte> back(data.size());
      auto read = co_await node.read(at - back.size(), iov(back));
      EXPECT_OK(read);
      EXPECT_EQ(back, data);
    }
    auto checked = co_await check(node);
    EXPECT_OK(checked);
    if (checked) {
      EXPECT_EQ(checked->corruptions + checked->leaks, 0u);
    }
    auto closed = co_await edge->detach();
    EXPECT_OK(closed);
  });
}

constexpr std::uint64_t kMebi = 1 << 20;

INSTANTIATE_TEST_SUITE_P(
    All, LongTables,
    ::testing::Values(LongTable{"cluster_size=512", 64 * kMebi, 512 * kMebi},
                      LongTable{"cluster_size=512", 512 * kMebi, 1024 * kMebi},
                      LongTable{"cluster_size=512,refcount_bits=64", 127 * kMebi, 500 * kMebi},
                      LongTable{"cluster_size=4k", 1024 * 1024 * kMebi, 2 * 1024 * 1024 * kMebi}));

}  // namespace
}  // namespace platter::qcow2
