// C1, C2, C3, C13, C15: requests that were under way while a cluster lost its place.
#include "race/race_support.h"
#include "unit/sanitized.h"

namespace platter::qcow2 {
namespace {

using namespace testing;  // NOLINT: helpers of these tests

constexpr std::size_t kCluster = 65536;

// QEMU 7.2 fails this: the suspended write lands in guest 64K.
Task<void> write_against_discard(Watched& watched) {
  BlockNode& node = *watched.node;
  FaultPoints& points = *watched.points;
  auto first = co_await fill(node, 0, kCluster, 1);
  CO_OK(first);
  points.suspend("w", FaultEvent::kMapped);
  auto data = bytes(4096, 2);
  auto writing = node.write(0, iov(data));
  EXPECT_TRUE(points.is_suspended("w"));
  auto discarded = co_await node.discard(0, kCluster);
  CO_OK(discarded);
  for (int i = 0; i < 3; ++i) {
    auto flushed = co_await node.flush();
    CO_OK(flushed);
  }
  auto other = co_await fill(node, kCluster, kCluster, 3);
  CO_OK(other);
  auto resumed = points.resume("w");
  CO_OK(resumed);
  auto written = co_await writing;
  CO_OK(written);
  const bool intact = co_await reads_as(node, kCluster, kCluster, 3);
  EXPECT_TRUE(intact) << "guest 64K holds another range's bytes";
  const bool zero = co_await reads_as(node, 4096, kCluster - 4096, 0);
  EXPECT_TRUE(zero);
}

TEST(C1, InPlaceWriteAgainstDiscardAndReuse) {
  act_out({.open = "discard=unmap,pass-discard-request=off"}, write_against_discard);
}

Task<void> read_against_discard(Watched& watched) {
  BlockNode& node = *watched.node;
  FaultPoints& points = *watched.points;
  auto first = co_await fill(node, 0, kCluster, 1);
  CO_OK(first);
  points.suspend("r", FaultEvent::kMapped);
  auto data = bytes(4096, 9);
  auto reading = node.read(0, iov(data));
  EXPECT_TRUE(points.is_suspended("r"));
  auto discarded = co_await node.discard(0, kCluster);
  CO_OK(discarded);
  auto flushed = co_await node.flush();
  CO_OK(flushed);
  auto other = co_await fill(node, kCluster, kCluster, 3);
  CO_OK(other);
  auto resumed = points.resume("r");
  CO_OK(resumed);
  auto got = co_await reading;
  CO_OK(got);
  EXPECT_TRUE(data == bytes(4096, 1) || data == bytes(4096, 0)) << "read another range's bytes";
}

TEST(C1, ReadAgainstDiscardAndReuse) {
  act_out({.open = "discard=unmap,pass-discard-request=off"}, read_against_discard);
}

// Once nobody can reach it any more, the space is used again.
Task<void> reuse_after_flush(Watched& watched) {
  BlockNode& node = *watched.node;
  auto first = co_await fill(node, 0, kCluster, 1);
  CO_OK(first);
  auto before = co_await node.extent(0, kCluster);
  CO_OK(before);
  auto discarded = co_await node.discard(0, kCluster);
  CO_OK(discarded);
  // Not before a flush: a power cut would bring the old reference back.
  auto second = co_await fill(node, kCluster, kCluster, 2);
  CO_OK(second);
  auto not_yet = co_await node.extent(kCluster, kCluster);
  CO_OK(not_yet);
  EXPECT_NE(not_yet->host_offset, before->host_offset);
  auto flushed = co_await node.flush();
  CO_OK(flushed);
  auto third = co_await fill(node, 2 * kCluster, kCluster, 3);
  CO_OK(third);
  auto reused = co_await node.extent(2 * kCluster, kCluster);
  CO_OK(reused);
  EXPECT_EQ(reused->host_offset, before->host_offset);
}

TEST(C1, FreedSpaceIsUsedAgainOnlyAfterAFlush) {
  act_out({.open = "discard=unmap,pass-discard-request=off"}, reuse_after_flush);
}

Task<void> slow_punch(Watched& watched) {
  BlockNode& node = *watched.node;
  FaultPoints& points = *watched.points;
  auto first = co_await fill(node, 0, 8192, 1);
  CO_OK(first);
  auto flushed = co_await node.flush();
  CO_OK(flushed);
  points.suspend("punch", FaultEvent::kClusterPunch);
  auto discarded = co_await node.discard(0, 8192);
  CO_OK(discarded);
  auto freeing = node.flush();
  EXPECT_TRUE(points.is_suspended("punch"));
  auto second = co_await node.flush();
  CO_OK(second);
  // The second L2 table of 4 KiB clusters maps from 2 MiB on.
  for (std::uint64_t i = 0; i < 4; ++i) {
    auto more = co_await fill(node, (2 << 20) + i * 4096, 4096, 10 + static_cast<int>(i));
    CO_OK(more);
  }
  auto third = co_await node.flush();
  CO_OK(third);
  auto resumed = points.resume("punch");
  CO_OK(resumed);
  auto freed = co_await freeing;
  CO_OK(freed);
  watched.driver().l2_cache().shed_unused();
  for (std::uint64_t i = 0; i < 4; ++i) {
    const bool same = co_await reads_as(node, (2 << 20) + i * 4096, 4096, 10 + static_cast<int>(i));
    EXPECT_TRUE(same) << i;
  }
}

TEST(C2, APunchThatComesLateHitsNobody) {
  act_out({.size = 8 << 20, .create = "cluster_size=4k", .open = "discard=unmap"}, slow_punch);
}

Task<void> failing_punch(Watched& watched, int error) {
  BlockNode& node = *watched.node;
  FaultPoints& points = *watched.points;
  auto first = co_await fill(node, 0, kCluster, 1);
  CO_OK(first);
  auto keep = co_await fill(node, kCluster, kCluster, 2);
  CO_OK(keep);
  auto before = co_await node.extent(0, kCluster);
  CO_OK(before);
  points.add({.operations = fault_op::kDiscard, .count = 1, .error = error});
  auto discarded = co_await node.discard(0, kCluster);
  CO_OK(discarded);
  auto flushed = co_await node.flush();
  const bool unsupported = error == EOPNOTSUPP;
  EXPECT_EQ(flushed.has_value(), unsupported) << "the guest is told";
  for (int i = 2; i < 8; ++i) {
    auto more = co_await fill(node, static_cast<std::uint64_t>(i) * kCluster, kCluster, i);
    CO_OK(more);
    auto place = co_await node.extent(static_cast<std::uint64_t>(i) * kCluster, kCluster);
    CO_OK(place);
    if (!unsupported) {
      EXPECT_NE(place->host_offset, before->host_offset) << "used again before it was checked";
    }
  }
  const bool kept = co_await reads_as(node, kCluster, kCluster, 2);
  EXPECT_TRUE(kept);
  const bool zero = co_await reads_as(node, 0, kCluster, 0);
  EXPECT_TRUE(zero);
}

TEST(C3, AFailedPunchKeepsTheClusterOutOfUse) {
  for (const int error : {EIO, ENOSPC, EOPNOTSUPP}) {
    SCOPED_TRACE(error);
    act_out({.open = "discard=unmap", .leaks = error == EOPNOTSUPP ? 0u : 1u},
            [&](Watched& watched) { return failing_punch(watched, error); });
  }
}

Task<void> snapshot_against_write(Watched& watched) {
  BlockNode& node = *watched.node;
  FaultPoints& points = *watched.points;
  auto first = co_await fill(node, 0, kCluster, 1);
  CO_OK(first);
  points.suspend("w", FaultEvent::kMapped);
  auto data = bytes(4096, 2);
  auto writing = node.write(0, iov(data));
  auto taking = node.driver().snapshots()->create("s", 1, 0);
  EXPECT_FALSE(taking.done()) << "the snapshot waits for the write";
  auto resumed = points.resume("w");
  CO_OK(resumed);
  auto written = co_await writing;
  CO_OK(written);
  auto taken = co_await taking;
  CO_OK(taken);
  auto later = co_await fill(node, 0, kCluster, 3);
  CO_OK(later);
  auto applied = co_await node.driver().snapshots()->apply("s");
  CO_OK(applied);
  const bool head = co_await reads_as(node, 0, 4096, 2);
  EXPECT_TRUE(head) << "the completed write is in the snapshot";
  const bool rest = co_await reads_as(node, 4096, kCluster - 4096, 1);
  EXPECT_TRUE(rest) << "the snapshot never changes afterwards";
}

TEST(C13, ASnapshotWaitsForWritesInFlight) {
  act_out({.open = "discard=unmap,pass-discard-request=off"}, snapshot_against_write);
}

// Every round frees what the round before wrote. (Sanitizers make a round many times as dear.)
constexpr int kRounds = platter::testing::kSanitized ? 1000 : 10000;

Task<void> overwrite_rounds(const MemoryImage& image) {
  auto opened = co_await image.open();
  CO_OK(opened);
  BlockNode& node = **opened;
  std::uint64_t size_then = 0;
  for (int round = 0; round < kRounds; ++round) {
    auto data = bytes(32 << 10, round);
    WriteFlags packed{.compressed = true};
    auto written = co_await node.write(0, iov(data), packed);
    CO_OK(written);
    auto plain = co_await fill(node, 0, 4096, round);
    CO_OK(plain);
    auto flushed = co_await node.flush();
    CO_OK(flushed);
    if (round == 100) size_then = image.disk().size();
  }
  EXPECT_EQ(image.disk().size(), size_then);
  auto closed = co_await opened->detach();
  CO_OK(closed);
}

TEST(C15, OverwritingWithFlushesDoesNotGrowTheFile) {
  MemoryImage image("c15", 1 << 20, "cluster_size=4k");
  run([&] { return overwrite_rounds(image); });
}

// What could not be taken away in a raw data file is there for both who read it.
Task<void> zeroes_that_a_data_file_refuses(const MemoryImage& image, const MemoryDisk& raw,
                                           bool zero) {
  auto opened =
      co_await image.open(true,
                          "discard=unmap,data-file.driver=blkdebug,data-file.image.driver=memory,"
                          "data-file.image.name=refusing-data");
  CO_OK(opened);
  BlockNode& node = **opened;
  auto done = co_await fill(node, 0, 65536, 1);
  CO_OK(done);
  FaultPoints& points = *fault_points_of(**node.driver().children()[1]);
  points.add({.operations = fault_op::kWriteZeroes | fault_op::kDiscard, .error = EIO});
  auto taking =
      zero ? node.write_zeroes(0, 65536, ZeroFlags{.may_unmap = true}) : node.discard(0, 65536);
  done = co_await taking;
  EXPECT_FALSE(done);
  points.clear_rules();
  std::vector<std::byte> below(65536);
  raw.read(0, iov(below));
  std::vector<std::byte> above(65536);
  done = co_await node.read(0, iov(above));
  CO_OK(done);
  EXPECT_EQ(above, below) << "a raw data file reads as the disk does";
  auto closed = co_await opened->detach();
  CO_OK(closed);
}

TEST(C1, ARawDataFileKeepsWhatTheDiskKeeps) {
  for (const bool zero : {false, true}) {
    SCOPED_TRACE(zero);
    const MemoryImage image("refusing", 1 << 20, "data_file=memory:refusing-data,data_file_raw=on");
    run([&] {
      return zeroes_that_a_data_file_refuses(image, *find_memory_disk("refusing-data"), zero);
    });
    remove_memory_disk("refusing-data");
  }
}

}  // namespace
}  // namespace platter::qcow2
