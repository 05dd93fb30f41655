// What is taken back when a step in the middle fails, and what may not be: each rule by itself.
#include "block/base/bytes.h"
#include "formats/qcow2/check.h"
#include "formats/qcow2/storage_io.h"
#include "race/race_support.h"

namespace platter::qcow2 {
namespace {

using namespace testing;  // NOLINT: helpers of these tests

constexpr std::uint64_t kUndoCluster = 512;

// What the file says, whatever an open image has in memory.
Task<std::uint64_t> word_in_file(BlockNode& node, std::uint64_t offset) {
  std::byte word[8];
  auto read = co_await node.storage()->read(offset, IoVec(std::span(word)));
  EXPECT_TRUE(read);
  co_return load_be<std::uint64_t>(word);
}

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
  std::uint64_t table = co_await word_in_file(node, 64);  // the snapshot table
  table = co_await word_in_file(node, table);             // the snapshot's L1 table
  table = l1_offset(co_await word_in_file(node, table));  // its L2 table
  for (std::uint64_t i = 0; i < 4; ++i) {
    std::byte word[8];
    const std::uint64_t entry = co_await word_in_file(node, table + i * 8);
    store_be(word, entry | kCopied);
    auto written = co_await node.storage()->write(table + i * 8, IoVec(std::span(word)));
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

// Other programs also leave flags in tables that the disk shares with a snapshot. When that one has
// gone, the table is the disk's alone, but not all that it shows.
Task<void> flags_in_a_shared_table(const MemoryImage& image) {
  auto opened = co_await open_watched(image);
  CO_OK(opened);
  SnapshotAbility* snapshots = opened->node->driver().snapshots();
  auto done = co_await fill(*opened->node, 0, kUndoCluster, 1);
  CO_OK(done);
  done = co_await snapshots->create("first", 1, 0);
  CO_OK(done);
  done = co_await fill(*opened->node, kUndoCluster, kUndoCluster, 2);
  CO_OK(done);
  done = co_await snapshots->create("second", 1, 0);
  CO_OK(done);
  auto closed = co_await opened->node.detach();
  CO_OK(closed);

  const auto word_at = [&image](std::uint64_t at) {
    std::byte word[8];
    image.disk().read(at, IoVec(std::span(word)));
    return load_be<std::uint64_t>(word);
  };
  const std::uint64_t table = l1_offset(word_at(word_at(40)));
  std::byte word[8];
  store_be(word, word_at(table) | kCopied);
  image.disk().write(table, IoVec(std::span(word)));

  opened = co_await open_watched(image);
  CO_OK(opened);
  BlockNode& node = *opened->node;
  snapshots = node.driver().snapshots();
  done = co_await snapshots->remove("second");
  CO_OK(done);
  const std::uint64_t leaks = co_await leaks_of(node);
  EXPECT_EQ(leaks, 0u);
  done = co_await fill(node, 0, kUndoCluster, 3);
  CO_OK(done);
  done = co_await snapshots->apply("first");
  CO_OK(done);
  const bool same = co_await reads_as(node, 0, kUndoCluster, 1);
  EXPECT_TRUE(same) << "the snapshot has changed";
  closed = co_await opened->node.detach();
  CO_OK(closed);
}

TEST(Undo, FlagsOfATableThatWasShared) {
  MemoryImage image("scene", 1 << 20, "cluster_size=512");
  run([&] { return flags_in_a_shared_table(image); });
}

// Replacing zero clusters fails half-way: what has been set aside for them stays counted. The image
// stays marked, and gets it back when it is opened next.
Task<void> half_a_downgrade(const MemoryImage& image) {
  auto opened = co_await open_watched(image);
  CO_OK(opened);
  BlockNode& node = *opened->node;
  FaultPoints& points = *opened->points;
  auto done = co_await fill(node, 0, 4096, 1);
  CO_OK(done);
  done = co_await node.write_zeroes(4096, 8 * 4096, ZeroFlags{});
  CO_OK(done);
  done = co_await node.flush();
  CO_OK(done);
  std::uint64_t table = co_await word_in_file(node, 40);
  table = l1_offset(co_await word_in_file(node, table));
  points.add({.operations = fault_op::kWrite, .offset = table, .length = 512, .count = 1});
  const std::function<void(std::uint64_t, std::uint64_t)> silent;
  auto amended = co_await node.driver().amender()->amend(options("compat=0.10"), false, silent);
  EXPECT_FALSE(amended);
  EXPECT_EQ(points.acted(), 1u);
  points.clear_rules();
  done = co_await fill(node, 20 * 4096, 4096, 2);
  CO_OK(done);
  auto closed = co_await opened->node.detach();
  CO_OK(closed);

  opened = co_await open_watched(image);
  CO_OK(opened);
  const std::uint64_t leaks = co_await leaks_of(*opened->node);
  EXPECT_EQ(leaks, 0u);
  const bool zeroes = co_await reads_as(*opened->node, 4096, 8 * 4096, 0);
  EXPECT_TRUE(zeroes);
  const bool written = co_await reads_as(*opened->node, 20 * 4096, 4096, 2);
  EXPECT_TRUE(written);
  closed = co_await opened->node.detach();
  CO_OK(closed);
}

TEST(Undo, SpaceForHalfADowngradeIsGivenBackAtTheNextOpening) {
  auto backing = make_memory_disk("undo-backing", 1 << 20);
  auto data = bytes(1 << 20, 7);
  backing->write(0, iov(data));
  MemoryImage image("scene", 1 << 20,
                    "cluster_size=4k,backing_file=memory:undo-backing,backing_fmt=raw");
  run([&] { return half_a_downgrade(image); });
  remove_memory_disk("undo-backing");
}

// With lazy refcounts, too, what a snapshot shows is counted on disk: the snapshot does not depend
// on a repair.
Task<void> snapshot_of_a_lazy_image(Watched& watched) {
  BlockNode& node = *watched.node;
  auto done = co_await fill(node, 0, 64 * kUndoCluster, 1);
  CO_OK(done);
  done = co_await node.driver().snapshots()->create("s", 1, 0);
  CO_OK(done);
  auto header = co_await read_header(*node.storage(), TableBounds::kInFile);
  CO_OK(header);
  const CheckRequest request;
  auto checked = co_await check_image(*node.storage(), *header, request);
  CO_OK(checked);
  EXPECT_EQ(checked->corruptions, 0u);
}

TEST(Undo, CountsOfASnapshotWithLazyRefcounts) {
  act_out({.create = "cluster_size=512,lazy_refcounts=on"}, snapshot_of_a_lazy_image);
}

// The disk shows a snapshot, but what counts are there cannot be read again: nobody writes by what
// was in memory before, until the image has been opened anew.
Task<void> tables_that_cannot_be_read(const MemoryImage& image) {
  auto opened = co_await open_watched(image);
  CO_OK(opened);
  BlockNode& node = *opened->node;
  FaultPoints& points = *opened->points;
  auto done = co_await fill(node, 0, 4 * kUndoCluster, 1);
  CO_OK(done);
  done = co_await node.driver().snapshots()->create("s", 1, 0);
  CO_OK(done);
  done = co_await fill(node, 0, 4 * kUndoCluster, 2);
  CO_OK(done);
  points.add({.event = FaultEvent::kReftableLoad, .operations = fault_op::kRead});
  auto applied = co_await node.driver().snapshots()->apply("s");
  EXPECT_FALSE(applied);
  EXPECT_GT(points.acted(), 1u) << "it is tried again";
  points.clear_rules();
  for (const std::uint64_t at : {std::uint64_t{0}, 8 * kUndoCluster}) {
    auto written = co_await fill(node, at, kUndoCluster, 3);
    EXPECT_FALSE(written);
    if (!written) {
      EXPECT_EQ(written.error().kind(), ErrorKind::kGivenUp);
    }
  }
  auto closed = co_await opened->node.detach();
  static_cast<void>(closed);

  opened = co_await open_watched(image);
  CO_OK(opened);
  const bool same = co_await reads_as(*opened->node, 0, 4 * kUndoCluster, 1);
  EXPECT_TRUE(same);
  const std::uint64_t leaks = co_await leaks_of(*opened->node);
  EXPECT_EQ(leaks, 0u);
  closed = co_await opened->node.detach();
  CO_OK(closed);
}

TEST(Undo, TablesThatCannotBeReadAgain) {
  MemoryImage image("scene", 1 << 20, "cluster_size=512");
  run([&] { return tables_that_cannot_be_read(image); });
}

// The header ------------------------------------------------------------------------------------

Task<Result<void>> repair(BlockNode& node) {
  const CheckRequest request{.fix_leaks = true, .fix_errors = true, .report = {}};
  auto done = co_await node.driver().checker()->check(request);
  PLATTER_CO_TRY(done);
  co_return {};
}
Task<Result<void>> widen_counts(BlockNode& node) {
  const std::function<void(std::uint64_t, std::uint64_t)> silent;
  auto done = co_await node.driver().amender()->amend(options("refcount_bits=32"), false, silent);
  co_return done;
}

using Rebuild = Task<Result<void>> (*)(BlockNode&);

constexpr std::uint64_t kCountTable = 48;  // where the header has its place

// A new refcount structure is there, but not the header that leads to it. The image goes on with
// the new one, so the header comes before anything else.
Task<void> header_that_is_missing(Watched& watched, Rebuild rebuild) {
  BlockNode& node = *watched.node;
  FaultPoints& points = *watched.points;
  auto done = co_await fill(node, 0, 4 * kUndoCluster, 1);
  CO_OK(done);
  done = co_await node.flush();
  CO_OK(done);
  const std::uint64_t old = co_await word_in_file(node, kCountTable);
  if (rebuild == repair) {
    std::byte wrong[8];
    store_be(wrong, std::uint64_t{1});
    auto damaged = co_await node.storage()->write(old, IoVec(std::span(wrong)));
    CO_OK(damaged);
  }
  points.add({.operations = fault_op::kWrite, .length = 512, .count = 1, .error = EIO});
  auto failed = co_await rebuild(node);
  EXPECT_FALSE(failed);
  EXPECT_EQ(points.acted(), 1u);
  points.clear_rules();
  done = co_await fill(node, 8 * kUndoCluster, 4 * kUndoCluster, 2);
  CO_OK(done);
  done = co_await node.flush();
  CO_OK(done);
  // As the file is now, a power cut would leave it.
  auto header = co_await read_header(*node.storage(), TableBounds::kInFile);
  CO_OK(header);
  const CheckRequest request;
  auto checked = co_await check_image(*node.storage(), *header, request);
  CO_OK(checked);
  EXPECT_EQ(checked->corruptions, 0u) << "counted where nobody looks";
  done = co_await repair(node);
  CO_OK(done);
}

TEST(Undo, AHeaderThatDidNotGetThereComesFirst) {
  for (const Rebuild rebuild : {repair, widen_counts}) {
    SCOPED_TRACE(rebuild == repair);
    act_out({.create = "cluster_size=512"},
            [&](Watched& watched) { return header_that_is_missing(watched, rebuild); });
  }
}

// The same when it was the flush before that header which failed: what the header leads to may not
// be durable, and must be before it.
Task<void> header_before_a_flush(Watched& watched, Rebuild rebuild) {
  BlockNode& node = *watched.node;
  FaultPoints& points = *watched.points;
  auto done = co_await fill(node, 0, 4 * kUndoCluster, 1);
  CO_OK(done);
  done = co_await node.flush();
  CO_OK(done);
  const std::uint64_t old = co_await word_in_file(node, kCountTable);
  points.suspend_operation("first", fault_op::kFlush);
  auto rebuilding = rebuild(node);
  EXPECT_TRUE(points.is_suspended("first"));
  points.add({.operations = fault_op::kFlush, .count = 1, .error = EIO});
  points.suspend_operation("second", fault_op::kFlush);
  auto resumed = points.resume("first");
  CO_OK(resumed);
  auto halted = points.wait_suspended("second");
  co_await halted;
  EXPECT_EQ(points.acted(), 1u);
  const std::uint64_t now = co_await word_in_file(node, kCountTable);
  EXPECT_EQ(now, old) << "it leads to what may not be there";
  resumed = points.resume("second");
  CO_OK(resumed);
  auto failed = co_await rebuilding;
  EXPECT_FALSE(failed);
  points.clear_rules();
  Result<void> flushed;
  for (int i = 0; i < 3; ++i) flushed = co_await node.flush();
  CO_OK(flushed);
  done = co_await repair(node);
  CO_OK(done);
}

TEST(Undo, AHeaderThatDidNotGetThereWaitsForWhatItLeadsTo) {
  act_out({.create = "cluster_size=512"},
          [](Watched& watched) { return header_before_a_flush(watched, widen_counts); });
}

}  // namespace
}  // namespace platter::qcow2
