// Snapshots of a disk that is in use: requests go on while one is taken or removed, and it holds
// what the disk held when it was asked for.
#include <fmt/format.h>

#include <atomic>

#include "block/base/bytes.h"
#include "block/exec/executor_thread.h"
#include "race/race_support.h"

namespace platter::qcow2 {
namespace {

using namespace testing;  // NOLINT: helpers of these tests

constexpr std::uint64_t kSnapshotCluster = 4096;
constexpr std::uint64_t kCovered = kSnapshotCluster / 8 * kSnapshotCluster;  // by an L2 table

// The word at `at` of the image's file.
std::uint64_t stored(const MemoryImage& image, std::uint64_t at) {
  std::byte word[8];
  image.disk().read(at, IoVec(std::span(word)));
  return load_be<std::uint64_t>(word);
}
std::uint64_t l2_table(const MemoryImage& image) {
  return l1_offset(stored(image, stored(image, 40)));
}
std::uint64_t refcount_block(const MemoryImage& image) { return stored(image, stored(image, 48)); }

// Where the operation is halted.
enum class Where { kFlags, kCounting, kCounts };
void halt(FaultPoints& points, const MemoryImage& image, Where where) {
  if (where == Where::kFlags)
    points.suspend_operation("s", fault_op::kWrite, l2_table(image), kSnapshotCluster);
  if (where == Where::kCounting) points.suspend("s", FaultEvent::kRefblockUpdate);
  if (where == Where::kCounts)
    points.suspend_operation("s", fault_op::kWrite, refcount_block(image), kSnapshotCluster);
}

Task<Result<void>> prepare(BlockNode& node) {
  auto done = co_await fill(node, 0, 16 * kSnapshotCluster, 1);
  PLATTER_CO_TRY(done);
  done = co_await fill(node, kCovered, 4 * kSnapshotCluster, 2);
  PLATTER_CO_TRY(done);
  // In a part of the first table that nobody changes meanwhile.
  done = co_await fill(node, 200 * kSnapshotCluster, kSnapshotCluster, 7);
  PLATTER_CO_TRY(done);
  auto data = bytes(2 * kSnapshotCluster, 3);
  WriteFlags packed{.compressed = true};
  done = co_await node.write(20 * kSnapshotCluster, iov(data), packed);
  PLATTER_CO_TRY(done);
  done = co_await node.flush();
  co_return done;
}

// What requests do meanwhile; all of them must end.
struct Meanwhile {
  std::vector<std::byte> part = bytes(512, 5);
  std::vector<std::byte> whole = bytes(kSnapshotCluster, 6);
  std::vector<Task<Result<void>>> tasks;
  void start(BlockNode& node) {
    tasks.push_back(node.write(2 * kSnapshotCluster + 512, iov(part)));
    tasks.push_back(node.write(2 * kSnapshotCluster + 1024, iov(part)));
    tasks.push_back(node.write(40 * kSnapshotCluster, iov(whole)));
    tasks.push_back(node.write(2 * kCovered, iov(whole)));
    tasks.push_back(node.write(kCovered, iov(part)));
    tasks.push_back(node.discard(5 * kSnapshotCluster, 2 * kSnapshotCluster));
    tasks.push_back(
        node.write_zeroes(7 * kSnapshotCluster, kSnapshotCluster, ZeroFlags{.may_unmap = true}));
  }
  Task<Result<void>> start_packed(BlockNode& node) {
    WriteFlags packed{.compressed = true};
    return node.write(30 * kSnapshotCluster, iov(whole), packed);
  }
};

Task<void> expect_before(BlockNode& node) {
  const bool plain = co_await reads_as(node, 0, 16 * kSnapshotCluster, 1);
  EXPECT_TRUE(plain);
  const bool other = co_await reads_as(node, kCovered, 4 * kSnapshotCluster, 2);
  EXPECT_TRUE(other);
  const bool packed = co_await reads_as(node, 20 * kSnapshotCluster, 2 * kSnapshotCluster, 3);
  EXPECT_TRUE(packed);
  const bool rest = co_await reads_as(node, 30 * kSnapshotCluster, 20 * kSnapshotCluster, 0);
  EXPECT_TRUE(rest);
}
Task<void> expect_after(BlockNode& node) {
  const std::pair<std::uint64_t, int> places[] = {{2 * kSnapshotCluster, 1},
                                                  {2 * kSnapshotCluster + 512, 5},
                                                  {2 * kSnapshotCluster + 1024, 5},
                                                  {40 * kSnapshotCluster, 6},
                                                  {2 * kCovered, 6},
                                                  {kCovered, 5},
                                                  {kCovered + 512, 2},
                                                  {5 * kSnapshotCluster, 0},
                                                  {6 * kSnapshotCluster, 0},
                                                  {7 * kSnapshotCluster, 0},
                                                  {30 * kSnapshotCluster, 6},
                                                  {20 * kSnapshotCluster, 3},
                                                  {8 * kSnapshotCluster, 1}};
  for (const auto& [offset, value] : places) {
    const bool same = co_await reads_as(node, offset, 512, value);
    EXPECT_TRUE(same) << "offset " << offset;
  }
}

Task<void> run_against(const MemoryImage& image, Where where, bool removing) {
  auto opened = co_await open_watched(image, "discard=unmap");
  CO_OK(opened);
  BlockNode& node = *opened->node;
  FaultPoints& points = *opened->points;
  SnapshotAbility& snapshots = *node.driver().snapshots();
  auto done = co_await prepare(node);
  CO_OK(done);
  if (removing) {
    done = co_await snapshots.create("old", 1, 0);
    CO_OK(done);
  }
  halt(points, image, where);
  auto operation = removing ? snapshots.remove("old") : snapshots.create("s", 1, 0);
  const bool second = where == Where::kCounts && !removing;
  if (second && points.is_suspended("s")) {
    // The first write is that of new tables' counts; the next is that of the others'.
    points.suspend_operation("t", fault_op::kWrite, refcount_block(image), kSnapshotCluster);
    auto on = points.resume("s");
    CO_OK(on);
    auto there = points.wait_suspended("t");
    co_await there;
  }
  const char* const tag = second ? "t" : "s";
  EXPECT_TRUE(points.is_suspended(tag));
  EXPECT_FALSE(operation.done());
  Meanwhile meanwhile;
  meanwhile.start(node);
  // A flush shares the write-back that is halted.
  if (where != Where::kCounts) meanwhile.tasks.push_back(node.flush());
  for (std::size_t i = 0; i < meanwhile.tasks.size(); ++i)
    EXPECT_TRUE(meanwhile.tasks[i].done()) << "request " << i << " waits";
  if (!::testing::Test::HasFailure()) {
    // Packing happens on another thread.
    auto packed = meanwhile.start_packed(node);
    auto written = co_await packed;
    CO_OK(written);
    auto after = expect_after(node);
    co_await after;
  }
  auto resumed = points.resume(tag);
  CO_OK(resumed);
  for (auto& task : meanwhile.tasks) {
    auto one = co_await task;
    EXPECT_TRUE(one) << (one ? "" : one.error().message());
  }
  done = co_await operation;
  EXPECT_TRUE(done) << (done ? "" : done.error().message());
  auto after = expect_after(node);
  co_await after;
  done = co_await node.flush();
  CO_OK(done);
  const std::uint64_t leaks = co_await leaks_of(node);
  EXPECT_EQ(leaks, 0u);
  auto closed = co_await opened->node.detach();
  CO_OK(closed);
}

Task<void> look_at_snapshot(const MemoryImage& image) {
  auto opened = co_await image.open(false);
  CO_OK(opened);
  auto loaded = co_await (*opened)->driver().snapshots()->load("s");
  CO_OK(loaded);
  auto before = expect_before(**opened);
  co_await before;
  auto closed = co_await opened->detach();
  CO_OK(closed);
}

TEST(LiveSnapshot, RequestsGoOnWhileOneIsTaken) {
  for (const char* version : {"0.10", "1.1"}) {
    for (const Where where : {Where::kFlags, Where::kCounting, Where::kCounts}) {
      SCOPED_TRACE(fmt::format("version {}, halted at {}", version, static_cast<int>(where)));
      MemoryImage image("live-create", 8 << 20, fmt::format("cluster_size=4k,compat={}", version));
      run([&] { return run_against(image, where, false); });
      run([&] { return look_at_snapshot(image); });
    }
  }
}

TEST(LiveSnapshot, RequestsGoOnWhileOneIsRemoved) {
  for (const char* version : {"0.10", "1.1"}) {
    for (const Where where : {Where::kFlags, Where::kCounting, Where::kCounts}) {
      if (where == Where::kFlags) continue;  // they are written back with everything else
      SCOPED_TRACE(fmt::format("version {}, halted at {}", version, static_cast<int>(where)));
      MemoryImage image("live-remove", 8 << 20, fmt::format("cluster_size=4k,compat={}", version));
      run([&] { return run_against(image, where, true); });
    }
  }
}

// Once it has gone, what it shared is written in place again.
Task<void> own_again(const MemoryImage& image) {
  auto opened = co_await image.open();
  CO_OK(opened);
  BlockNode& node = **opened;
  auto done = co_await prepare(node);
  CO_OK(done);
  done = co_await node.driver().snapshots()->create("s", 1, 0);
  CO_OK(done);
  done = co_await fill(node, kSnapshotCluster, kSnapshotCluster, 7);  // a table of its own
  CO_OK(done);
  done = co_await node.driver().snapshots()->remove("s");
  CO_OK(done);
  for (const std::uint64_t at : {std::uint64_t{0}, kSnapshotCluster, kCovered}) {
    auto before = co_await node.extent(at, kSnapshotCluster);
    CO_OK(before);
    done = co_await fill(node, at, kSnapshotCluster, 8);
    CO_OK(done);
    auto after = co_await node.extent(at, kSnapshotCluster);
    CO_OK(after);
    EXPECT_EQ(before->host_offset, after->host_offset) << at;
  }
  const std::uint64_t leaks = co_await leaks_of(node);
  EXPECT_EQ(leaks, 0u);
  auto closed = co_await opened->detach();
  CO_OK(closed);
}

TEST(LiveSnapshot, WhatItSharedIsWrittenInPlaceAgain) {
  MemoryImage image("live-own", 8 << 20, "cluster_size=4k");
  run([&] { return own_again(image); });
}

// A write that replaces a cluster is under way when the cluster becomes the disk's alone: a second
// write to it must not go where the first one's reader has been already.
Task<void> claim_against_removal(const MemoryImage& image) {
  auto opened = co_await open_watched(image);
  CO_OK(opened);
  BlockNode& node = *opened->node;
  FaultPoints& points = *opened->points;
  auto done = co_await prepare(node);
  CO_OK(done);
  done = co_await node.driver().snapshots()->create("s", 1, 0);
  CO_OK(done);
  auto own_table = co_await fill(node, 9 * kSnapshotCluster, kSnapshotCluster, 4);
  CO_OK(own_table);
  points.suspend("w", FaultEvent::kCowWrite);
  auto first = bytes(512, 5);
  auto writing = node.write(2 * kSnapshotCluster, iov(first));
  EXPECT_TRUE(points.is_suspended("w"));
  auto removing = node.driver().snapshots()->remove("s");
  EXPECT_FALSE(removing.done()) << "the claim must end first";
  auto second = bytes(512, 6);
  auto behind = node.write(2 * kSnapshotCluster + 512, iov(second));
  auto resumed = points.resume("w");
  CO_OK(resumed);
  auto written = co_await writing;
  CO_OK(written);
  written = co_await behind;
  CO_OK(written);
  done = co_await removing;
  CO_OK(done);
  const bool one = co_await reads_as(node, 2 * kSnapshotCluster, 512, 5);
  EXPECT_TRUE(one);
  const bool two = co_await reads_as(node, 2 * kSnapshotCluster + 512, 512, 6);
  EXPECT_TRUE(two) << "lost";
  const std::uint64_t leaks = co_await leaks_of(node);
  EXPECT_EQ(leaks, 0u);
  auto closed = co_await opened->node.detach();
  CO_OK(closed);
}

TEST(LiveSnapshot, AReplacementUnderWayIsNotOvertaken) {
  MemoryImage image("live-claim", 8 << 20, "cluster_size=4k");
  run([&] { return claim_against_removal(image); });
}

// A table changes just before it is frozen, and is to be copied while that change is on its way to
// the disk: the copy must have it.
Task<void> copy_of_a_changed_table(const MemoryImage& image) {
  auto opened = co_await open_watched(image);
  CO_OK(opened);
  BlockNode& node = *opened->node;
  FaultPoints& points = *opened->points;
  auto done = co_await prepare(node);
  CO_OK(done);
  // The dirty bit, for which the header is written: before the table is frozen.
  points.suspend_operation("header", fault_op::kWrite, 0, 512);
  auto taking = node.driver().snapshots()->create("s", 1, 0);
  auto halted = points.wait_suspended("header");
  co_await halted;
  done = co_await fill(node, 100 * kSnapshotCluster, kSnapshotCluster, 8);
  CO_OK(done);
  points.suspend_operation("marked", fault_op::kFlush);
  auto resumed = points.resume("header");
  CO_OK(resumed);
  auto marked = points.wait_suspended("marked");
  co_await marked;
  points.suspend_operation("counted", fault_op::kFlush);
  resumed = points.resume("marked");
  CO_OK(resumed);
  auto counted = points.wait_suspended("counted");
  co_await counted;
  auto data = bytes(kSnapshotCluster, 9);
  auto writing = node.write(40 * kSnapshotCluster, iov(data));
  EXPECT_FALSE(writing.done()) << "the table must be on the disk first";
  resumed = points.resume("counted");
  CO_OK(resumed);
  auto written = co_await writing;
  CO_OK(written);
  done = co_await taking;
  CO_OK(done);
  auto closed = co_await opened->node.detach();
  CO_OK(closed);
  auto again = co_await image.open();
  CO_OK(again);
  const bool before = co_await reads_as(**again, 100 * kSnapshotCluster, kSnapshotCluster, 8);
  EXPECT_TRUE(before) << "lost";
  const bool after = co_await reads_as(**again, 40 * kSnapshotCluster, kSnapshotCluster, 9);
  EXPECT_TRUE(after);
  const std::uint64_t leaks = co_await leaks_of(**again);
  EXPECT_EQ(leaks, 0u);
  closed = co_await again->detach();
  CO_OK(closed);
}

TEST(LiveSnapshot, ATableIsOnDiskBeforeItIsCopied) {
  MemoryImage image("live-copy", 8 << 20, "cluster_size=4k");
  run([&] { return copy_of_a_changed_table(image); });
}

// Where counts cannot rise, no snapshot is taken, and the disk is as it was.
Task<void> no_room_in_counts(const MemoryImage& image) {
  auto opened = co_await image.open();
  CO_OK(opened);
  BlockNode& node = **opened;
  auto done = co_await fill(node, 0, 16 * kSnapshotCluster, 1);
  CO_OK(done);
  auto before = co_await node.extent(0, kSnapshotCluster);
  CO_OK(before);
  auto taken = co_await node.driver().snapshots()->create("s", 1, 0);
  EXPECT_FALSE(taken);
  EXPECT_TRUE(node.driver().snapshots()->list().empty());
  done = co_await fill(node, 0, kSnapshotCluster, 2);
  CO_OK(done);
  auto after = co_await node.extent(0, kSnapshotCluster);
  CO_OK(after);
  EXPECT_EQ(before->host_offset, after->host_offset) << "still the disk's alone";
  const std::uint64_t leaks = co_await leaks_of(node);
  EXPECT_EQ(leaks, 0u);
  auto closed = co_await opened->detach();
  CO_OK(closed);
}

TEST(LiveSnapshot, ThatFailsLeavesTheDiskAsItWas) {
  MemoryImage image("live-full", 8 << 20, "cluster_size=4k,refcount_bits=1");
  run([&] { return no_room_in_counts(image); });
  std::vector<std::byte> head(kSnapshotCluster);
  image.disk().read(0, IoVec(std::span(head)));
  const auto parsed = parse_header(head, image.disk().size());
  ASSERT_TRUE(parsed);
  EXPECT_FALSE(parsed->dirty());
}

}  // namespace
}  // namespace platter::qcow2
