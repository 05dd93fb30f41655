// Space that has been given up comes back: to a write that finds the device full, and to the file
// when its tables are loaded again.
#include "race/race_support.h"

namespace platter::qcow2 {
namespace {

using namespace testing;  // NOLINT: helpers of these tests

constexpr std::size_t kSpace = 65536;  // a cluster

// Eight clusters of the disk, and no room for a ninth.
Task<void> fill_device(Watched& watched) {
  BlockNode& node = *watched.node;
  auto done = co_await fill(node, 0, 8 * kSpace, 1);
  CO_OK(done);
  done = co_await node.flush();
  CO_OK(done);
  watched.driver().clusters().limit_clusters(watched.driver().storage()->size() / kSpace);
  done = co_await fill(node, 8 * kSpace, kSpace, 2);
  EXPECT_FALSE(done) << "the device is full";
  if (!done) {
    EXPECT_EQ(done.error().code(), ENOSPC);
  }
}

Task<void> write_into_discarded(Watched& watched) {
  BlockNode& node = *watched.node;
  auto filling = fill_device(watched);
  co_await filling;
  auto done = co_await node.discard(0, 4 * kSpace);
  CO_OK(done);
  done = co_await fill(node, 8 * kSpace, 3 * kSpace, 2);
  EXPECT_TRUE(done) << "four clusters wait for no more than a flush";
  // The last one, for zeroes that must be written, and then it ends.
  done = co_await fill(node, 11 * kSpace, kSpace, 3);
  CO_OK(done);
  done = co_await fill(node, 12 * kSpace, kSpace, 4);
  EXPECT_FALSE(done);
  bool same = co_await reads_as(node, 8 * kSpace, 3 * kSpace, 2);
  EXPECT_TRUE(same);
  same = co_await reads_as(node, 11 * kSpace, kSpace, 3);
  EXPECT_TRUE(same);
  same = co_await reads_as(node, 12 * kSpace, kSpace, 0);
  EXPECT_TRUE(same) << "a write that failed has changed something";
}

TEST(Space, ThatIsDiscardedIsFoundWithoutAFlush) {
  act_out({.size = 2 << 20, .open = "discard=unmap"}, write_into_discarded);
}

// Clusters that a request may still read are not written to.
Task<void> write_beside_reader(Watched& watched) {
  BlockNode& node = *watched.node;
  FaultPoints& points = *watched.points;
  auto filling = fill_device(watched);
  co_await filling;
  points.suspend("r", FaultEvent::kMapped);
  auto data = bytes(kSpace, 9);
  auto reading = node.read(0, iov(data));
  EXPECT_TRUE(points.is_suspended("r"));
  auto done = co_await node.discard(0, kSpace);
  CO_OK(done);
  auto writing = fill(node, 8 * kSpace, kSpace, 2);
  EXPECT_FALSE(writing.done()) << "the reader has not ended";
  auto resumed = points.resume("r");
  CO_OK(resumed);
  done = co_await reading;
  CO_OK(done);
  EXPECT_EQ(data, bytes(kSpace, 1));
  done = co_await writing;
  CO_OK(done);
}

TEST(Space, ThatSomebodyStillReadsIsWaitedFor) {
  act_out({.size = 2 << 20, .open = "discard=unmap"}, write_beside_reader);
}

// All at once: each takes its part of what there is.
Task<void> many_writers(Watched& watched) {
  constexpr std::uint64_t kWriters = 6;
  BlockNode& node = *watched.node;
  auto filling = fill_device(watched);
  co_await filling;
  auto done = co_await node.discard(0, kWriters * kSpace);
  CO_OK(done);
  watched.points->suspend_operation("f", fault_op::kFlush);
  std::vector<Task<Result<void>>> writers;
  for (std::uint64_t i = 0; i < kWriters; ++i)
    writers.push_back(fill(node, (8 + i) * kSpace, kSpace, static_cast<int>(i) + 1));
  EXPECT_TRUE(watched.points->is_suspended("f"));
  auto resumed = watched.points->resume("f");
  CO_OK(resumed);
  for (auto& writer : writers) {
    done = co_await writer;
    EXPECT_TRUE(done);
  }
  for (std::uint64_t i = 0; i < kWriters; ++i) {
    const bool same = co_await reads_as(node, (8 + i) * kSpace, kSpace, static_cast<int>(i) + 1);
    EXPECT_TRUE(same) << i;
  }
}

TEST(Space, IsEnoughForAllWhoWait) {
  act_out({.size = 2 << 20, .open = "discard=unmap"}, many_writers);
}

// What keeps the space from coming back is no reason to say anything else, or nothing.
Task<void> write_back_fails(Watched& watched) {
  BlockNode& node = *watched.node;
  auto filling = fill_device(watched);
  co_await filling;
  auto done = co_await node.discard(0, kSpace);
  CO_OK(done);
  watched.points->add(FaultRule{.operations = fault_op::kFlush, .count = 1, .error = EIO});
  done = co_await fill(node, 8 * kSpace, kSpace, 2);
  EXPECT_FALSE(done);
  if (!done) {
    EXPECT_EQ(done.error().code(), ENOSPC);
  }
  done = co_await node.flush();
  EXPECT_FALSE(done) << "a flush has failed, and nobody was told";
  done = co_await node.flush();
  CO_OK(done);
  done = co_await fill(node, 8 * kSpace, kSpace, 2);
  CO_OK(done);
}

TEST(Space, ThatDoesNotComeBackIsSaid) {
  act_out({.size = 2 << 20, .open = "discard=unmap"}, write_back_fails);
}

// A snapshot is being deleted: nothing is freed meanwhile, and nobody waits for that.
Task<void> write_beside_snapshots(Watched& watched) {
  BlockNode& node = *watched.node;
  FaultPoints& points = *watched.points;
  auto done = co_await node.driver().snapshots()->create("s", 1, 1);
  CO_OK(done);
  auto filling = fill_device(watched);
  co_await filling;
  points.suspend_operation("s", fault_op::kWrite | fault_op::kFlush);
  auto deleting = node.driver().snapshots()->remove("s");
  auto halted = points.wait_suspended("s");
  co_await halted;
  done = co_await node.discard(0, kSpace);
  CO_OK(done);
  auto writing = fill(node, 8 * kSpace, kSpace, 2);
  auto resumed = points.resume("s");
  CO_OK(resumed);
  done = co_await deleting;
  CO_OK(done);
  done = co_await writing;  // either way
  if (!done) {
    EXPECT_EQ(done.error().code(), ENOSPC);
  }
  done = co_await fill(node, 8 * kSpace, kSpace, 2);
  CO_OK(done);
}

TEST(Space, IsNotWaitedForWhileASnapshotGoes) {
  act_out({.size = 2 << 20, .open = "discard=unmap"}, write_beside_snapshots);
}

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
