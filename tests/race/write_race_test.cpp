// C6, C7, C8: writes that meet in one cluster, packed neighbours, eviction of what is dirty.
#include <memory>
#include <thread>
#include <vector>

#include "block/exec/executor_thread.h"
#include "race/race_support.h"

namespace platter::qcow2 {
namespace {

using namespace testing;  // NOLINT: helpers of these tests

constexpr std::size_t kWriteCluster = 65536;

Task<void> two_partial_writes(const MemoryImage& image, FaultEvent event) {
  auto opened = co_await open_watched(image, "discard=unmap");
  CO_OK(opened);
  BlockNode& node = *opened->node;
  FaultPoints& points = *opened->points;
  points.suspend("first", event);
  auto one = bytes(4096, 1);
  auto two = bytes(4096, 2);
  auto first = node.write(4096, iov(one));
  EXPECT_TRUE(points.is_suspended("first"));
  auto second = node.write(20480, iov(two));
  if (event != FaultEvent::kClusterAlloc) {
    EXPECT_FALSE(second.done()) << "must wait for the allocation in flight";
  }
  auto resumed = points.resume("first");
  CO_OK(resumed);
  auto first_done = co_await first;
  CO_OK(first_done);
  auto second_done = co_await second;
  CO_OK(second_done);
  const bool a = co_await reads_as(node, 4096, 4096, 1);
  EXPECT_TRUE(a);
  const bool b = co_await reads_as(node, 20480, 4096, 2);
  EXPECT_TRUE(b);
  for (const auto& [offset, size] :
       {std::pair<std::uint64_t, std::size_t>{0, 4096}, {8192, 12288}, {24576, 40960}}) {
    const bool copied = co_await reads_as(node, offset, size, 7);
    EXPECT_TRUE(copied) << offset;
  }
  const std::uint64_t leaks = co_await leaks_of(node);
  EXPECT_EQ(leaks, 0u);
  auto closed = co_await opened->node.detach();
  CO_OK(closed);
}

TEST(C6, TwoPartialWritesToOneUnallocatedCluster) {
  auto backing = make_memory_disk("c6-backing", 1 << 20);
  auto data = bytes(1 << 20, 7);
  backing->write(0, iov(data));
  for (const FaultEvent event :
       {FaultEvent::kClusterAlloc, FaultEvent::kL2AllocWrite, FaultEvent::kCowRead,
        FaultEvent::kCowWrite, FaultEvent::kMapped, FaultEvent::kL2Update}) {
    SCOPED_TRACE(fault_event_name(event));
    MemoryImage image("c6", 1 << 20, "backing_file=memory:c6-backing,backing_fmt=raw");
    run([&] { return two_partial_writes(image, event); });
  }
  remove_memory_disk("c6-backing");
}

// A packed write and one to a part of the same cluster, which has its data elsewhere: whoever comes
// second waits, and builds on what the first has written.
Task<void> packed_beside_another(Watched& watched, bool packed_first) {
  constexpr WriteFlags kPacked{.compressed = true};
  BlockNode& node = *watched.node;
  FaultPoints& points = *watched.points;
  auto table = co_await fill(node, 15 * kWriteCluster, 512, 1);
  CO_OK(table);
  auto whole = bytes(kWriteCluster, 2);
  auto part = bytes(4096, 3);
  Task<Result<void>> first;
  Task<Result<void>> second;
  points.suspend("first", packed_first ? FaultEvent::kL2UpdateCompressed : FaultEvent::kL2Update);
  if (packed_first) {
    first = node.write(0, iov(whole), kPacked);
    auto halted = points.wait_suspended("first");
    co_await halted;
    second = node.write(4096, iov(part));
  } else {
    first = node.write(4096, iov(part));
    EXPECT_TRUE(points.is_suspended("first"));
    second = node.write(0, iov(whole), kPacked);
    // As long as it would take.
    for (std::uint64_t i = 1; i < 9; ++i) {
      auto other = bytes(kWriteCluster, 4);
      auto written = co_await node.write(i * kWriteCluster, iov(other), kPacked);
      CO_OK(written);
    }
  }
  EXPECT_FALSE(second.done()) << "must wait for the first";
  auto resumed = points.resume("first");
  CO_OK(resumed);
  auto done = co_await first;
  CO_OK(done);
  done = co_await second;
  CO_OK(done);
  const bool head = co_await reads_as(node, 0, 4096, 2);
  EXPECT_TRUE(head);
  const bool middle = co_await reads_as(node, 4096, 4096, packed_first ? 3 : 2);
  EXPECT_TRUE(middle);
  const bool tail = co_await reads_as(node, 8192, kWriteCluster - 8192, 2);
  EXPECT_TRUE(tail) << "lost";
}

TEST(C6, APackedWriteAndAnotherToTheSameCluster) {
  auto backing = make_memory_disk("c6-backing", 1 << 20);
  auto data = bytes(1 << 20, 7);
  backing->write(0, iov(data));
  for (const bool packed_first : {true, false}) {
    SCOPED_TRACE(packed_first);
    act_out({.create = "backing_file=memory:c6-backing,backing_fmt=raw"},
            [&](Watched& watched) { return packed_beside_another(watched, packed_first); });
  }
  remove_memory_disk("c6-backing");
}

Task<void> packed_neighbours(const MemoryImage& image, FaultEvent event) {
  auto opened = co_await open_watched(image, "discard=unmap");
  CO_OK(opened);
  BlockNode& node = *opened->node;
  FaultPoints& points = *opened->points;
  for (int i = 0; i < 4; ++i) {
    auto data = bytes(kWriteCluster, i + 1);
    WriteFlags packed{.compressed = true};
    auto written =
        co_await node.write(static_cast<std::uint64_t>(i) * kWriteCluster, iov(data), packed);
    CO_OK(written);
  }
  auto extent = co_await node.extent(0, kWriteCluster);
  CO_OK(extent);
  EXPECT_EQ(extent->kind, ExtentKind::kCompressed);
  const std::uint64_t shared = extent->host_offset / kWriteCluster;
  points.suspend("w", event);
  auto data = bytes(4096, 9);
  auto writing = node.write(kWriteCluster, iov(data));
  auto halted = points.wait_suspended("w");
  co_await halted;
  auto discarded = co_await node.discard(0, kWriteCluster);
  CO_OK(discarded);
  discarded = co_await node.discard(2 * kWriteCluster, kWriteCluster);
  CO_OK(discarded);
  auto flushed = co_await node.flush();
  CO_OK(flushed);
  auto resumed = points.resume("w");
  CO_OK(resumed);
  auto written = co_await writing;
  CO_OK(written);
  const bool head = co_await reads_as(node, kWriteCluster, 4096, 9);
  EXPECT_TRUE(head);
  const bool rest = co_await reads_as(node, kWriteCluster + 4096, kWriteCluster - 4096, 2);
  EXPECT_TRUE(rest);
  const bool last = co_await reads_as(node, 3 * kWriteCluster, kWriteCluster, 4);
  EXPECT_TRUE(last) << "the neighbour does not unpack";
  flushed = co_await node.flush();
  CO_OK(flushed);
  // One reference is left, and the cluster goes with it.
  EXPECT_EQ(opened->driver().refcount_of(shared), 1u);
  discarded = co_await node.discard(3 * kWriteCluster, kWriteCluster);
  CO_OK(discarded);
  flushed = co_await node.flush();
  CO_OK(flushed);
  EXPECT_EQ(opened->driver().refcount_of(shared), 0u);
  const std::uint64_t leaks = co_await leaks_of(node);
  EXPECT_EQ(leaks, 0u);
  auto closed = co_await opened->node.detach();
  CO_OK(closed);
}

TEST(C7, WritingToAPackedClusterWhileItsNeighboursGo) {
  for (const FaultEvent event : {FaultEvent::kCowRead, FaultEvent::kReadCompressed,
                                 FaultEvent::kCowWrite, FaultEvent::kL2Update}) {
    SCOPED_TRACE(fault_event_name(event));
    MemoryImage image("c7", 1 << 20, "");
    run([&] { return packed_neighbours(image, event); });
  }
}

Task<void> evict_dirty(const MemoryImage& image) {
  auto opened = co_await open_watched(image, "l2-cache-size=1024,l2-cache-entry-size=512");
  CO_OK(opened);
  BlockNode& node = *opened->node;
  FaultPoints& points = *opened->points;
  // A slice of 512 bytes maps 64 clusters of 4 KiB.
  constexpr std::uint64_t kSlice = 64 * 4096;
  auto first = co_await fill(node, 0, 4096, 1);
  CO_OK(first);
  auto second = co_await fill(node, kSlice, 4096, 2);
  CO_OK(second);
  points.add({.operations = fault_op::kWrite, .error = EIO});
  for (std::uint64_t i = 2; i < 6; ++i) {
    const bool empty = co_await reads_as(node, i * kSlice, 4096, 0);
    EXPECT_TRUE(empty) << "a reader fails because others' tables cannot be written";
    const bool one = co_await reads_as(node, 0, 4096, 1);
    EXPECT_TRUE(one);
    const bool two = co_await reads_as(node, kSlice, 4096, 2);
    EXPECT_TRUE(two);
  }
  auto flushed = co_await node.flush();
  EXPECT_FALSE(flushed);
  points.clear_rules();
  flushed = co_await node.flush();
  if (!flushed) flushed = co_await node.flush();
  CO_OK(flushed);
  auto closed = co_await opened->node.detach();
  CO_OK(closed);
  auto again = co_await image.open(false);
  CO_OK(again);
  const bool one = co_await reads_as(**again, 0, 4096, 1);
  EXPECT_TRUE(one);
  const bool two = co_await reads_as(**again, kSlice, 4096, 2);
  EXPECT_TRUE(two);
  const std::uint64_t leaks = co_await leaks_of(**again);
  EXPECT_EQ(leaks, 0u);
  auto ended = co_await again->detach();
  CO_OK(ended);
}

TEST(C8, WhatIsDirtyStaysVisibleWhenItCannotBeWritten) {
  MemoryImage image("c8", 8 << 20, "cluster_size=4k");
  run([&] { return evict_dirty(image); });
}

// A request makes the file long enough for a new table while another one's data, further behind,
// makes it longer still.
Task<void> growth_beside_a_write(const MemoryImage& image) {
  constexpr std::uint64_t kGrowthTable = 32 << 10;  // by one table
  auto opened = co_await open_watched(image);
  CO_OK(opened);
  BlockNode& node = *opened->node;
  FaultPoints& points = *opened->points;
  auto first = co_await fill(node, 0, 512, 1);
  CO_OK(first);
  points.suspend_operation("growth", fault_op::kWrite | fault_op::kWriteZeroes | fault_op::kResize);
  auto data = bytes(512, 5);
  auto writing = node.write(kGrowthTable, iov(data));
  EXPECT_TRUE(points.is_suspended("growth")) << "the table's place is there, the table is not";
  auto behind = co_await fill(node, 512, 512, 2);
  CO_OK(behind);
  auto growth_goes_on = points.resume("growth");
  CO_OK(growth_goes_on);
  auto written = co_await writing;
  CO_OK(written);
  auto flushed = co_await node.flush();
  CO_OK(flushed);
  const bool there = co_await reads_as(node, 512, 512, 2);
  EXPECT_TRUE(there) << "the file was cut behind the table";
  const bool here = co_await reads_as(node, kGrowthTable, 512, 5);
  EXPECT_TRUE(here);
  auto closed = co_await opened->node.detach();
  CO_OK(closed);
}

TEST(Growth, OfTheFileForATableNeverCutsDataOff) {
  MemoryImage image("growth", 1 << 20, "cluster_size=512");
  run([&] { return growth_beside_a_write(image); });
}

Task<void> write_in_order(BlockNode& node, std::uint64_t from, std::uint64_t to) {
  for (std::uint64_t offset = from; offset < to; offset += 512) {
    auto written = co_await fill(node, offset, 512, 1);
    CO_OK(written);
  }
}

Task<void> write_and_discard(BlockNode& node, std::uint64_t from, std::uint64_t to, int times) {
  for (int i = 0; i < times; ++i) {
    for (std::uint64_t offset = from; offset < to; offset += 512) {
      auto written = co_await fill(node, offset, 512, 2);
      CO_OK(written);
    }
    auto discarded = co_await node.discard(from, to - from);
    CO_OK(discarded);
    auto flushed = co_await node.flush();  // frees the clusters: they are holes from here on
    CO_OK(flushed);
  }
}

// One queue makes a refcount block for every 64 clusters at the end of the file, and is held as it
// begins one, while others fill the holes that they left. The thread sanitizer sees what they
// share.
TEST(Growth, OfRefcountBlocksBesideWritesIntoHoles) {
  constexpr std::uint64_t kGrowthSize = 4 << 20;
  MemoryImage image("blocks", kGrowthSize, "cluster_size=512,refcount_bits=64");
  auto main = ExecutorThread::start();
  ASSERT_TRUE(main);
  Executor& executor = (*main)->executor();
  auto opened = run_blocking(executor, [&] { return open_watched(image, "discard=unmap"); });
  ASSERT_TRUE(opened) << opened.error().message();
  BlockNode& node = *opened->node;
  {
    std::vector<std::unique_ptr<ExecutorThread>> queues;
    for (int i = 0; i < 4; ++i) {
      auto queue = ExecutorThread::start();
      ASSERT_TRUE(queue);
      queues.push_back(std::move(*queue));
    }
    opened->points->suspend("even", FaultEvent::kRefblockAlloc);
    std::vector<std::thread> waiters;
    for (std::uint64_t i = 0; i < queues.size(); ++i) {
      waiters.emplace_back([&, i] {
        const std::uint64_t own = i * (kGrowthSize / 4);
        run_blocking(queues[i]->executor(), [&] {
          return i == 0 ? write_in_order(node, own, own + kGrowthSize / 4)
                        : write_and_discard(node, own, own + 4096, 100);
        });
      });
    }
    for (int i = 0; i < 16; ++i) {
      const char* const held = i % 2 == 0 ? "even" : "odd";
      run_blocking(executor, [&] { return opened->points->wait_suspended(held); });
      // Before this one goes on, or all the others could have passed.
      opened->points->suspend(i % 2 == 0 ? "odd" : "even", FaultEvent::kRefblockAlloc);
      EXPECT_TRUE(opened->points->resume(held));
    }
    run_blocking(executor, [&] { return opened->points->wait_suspended("even"); });
    EXPECT_TRUE(opened->points->resume("even"));
    for (std::thread& waiter : waiters) waiter.join();
  }
  const auto leaks = run_blocking(executor, [&] { return leaks_of(node); });
  EXPECT_EQ(leaks, 0u);
  auto closed = run_blocking(executor, [&] { return opened->node.detach(); });
  EXPECT_TRUE(closed) << (closed ? "" : closed.error().message());
}

}  // namespace
}  // namespace platter::qcow2
