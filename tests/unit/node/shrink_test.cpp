// Requests that wait for others while the disk becomes shorter.
#include "block/adapters/memory.h"
#include "block/filters/fault.h"
#include "unit/node/support.h"

namespace platter {
namespace {

using namespace testing;

// A raw disk whose format was guessed: what reaches its start goes one after another.
class ShrinkBesideRequests : public ::testing::Test {
 protected:
  static constexpr std::uint64_t kShort = 512;

  void SetUp() override {
    disk_ = make_memory_disk("shrinking", 256 * kMiB);
    OpenRequest request;
    request.options = *Options::parse_keyval("filename=blkdebug::memory:shrinking");
    request.flags.read_only = false;
    request.permissions = Permissions::writer();
    request.permissions.need |= perm::kResize;
    auto opened = run([&] { return open_node(request); });
    ASSERT_OK(opened);
    edge_ = std::move(*opened);
    ASSERT_TRUE(edge_->probed());
  }
  void TearDown() override {
    EXPECT_OK(close(edge_));
    remove_memory_disk("shrinking");
  }

  // What a request answers that began behind a write which goes on once the disk is short.
  template <class Start>
  Result<void> answer_of(Start start) {
    return run([&] { return shrink_beside(&start); });
  }
  template <class Start>
  Task<Result<void>> shrink_beside(Start* start) {
    FaultPoints& points = *fault_points_of(*edge_);
    points.suspend_operation("first", fault_op::kWrite);
    auto first = edge_->write(0, IoVec::of_const(sector_));
    co_await points.wait_suspended("first");
    auto request = (*start)(*edge_);
    EXPECT_FALSE(request.done());
    auto resized = co_await edge_->resize(shorter_);
    EXPECT_OK(resized);
    EXPECT_OK(points.resume("first"));
    auto written = co_await first;
    EXPECT_OK(written);
    auto answer = co_await request;
    co_return answer;
  }
  void expect_refused(const Result<void>& answer) {
    EXPECT_NE(message_of(answer).find("reaches beyond the end at 512"), std::string::npos)
        << message_of(answer);
    EXPECT_EQ(edge_->size(), kShort);
    EXPECT_EQ(disk_->size(), kShort);
    EXPECT_EQ(read_bytes(*edge_, 0, kShort), sector_);
  }

  const std::vector<std::byte> sector_ = filled(kShort, 7);
  const ResizeRequest shorter_{.size = kShort};
  std::shared_ptr<MemoryDisk> disk_;
  Edge edge_;
};

TEST_F(ShrinkBesideRequests, AWriteThatWaitedIsNotMadeBehindTheEnd) {
  const auto bytes = filled(1024, 9);
  // Over the new end, and all behind it.
  for (const std::uint64_t offset : {256U, 512U, 1024U}) {
    SCOPED_TRACE(offset);
    ASSERT_OK(run([&] { return edge_->resize({.size = kMiB}); }));
    expect_refused(
        answer_of([&](BlockNode& node) { return node.write(offset, IoVec::of_const(bytes)); }));
  }
}

TEST_F(ShrinkBesideRequests, ZeroesThatWaitedAreNotWrittenBehindTheEnd) {
  expect_refused(answer_of([](BlockNode& node) { return node.write_zeroes(1024, 255 * kMiB); }));
}

}  // namespace
}  // namespace platter
