// Operations on one image beside each other: each sees what the other has made of it.
#include "block/jobs/stream.h"
#include "race/race_support.h"

namespace platter::qcow2::operations_race {
namespace {

using namespace qcow2::testing;  // NOLINT: helpers of these tests
using platter::testing::message_of;

class OverABackingImage : public ::testing::Test {
 protected:
  OverABackingImage() {
    auto backing = make_memory_disk("operations-backing", 4 << 20);
    auto data = bytes(4 << 20, 7);
    backing->write(0, iov(data));
  }
  ~OverABackingImage() override { remove_memory_disk("operations-backing"); }

  static constexpr std::string_view kOver =
      "backing_file=memory:operations-backing,backing_fmt=raw";
};

// The header is on its way with counts of another width; the reference changes then.
Task<void> rename_beside_amending(const MemoryImage& image) {
  {
    auto opened = co_await open_watched(image);
    CO_OK(opened);
    BlockNode& node = *opened->node;
    FaultPoints& points = *opened->points;
    auto done = co_await fill(node, 0, 1 << 20, 3);
    CO_OK(done);
    points.suspend_operation("header", fault_op::kWrite, 0, 512);
    auto amending = node.driver().amender()->amend(options("refcount_bits=64"), false, {}, nullptr);
    auto halted = points.wait_suspended("header");
    co_await halted;
    points.suspend_operation("behind", fault_op::kFlush | fault_op::kRead | fault_op::kWrite);
    auto resumed = points.resume("header");
    CO_OK(resumed);
    halted = points.wait_suspended("behind");
    co_await halted;
    auto changing = node.driver().backing_reference()->change_backing("", "", {});
    resumed = points.resume("behind");
    CO_OK(resumed);
    done = co_await amending;
    CO_OK(done);
    done = co_await changing;
    CO_OK(done);
    EXPECT_EQ(node.driver().backing_reference()->backing_filename(), "");
    done = co_await fill(node, 1 << 20, 1 << 20, 5);
    CO_OK(done);
    auto closed = co_await opened->node.detach();
    CO_OK(closed);
  }
  auto again = co_await image.open();
  CO_OK(again);
  EXPECT_EQ((*again)->driver().backing_reference()->backing_filename(), "");
  const std::uint64_t leaks = co_await leaks_of(**again);
  EXPECT_EQ(leaks, 0u);
  auto closed = co_await again->detach();
  CO_OK(closed);
}

TEST_F(OverABackingImage, ANewReferenceKeepsNewRefcounts) {
  MemoryImage image("operations", 4 << 20, kOver);
  run([&] { return rename_beside_amending(image); });
}

// The counts are on disk before what they count: no mode in which they are not begins amid that.
Task<void> reopen_beside_a_snapshot(Watched& opened) {
  BlockNode& node = *opened.node;
  auto done = co_await fill(node, 0, 1 << 20, 1);
  CO_OK(done);
  opened.points->suspend("taking", FaultEvent::kRefblockUpdate);
  auto taking = node.driver().snapshots()->create("s", 1, 1);
  auto halted = opened.points->wait_suspended("taking");
  co_await halted;
  OpenFlags flags = node.flags();
  flags.discard_unmap = true;
  auto reopening = reopen(node, flags);
  EXPECT_FALSE(reopening.done()) << "reopened while a snapshot was being taken";
  auto resumed = opened.points->resume("taking");
  CO_OK(resumed);
  done = co_await taking;
  CO_OK(done);
  done = co_await reopening;
  CO_OK(done);
  EXPECT_TRUE(node.flags().discard_unmap);
  done = co_await fill(node, 0, 1 << 20, 2);
  CO_OK(done);
}

TEST(OperationsRace, AReopenWaitsForASnapshotThatIsBeingTaken) {
  act_out({.create = "lazy_refcounts=on"}, reopen_beside_a_snapshot);
}

// Its L1 table was copied before the data was.
Task<void> stream_beside_a_snapshot(Watched& opened) {
  BlockNode& node = *opened.node;
  opened.points->suspend("taking", FaultEvent::kRefblockUpdate);
  auto done = co_await fill(node, 0, 4096, 1);
  CO_OK(done);
  auto taking = node.driver().snapshots()->create("s", 1, 1);
  auto halted = opened.points->wait_suspended("taking");
  co_await halted;
  const StreamOptions all;
  auto streaming = stream(node, all);
  auto resumed = opened.points->resume("taking");
  CO_OK(resumed);
  done = co_await taking;
  CO_OK(done);
  done = co_await streaming;
  EXPECT_FALSE(done) << "streamed although a snapshot was being taken";
  bool shown = co_await reads_as(node, 1 << 19, 1 << 19, 7);
  EXPECT_TRUE(shown);
  done = co_await node.driver().snapshots()->apply("s");
  CO_OK(done);
  shown = co_await reads_as(node, 1 << 19, 1 << 19, 7);
  EXPECT_TRUE(shown) << "the snapshot has lost what it showed";
}

TEST_F(OverABackingImage, ASnapshotThatIsBeingTakenHoldsAStreamBack) {
  act_out({.create = kOver}, stream_beside_a_snapshot);
}

// The disk would change without the bitmap showing it.
Task<void> apply_beside_adding(Watched& opened) {
  BlockNode& node = *opened.node;
  auto done = co_await fill(node, 0, 1 << 20, 1);
  CO_OK(done);
  done = co_await node.driver().snapshots()->create("s", 1, 1);
  CO_OK(done);
  done = co_await fill(node, 0, 1 << 20, 2);
  CO_OK(done);
  done = co_await node.flush();
  CO_OK(done);
  opened.points->suspend_operation("adding", fault_op::kWrite | fault_op::kFlush);
  auto adding = node.driver().bitmaps()->add("b", 0, true);
  auto halted = opened.points->wait_suspended("adding");
  co_await halted;
  auto applying = node.driver().snapshots()->apply("s");
  auto resumed = opened.points->resume("adding");
  CO_OK(resumed);
  done = co_await adding;
  CO_OK(done);
  done = co_await applying;
  EXPECT_EQ(message_of(done), "Device has active dirty bitmaps");
  const bool kept = co_await reads_as(node, 0, 1 << 20, 2);
  EXPECT_TRUE(kept);
}

TEST(OperationsRace, ABitmapThatIsBeingAddedHoldsAnApplyBack) { act_out({}, apply_beside_adding); }

// The VM state of the snapshot lies where the larger disk had data.
Task<void> write_beside_applying(Watched& opened) {
  BlockNode& node = *opened.node;
  auto done = co_await fill(node, 0, 1 << 20, 1);
  CO_OK(done);
  auto state = bytes(65536, 5);
  done = co_await node.driver().vm_state()->write(0, iov(state));
  CO_OK(done);
  done = co_await node.driver().snapshots()->create("s", 1, 1);
  CO_OK(done);
  const ResizeRequest larger{.size = 1 << 30};
  done = co_await node.resize(larger);
  CO_OK(done);
  done = co_await node.flush();
  CO_OK(done);
  opened.points->suspend_operation("applying", fault_op::kWrite | fault_op::kFlush);
  auto applying = node.driver().snapshots()->apply("s");
  auto halted = opened.points->wait_suspended("applying");
  co_await halted;
  auto data = bytes(4096, 9);
  auto writing = node.write(512 << 20, iov(data));
  auto resumed = opened.points->resume("applying");
  CO_OK(resumed);
  done = co_await applying;
  CO_OK(done);
  done = co_await writing;
  EXPECT_FALSE(done) << "written behind the end";
  EXPECT_EQ(node.size(), 1u << 20);
  auto now = bytes(65536, 0);
  done = co_await node.driver().vm_state()->read(0, iov(now));
  CO_OK(done);
  EXPECT_TRUE(now == state) << "a guest's write has changed the VM state";
}

TEST(OperationsRace, AWriteThatWaitedDoesNotGoBehindTheEndOfASnapshot) {
  act_out({}, write_beside_applying);
}

}  // namespace
}  // namespace platter::qcow2::operations_race
