// What is taken back when a step in the middle fails, and what may not be: each rule by itself.
#include "block/base/bytes.h"
#include "race/race_support.h"

namespace platter::qcow2 {
namespace {

using namespace testing;  // NOLINT: helpers of these tests

constexpr std::uint64_t kUndoCluster = 512;

// Counts that were raised before one of them could not be are lowered again.
Task<void> snapshot_that_cannot_be_counted(Watched& watched) {
  BlockNode& node = *watched.node;
  SnapshotAbility& snapshots = *node.driver().snapshots();
  // More than what is looked at at once.
  auto done = co_await fill(node, 0, 1024 * kUndoCluster, 1);
  CO_OK(done);
  done = co_await fill(node, 2048 * kUndoCluster, 256 * kUndoCluster, 1);
  CO_OK(done);
  done = co_await node.discard(0, 1024 * kUndoCluster);
  CO_OK(done);
  done = co_await node.flush();
  CO_OK(done);
  for (const char* name : {"a", "b"}) {
    done = co_await snapshots.create(name, 1, 0);
    CO_OK(done);
  }
  // What is there now is the disk's alone; what lies behind it has as many references as can be.
  done = co_await fill(node, 0, 1024 * kUndoCluster, 2);
  CO_OK(done);
  auto taken = co_await snapshots.create("c", 1, 0);
  EXPECT_FALSE(taken);
  if (!taken) {
    EXPECT_NE(taken.error().message().find("would exceed 3"), std::string::npos)
        << taken.error().message();
  }
}

TEST(Undo, CountsThatWereRaised) {
  act_out({.size = 2 << 20, .create = "cluster_size=512,refcount_bits=2", .open = "discard=unmap"},
          snapshot_that_cannot_be_counted);
}

// Space for a longer disk goes back when the header does not get there.
Task<void> growth_without_a_header(Watched& watched) {
  BlockNode& node = *watched.node;
  FaultPoints& points = *watched.points;
  auto done = co_await fill(node, 0, 8 * kUndoCluster, 1);
  CO_OK(done);
  const std::uint64_t size = node.size();
  auto flushed = co_await node.flush();
  CO_OK(flushed);
  const std::uint64_t file_size = node.storage()->size();
  for (const Preallocation mode : {Preallocation::kMetadata, Preallocation::kFull}) {
    points.add({.operations = fault_op::kWrite, .length = 512, .count = 1, .error = EIO});
    const ResizeRequest request{.size = 2 * size, .preallocation = mode};
    auto grown = co_await node.resize(request);
    EXPECT_FALSE(grown);
    EXPECT_EQ(node.size(), size);
    points.clear_rules();
    EXPECT_EQ(node.storage()->size(), file_size);
    const std::uint64_t leaks = co_await leaks_of(node);
    EXPECT_EQ(leaks, 0u);
  }
}

TEST(Undo, SpaceForALongerDisk) {
  act_out({.size = 32 << 10, .create = "cluster_size=4k"}, growth_without_a_header);
}

// Counts that a write-back had taken, and did not come to write, are the next one's.
Task<void> write_back_that_stops_early(Watched& watched) {
  BlockNode& node = *watched.node;
  FaultPoints& points = *watched.points;
  // A new table at the end of the file, which is made as long first of all.
  auto zeroed = co_await node.write_zeroes(0, 4096, ZeroFlags{});
  CO_OK(zeroed);
  points.add({.operations = fault_op::kWrite, .count = 1, .error = ENOSPC});
  auto flushed = co_await node.flush();
  EXPECT_FALSE(flushed);
  EXPECT_EQ(points.acted(), 1u);
  points.clear_rules();
  flushed = co_await node.flush();
  CO_OK(flushed);
}

TEST(Undo, CountsThatWereTakenToBeWritten) {
  act_out({.create = "cluster_size=4k"}, write_back_that_stops_early);
}

// Flags in a snapshot's tables mean nothing (other programs leave them there), and so must be gone
// when the tables become the disk's.
Task<void> flags_in_a_snapshot(Watched& watched) {
  BlockNode& node = *watched.node;
  auto done = co_await fill(node, 0, 4 * kUndoCluster, 1);
  CO_OK(done);
  done = co_await node.driver().snapshots()->create("s", 1, 0);
  CO_OK(done);
  done = co_await fill(node, 0, kUndoCluster, 2);
  CO_OK(done);
  BlockNode& file = *node.storage();
  const auto load = [&file](std::uint64_t at, std::byte* into) {
    return file.read(at, IoVec(std::span(into, 8)));
  };
  std::byte word[8];
  auto read = co_await load(64, word);  // the snapshot table
  CO_OK(read);
  read = co_await load(load_be<std::uint64_t>(word), word);  // the snapshot's L1 table
  CO_OK(read);
  read = co_await load(load_be<std::uint64_t>(word), word);  // its L2 table
  CO_OK(read);
  const std::uint64_t table = l1_offset(load_be<std::uint64_t>(word));
  for (std::uint64_t i = 0; i < 4; ++i) {
    read = co_await load(table + i * 8, word);
    CO_OK(read);
    store_be(word, load_be<std::uint64_t>(word) | kCopied);
    auto written = co_await file.write(table + i * 8, IoVec(std::span(word)));
    CO_OK(written);
  }
  done = co_await node.driver().snapshots()->apply("s");
  CO_OK(done);
  const std::uint64_t leaks = co_await leaks_of(node);
  EXPECT_EQ(leaks, 0u);
  done = co_await fill(node, 0, kUndoCluster, 3);
  CO_OK(done);
  done = co_await node.driver().snapshots()->apply("s");
  CO_OK(done);
  const bool same = co_await reads_as(node, 0, 4 * kUndoCluster, 1);
  EXPECT_TRUE(same) << "the snapshot has changed";
}

TEST(Undo, FlagsOfASnapshotThatIsApplied) {
  act_out({.create = "cluster_size=512"}, flags_in_a_snapshot);
}

}  // namespace
}  // namespace platter::qcow2
