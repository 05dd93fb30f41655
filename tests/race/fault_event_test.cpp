// The points that formats announce, as users of fault rules know them: each is reached by what it
// is named after. And what failed there, when it is tried again.
#include "block/base/bytes.h"
#include "race/race_support.h"

namespace platter::qcow2::fault_events {
namespace {

using namespace qcow2::testing;  // NOLINT: helpers of these tests
using enum FaultEvent;

void expect_reached(const FaultPoints& points, std::initializer_list<FaultEvent> events) {
  for (const FaultEvent event : events)
    EXPECT_GT(points.announced(event), 0u) << fault_event_name(event);
}

// With the smallest clusters and the widest counts a block counts 32 KiB, and a table 2 MiB.
Task<void> grow_refcounts(const MemoryImage& image) {
  auto opened = co_await open_watched(image);
  CO_OK(opened);
  BlockNode& node = *opened->node;
  FaultPoints& points = *opened->points;
  auto done = co_await fill(node, 0, 64 << 10, 1);
  CO_OK(done);
  auto flushed = co_await node.flush();
  CO_OK(flushed);
  expect_reached(points, {kRefblockAlloc, kRefblockAllocWrite, kRefblockAllocHookup});
  EXPECT_EQ(points.announced(kReftableGrow), 0u);
  EXPECT_EQ(points.announced(kRefblockAllocSwitchTable), 0u);
  const std::uint64_t before = points.announced(kRefblockAlloc);
  done = co_await fill(node, 64 << 10, 3 << 20, 2);
  CO_OK(done);
  flushed = co_await node.flush();
  CO_OK(flushed);
  expect_reached(points, {kReftableGrow, kRefblockAllocWriteBlocks, kRefblockAllocWriteTable,
                          kRefblockAllocSwitchTable});
  EXPECT_GT(points.announced(kRefblockAlloc), before);
  const std::uint64_t leaks = co_await leaks_of(node);
  EXPECT_EQ(leaks, 0u);
  auto closed = co_await opened->node.detach();
  CO_OK(closed);
}

TEST(FaultEvents, NewRefcountBlocksAndTables) {
  MemoryImage image("event-refcounts", 8 << 20, "cluster_size=512,refcount_bits=64");
  run([&] { return grow_refcounts(image); });
}

// A failure at each of these points is told, and what is tried again then works.
Task<void> fail_to_grow(const MemoryImage& image, FaultEvent event) {
  auto opened = co_await open_watched(image);
  CO_OK(opened);
  BlockNode& node = *opened->node;
  opened->points->add({.event = event, .operations = fault_op::kUsual, .count = 1, .error = EIO});
  // A block for the table that is there, then more than that table counts.
  auto done = co_await fill(node, 0, 64 << 10, 1);
  auto flushed = co_await node.flush();
  bool told = !done || !flushed;
  done = co_await fill(node, 64 << 10, 3 << 20, 1);
  flushed = co_await node.flush();
  told = told || !done || !flushed;
  EXPECT_TRUE(told);
  EXPECT_EQ(opened->points->acted(), 1u);
  done = co_await fill(node, 0, 4 << 20, 2);
  CO_OK(done);
  for (int i = 0; i < 2; ++i) flushed = co_await node.flush();
  CO_OK(flushed);
  const bool intact = co_await reads_as(node, 0, 4 << 20, 2);
  EXPECT_TRUE(intact);
  static_cast<void>(co_await leaks_of(node));
  auto closed = co_await opened->node.detach();
  CO_OK(closed);
}

TEST(FaultEvents, AFailureAtANewRefcountBlockIsToldAndPasses) {
  for (const FaultEvent event :
       {kRefblockAlloc, kRefblockAllocHookup, kRefblockAllocWrite, kRefblockAllocWriteBlocks,
        kRefblockAllocWriteTable, kRefblockAllocSwitchTable, kReftableGrow}) {
    SCOPED_TRACE(fault_event_name(event));
    MemoryImage image("event-failures", 8 << 20, "cluster_size=512,refcount_bits=64");
    run([&] { return fail_to_grow(image, event); });
  }
}

Task<void> resize_and_empty(const MemoryImage& image) {
  auto opened = co_await open_watched(image);
  CO_OK(opened);
  BlockNode& node = *opened->node;
  FaultPoints& points = *opened->points;
  auto done = co_await fill(node, 0, 1 << 20, 1);
  CO_OK(done);
  auto resized = co_await node.resize(ResizeRequest{.size = 4 << 20});
  CO_OK(resized);
  expect_reached(points, {kL1GrowAllocTable, kL1GrowWriteTable, kL1GrowActivateTable});
  EXPECT_EQ(points.announced(kL1ShrinkWriteTable), 0u);
  resized = co_await node.resize(ResizeRequest{.size = 64 << 10});
  CO_OK(resized);
  expect_reached(points, {kL1ShrinkWriteTable, kL1ShrinkFreeL2Clusters});
  EXPECT_EQ(points.announced(kEmptyImagePrepare), 0u);
  auto emptied = co_await node.driver().backing_reference()->make_empty();
  CO_OK(emptied);
  expect_reached(points, {kEmptyImagePrepare});
  const std::uint64_t leaks = co_await leaks_of(node);
  EXPECT_EQ(leaks, 0u);
  auto closed = co_await opened->node.detach();
  CO_OK(closed);
}

TEST(FaultEvents, ResizingAndEmptying) {
  MemoryImage image("event-resize", 1 << 20, "cluster_size=512");
  run([&] { return resize_and_empty(image); });
}

// As in QEMU the event is the node's below the filter, whatever that is.
Task<void> copy_on_read() {
  OpenRequest request;
  request.options = options(
      "driver=copy-on-read,file.driver=blkdebug,file.image.driver=qcow2,"
      "file.image.file.filename=memory:event-top");
  request.flags.read_only = false;
  request.permissions = Permissions::writer();
  auto opened = co_await open_node(std::move(request));
  CO_OK(opened);
  FaultPoints* const points = fault_points_of(**opened);
  EXPECT_NE(points, nullptr);
  if (!points) co_return;
  const bool read = co_await reads_as(**opened, 0, 4096, 0xbb);
  EXPECT_TRUE(read);
  expect_reached(*points, {kCorWrite});
  auto closed = co_await opened->detach();
  CO_OK(closed);
}

TEST(FaultEvents, CopyOnRead) {
  make_memory_disk("event-base", 0);
  const auto base = bytes(1 << 20, 0xbb);
  find_memory_disk("event-base")->write(0, IoVec::of_const(base));
  MemoryImage image("event-top", 1 << 20, "backing_file=memory:event-base,backing_fmt=raw");
  run([] { return copy_on_read(); });
  remove_memory_disk("event-base");
}

// VM state
// -----------------------------------------------------------------------------------------

// The first write of VM state makes the L1 table longer. The `nth` request after the event fails;
// false: there were not so many.
Task<void> save_twice(const MemoryImage& image, std::uint64_t nth, bool& failed) {
  auto opened = co_await open_watched(image);
  CO_OK(opened);
  BlockNode& node = *opened->node;
  VmStateAbility& vm = *node.driver().vm_state();
  auto done = co_await fill(node, 0, 4096, 1);
  CO_OK(done);
  opened->points->add({.event = kVmstateSave, .skip = nth, .count = 1, .error = EIO});
  auto state = bytes(10000, 7);
  auto saved = co_await vm.write(0, iov(state));
  failed = opened->points->acted() != 0;
  EXPECT_EQ(saved.has_value(), !failed);
  opened->points->clear_rules();
  saved = co_await vm.write(0, iov(state));
  CO_OK(saved);
  auto back = bytes(state.size(), 0);
  auto loaded = co_await vm.read(0, iov(back));
  CO_OK(loaded);
  EXPECT_EQ(back, state);
  // What a flush that failed was for may be lost: who asks for one next is told, once.
  auto flushed = co_await node.flush();
  flushed = co_await node.flush();
  CO_OK(flushed);
  static_cast<void>(co_await leaks_of(node));
  auto closed = co_await opened->node.detach();
  CO_OK(closed);
}

TEST(FaultEvents, VmStateThatCouldNotBeSavedIsSavedTheNextTime) {
  std::uint64_t nth = 0;
  for (bool failed = true; failed && nth < 100; ++nth) {
    SCOPED_TRACE(nth);
    MemoryImage image("event-vm", 1 << 20, "cluster_size=512");
    run([&] { return save_twice(image, nth, failed); });
    if (::testing::Test::HasFailure()) return;
  }
  EXPECT_GT(nth, 5u) << "the L1 table was to grow";
}

// A flush that fails inside an operation is told by the operation, and by the next flush that
// somebody asks for; other operations do not fail for it.
Task<void> operation_after_failed_flush(const MemoryImage& image) {
  auto opened = co_await open_watched(image);
  CO_OK(opened);
  BlockNode& node = *opened->node;
  auto done = co_await fill(node, 0, 4096, 1);
  CO_OK(done);
  opened->points->add({.operations = fault_op::kFlush, .count = 1, .error = EIO});
  auto resized = co_await node.resize(ResizeRequest{.size = 2 << 20});
  EXPECT_FALSE(resized);
  resized = co_await node.resize(ResizeRequest{.size = 2 << 20});
  CO_OK(resized);
  auto flushed = co_await node.flush();
  EXPECT_FALSE(flushed) << "the data that was written before may be lost";
  flushed = co_await node.flush();
  CO_OK(flushed);
  auto closed = co_await opened->node.detach();
  CO_OK(closed);
}

TEST(C5, AnOperationDoesNotFailForAFlushBeforeIt) {
  MemoryImage image("event-flush", 1 << 20, "cluster_size=4k");
  run([&] { return operation_after_failed_flush(image); });
}

}  // namespace
}  // namespace platter::qcow2::fault_events
