// Plans of new clusters beside those of other requests.
#include "race/race_support.h"

namespace platter::qcow2::plan_race {
namespace {

using namespace qcow2::testing;  // NOLINT: helpers of these tests

constexpr std::uint64_t kCluster = 65536;

Task<void> take_up_beside_two_writes(const MemoryImage& image) {
  auto opened = co_await open_watched(image);
  CO_OK(opened);
  BlockNode& node = *opened->node;
  FaultPoints& points = *opened->points;
  auto ones = bytes(4096, 0x11);
  auto twos = bytes(4096, 0x22);
  points.suspend("first", FaultEvent::kCowWrite);
  auto first = node.write(2 * kCluster, iov(ones));
  EXPECT_TRUE(points.is_suspended("first"));
  points.suspend("second", FaultEvent::kCowWrite);
  auto second = node.write(5 * kCluster, iov(twos));
  EXPECT_TRUE(points.is_suspended("second"));
  points.suspend("taking", FaultEvent::kCowWrite);
  auto taking = node.take_up(0, 8 * kCluster, {});
  EXPECT_TRUE(points.is_suspended("taking"));
  auto resumed = points.resume("first");
  CO_OK(resumed);
  auto done = co_await first;
  CO_OK(done);
  done = co_await node.flush();
  CO_OK(done);
  resumed = points.resume("taking");
  CO_OK(resumed);
  resumed = points.resume("second");
  CO_OK(resumed);
  done = co_await second;
  CO_OK(done);
  done = co_await taking;
  CO_OK(done);
  const bool kept = co_await reads_as(node, 2 * kCluster, 4096, 0x11);
  EXPECT_TRUE(kept) << "what was written, acknowledged and flushed is gone";
  const bool other = co_await reads_as(node, 5 * kCluster, 4096, 0x22);
  EXPECT_TRUE(other);
  const bool taken = co_await reads_as(node, 0, 2 * kCluster, 7);
  EXPECT_TRUE(taken);
  auto closed = co_await opened->node.detach();
  CO_OK(closed);
}

TEST(PlanRace, APlanEndsBeforeTheFirstOfTheClustersThatOthersReplace) {
  auto backing = make_memory_disk("plan-backing", 1 << 20);
  auto data = bytes(1 << 20, 7);
  backing->write(0, iov(data));
  MemoryImage image("plan", 1 << 20, "backing_file=memory:plan-backing,backing_fmt=raw");
  run([&] { return take_up_beside_two_writes(image); });
  remove_memory_disk("plan-backing");
}

}  // namespace
}  // namespace platter::qcow2::plan_race
