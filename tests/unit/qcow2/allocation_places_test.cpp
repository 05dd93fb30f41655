// Where clusters are taken from when the map of free ones and the end of the file compete.
#include "unit/qcow2/engine_support.h"

namespace platter::qcow2 {
namespace {

using namespace testing;  // NOLINT: helpers of these tests
using platter::testing::message_of;

// A table of several clusters, asked for while holes are free and the file's end stands at every
// place of a refcount block: also where the next one does not exist yet.
Task<void> tables_at_every_place(BlockNode& node) {
  std::vector<std::byte> cluster(512, std::byte{1});
  const std::string long_name(1200, 'n');
  for (std::uint64_t i = 0; i < 600; ++i) {
    auto written = co_await node.write(i * 512, iov(cluster));
    EXPECT_OK(written);
    if (i % 100 == 50) {
      auto hole = co_await node.discard((i - 2) * 512, 512);
      EXPECT_OK(hole);
    }
    SnapshotAbility& snapshots = *node.driver().snapshots();
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

}  // namespace
}  // namespace platter::qcow2
