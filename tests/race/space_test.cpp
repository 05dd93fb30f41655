// Space that has been given up comes back before the tables are loaded again, which forgets it.
#include "race/race_support.h"

namespace platter::qcow2 {
namespace {

using namespace testing;  // NOLINT: helpers of these tests

// What a shrink has freed, while a request is turned away.
Task<void> shrink_beside_request(Watched& watched) {
  BlockNode& node = *watched.node;
  FaultPoints& points = *watched.points;
  auto done = co_await fill(node, 0, 1 << 20, 1);
  CO_OK(done);
  done = co_await fill(node, 600 << 20, 4096, 1);
  CO_OK(done);
  points.suspend("s", FaultEvent::kL1ShrinkWriteTable);
  auto resizing = node.resize(ResizeRequest{.size = 96 << 10});
  EXPECT_TRUE(points.is_suspended("s"));
  {
    // As a request of another executor between counting itself in and looking whether it is held.
    InFlight::Ticket ticket(watched.driver().in_flight());
    auto resumed = points.resume("s");
    CO_OK(resumed);
    EXPECT_FALSE(resizing.done()) << "who looks in may have seen what is freed";
  }
  done = co_await resizing;
  CO_OK(done);
}

TEST(Space, OfAShrinkIsFreedWhoeverLooksIn) { act_out({.size = 1 << 30}, shrink_beside_request); }

// The refcount table grows for the new L1 table: one of these finds its last block nearly full.
Task<void> apply_near_the_end(Watched& watched, std::uint64_t first) {
  BlockNode& node = *watched.node;
  auto done = co_await fill(node, 0, first, 1);
  CO_OK(done);
  done = co_await node.driver().snapshots()->create("s", 1, 1);
  CO_OK(done);
  done = co_await node.driver().snapshots()->apply("s");
  CO_OK(done);
}

TEST(Space, OfARefcountTableThatGrewWhileASnapshotWasApplied) {
  constexpr std::uint64_t kSmall = 512;
  for (std::uint64_t clusters = 3890; clusters < 3980; clusters += 3) {
    SCOPED_TRACE(clusters);
    act_out(
        {.size = 8 << 20, .create = "cluster_size=512,refcount_bits=64"},
        [clusters](Watched& watched) { return apply_near_the_end(watched, clusters * kSmall); });
  }
}

}  // namespace
}  // namespace platter::qcow2
