// Resizing beside requests that were made before it, and what a cut leaves of it.
#include "block/base/bytes.h"
#include "race/race_support.h"

namespace platter::qcow2::resize_race {
namespace {

using namespace qcow2::testing;  // NOLINT: helpers of these tests
using platter::testing::message_of;

constexpr std::uint64_t kDisk = 1 << 20;
constexpr std::uint64_t kGrown = 2 << 20;

// The backing image is longer than the disk: what it holds behind the disk's end never shows.
class GrowingOver : public ::testing::Test {
 protected:
  GrowingOver() {
    auto backing = make_memory_disk("growing-backing", 4 << 20);
    auto data = bytes(4 << 20, 7);
    backing->write(0, iov(data));
  }
  ~GrowingOver() override { remove_memory_disk("growing-backing"); }

  static constexpr std::string_view kOver = "backing_file=memory:growing-backing,backing_fmt=raw";
};

Task<void> without_space(Watched& opened) {
  BlockNode& node = *opened.node;
  opened.points->add(FaultRule{.event = FaultEvent::kL2AllocWrite,
                               .operations = fault_op::kWrite,
                               .count = 1,
                               .error = ENOSPC});
  const ResizeRequest larger{.size = kGrown};
  auto resized = co_await node.resize(larger);
  EXPECT_FALSE(resized);
  EXPECT_EQ(node.size(), kDisk) << "what failed has changed the size";
}

TEST_F(GrowingOver, FailsAsAWhole) { act_out({.create = kOver}, without_space); }

Task<void> cut_amid(const MemoryImage& image) {
  auto opened = co_await open_watched(image);
  CO_OK(opened);
  BlockNode& node = *opened->node;
  opened->points->suspend("hiding", FaultEvent::kL2AllocWrite);
  const ResizeRequest larger{.size = kGrown};
  auto resizing = node.resize(larger);
  EXPECT_TRUE(opened->points->is_suspended("hiding"));
  std::byte size[8];
  image.disk().read(24, IoVec(std::span(size)));
  EXPECT_EQ(load_be<std::uint64_t>(size), kDisk) << "the header tells of what still shows";
  EXPECT_EQ(node.size(), kDisk);
  auto resumed = opened->points->resume("hiding");
  CO_OK(resumed);
  auto done = co_await resizing;
  CO_OK(done);
  const bool zero = co_await reads_as(node, kDisk, kGrown - kDisk, 0);
  EXPECT_TRUE(zero);
  auto closed = co_await opened->node.detach();
  CO_OK(closed);
}

TEST_F(GrowingOver, TellsTheNewSizeWhenNothingShowsAnyMore) {
  MemoryImage image("growing", kDisk, kOver);
  run([&] { return cut_amid(image); });
}

// Sizes that end amid clusters and sectors of them, and a version that has no zero clusters.
Task<void> grow_twice(Watched& opened) {
  BlockNode& node = *opened.node;
  const std::uint64_t old_size = node.size();
  for (const std::uint64_t more : {std::uint64_t{512}, std::uint64_t{300'032}}) {
    const ResizeRequest larger{.size = node.size() + more};
    auto resized = co_await node.resize(larger);
    CO_OK(resized);
  }
  const bool kept = co_await reads_as(node, 0, old_size, 7);
  EXPECT_TRUE(kept);
  const bool zero = co_await reads_as(node, old_size, node.size() - old_size, 0);
  EXPECT_TRUE(zero);
}

TEST_F(GrowingOver, HidesItWhereverTheDiskEnded) {
  for (const char* how : {"compat=1.1", "compat=0.10", "cluster_size=4k", "extended_l2=on"}) {
    const std::string create = std::string(kOver) + "," + how;
    for (const std::uint64_t size : {kDisk, kDisk + 512, kDisk + 40'960}) {
      SCOPED_TRACE(create + " " + std::to_string(size));
      act_out({.size = size, .create = create}, grow_twice);
    }
  }
}

// A bitmap shows that the disk has changed there.
Task<void> grow_marked(Watched& opened) {
  BlockNode& node = *opened.node;
  BitmapAbility& bitmaps = *node.driver().bitmaps();
  auto done = co_await bitmaps.add("marks", 65536, true);
  CO_OK(done);
  const ResizeRequest larger{.size = kGrown};
  done = co_await node.resize(larger);
  CO_OK(done);
  auto contents = co_await bitmaps.contents("marks");
  CO_OK(contents);
  const auto marked = (*contents)->next(0);
  EXPECT_EQ(marked.offset, kDisk);
  EXPECT_EQ(marked.length, kGrown - kDisk);
}

TEST_F(GrowingOver, IsMarked) { act_out({.create = kOver}, grow_marked); }

// The last cluster, cut off by the disk's end, is none of which a part may go once there is more
// behind it.
Task<void> discard_the_end(Watched& opened) {
  BlockNode& node = *opened.node;
  auto done = co_await fill(node, 0, 96 << 10, 1);
  CO_OK(done);
  opened.points->suspend("growing", FaultEvent::kL1GrowAllocTable);
  const ResizeRequest larger{.size = 1 << 30};
  auto resizing = node.resize(larger);
  EXPECT_TRUE(opened.points->is_suspended("growing"));
  auto discarding = node.discard(64 << 10, 32 << 10);
  EXPECT_FALSE(discarding.done());
  auto resumed = opened.points->resume("growing");
  CO_OK(resumed);
  done = co_await resizing;
  CO_OK(done);
  done = co_await discarding;
  CO_OK(done);
  const bool kept = co_await reads_as(node, 64 << 10, 32 << 10, 1);
  EXPECT_TRUE(kept) << "a whole cluster is gone, and what others have written behind the range";
}

TEST(ResizeRace, ADiscardThatWaitedIsOfWhatIsWholeThen) {
  act_out({.size = 96 << 10, .open = "discard=unmap"}, discard_the_end);
}

Task<void> save_beside_growing(Watched& opened) {
  BlockNode& node = *opened.node;
  auto data = bytes(65536, 9);
  opened.points->suspend("saving", FaultEvent::kVmstateSave);
  auto saving = node.driver().vm_state()->write(0, iov(data));
  EXPECT_TRUE(opened.points->is_suspended("saving"));
  const ResizeRequest larger{.size = 1 << 30};
  auto done = co_await node.resize(larger);
  CO_OK(done);
  auto resumed = opened.points->resume("saving");
  CO_OK(resumed);
  done = co_await saving;
  CO_OK(done);
  const bool zero = co_await reads_as(node, 512 << 20, 65536, 0);
  EXPECT_TRUE(zero) << "VM state is in the guest's disk";
  auto state = bytes(65536, 0);
  done = co_await node.driver().vm_state()->read(0, iov(state));
  CO_OK(done);
  EXPECT_TRUE(state == data);
}

TEST(ResizeRace, VmStateLiesBehindTheDiskAsItIsThen) { act_out({}, save_beside_growing); }

Task<void> write_behind_the_end(Watched& opened) {
  BlockNode& node = *opened.node;
  auto done = co_await fill(node, 0, kDisk, 1);
  CO_OK(done);
  done = co_await fill(node, 600 << 20, 4096, 1);
  CO_OK(done);
  opened.points->suspend("shrinking", FaultEvent::kL1ShrinkWriteTable);
  const ResizeRequest smaller{.size = 96 << 10};
  auto resizing = node.resize(smaller);
  EXPECT_TRUE(opened.points->is_suspended("shrinking"));
  auto data = bytes(4096, 9);
  auto writing = node.write(128 << 10, iov(data));
  auto zeroing = node.write_zeroes(256 << 10, 4096);
  EXPECT_FALSE(writing.done());
  auto resumed = opened.points->resume("shrinking");
  CO_OK(resumed);
  done = co_await resizing;
  CO_OK(done);
  done = co_await writing;
  EXPECT_EQ(message_of(done),
            "request of 4096 bytes at offset 131072 reaches beyond the end at 98304");
  done = co_await zeroing;
  EXPECT_FALSE(done);
  const ResizeRequest larger{.size = kDisk};
  done = co_await node.resize(larger);
  CO_OK(done);
  const bool zero = co_await reads_as(node, 96 << 10, kDisk - (96 << 10), 0);
  EXPECT_TRUE(zero) << "old bytes in a disk that has grown";
}

TEST(ResizeRace, AWriteThatWaitedDoesNotGoBehindTheEnd) {
  act_out({.size = 1 << 30}, write_behind_the_end);
}

}  // namespace
}  // namespace platter::qcow2::resize_race
