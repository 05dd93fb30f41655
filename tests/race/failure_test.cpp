// C4 and C5: every allocation and every I/O of an operation fails once, in turn. Afterwards the
// image has no error, leaks are bounded, what was acknowledged before is intact, and the operation
// works.
#include <fmt/format.h>

#include "block/base/bytes.h"
#include "block/node/dirty_bitmap.h"
#include "race/race_support.h"

namespace platter::qcow2 {
namespace {

using namespace testing;  // NOLINT: helpers of these tests

constexpr std::uint64_t kFailureCluster = 4096;

struct Operation {
  const char* name;
  const char* create;
  // What is on the disk before, and what is done then.
  Task<Result<void>> (*prepare)(BlockNode&);
  Task<Result<void>> (*act)(BlockNode&);
  bool own_flushes = false;  // it makes itself durable, and reports its own flushes
};

Task<Result<void>> nothing(BlockNode& node) {
  auto filled = co_await fill(node, 0, 16 * kFailureCluster, 1);
  co_return filled;
}
Task<Result<void>> plain_write(BlockNode& node) {
  auto written = co_await fill(node, 100 * kFailureCluster, 3 * kFailureCluster, 5);
  PLATTER_CO_TRY(written);
  auto flushed = co_await node.flush();
  co_return flushed;
}
Task<Result<void>> first_write_of_a_table(BlockNode& node) {
  auto written = co_await fill(node, 512 * kFailureCluster + 100, 3000, 5);
  PLATTER_CO_TRY(written);
  auto flushed = co_await node.flush();
  co_return flushed;
}
Task<Result<void>> with_packed(BlockNode& node) {
  auto filled = co_await fill(node, 0, 16 * kFailureCluster, 1);
  PLATTER_CO_TRY(filled);
  auto data = bytes(4 * kFailureCluster, 4);
  WriteFlags packed{.compressed = true};
  auto written = co_await node.write(100 * kFailureCluster, iov(data), packed);
  co_return written;
}
Task<Result<void>> overwrite_packed(BlockNode& node) {
  auto written = co_await fill(node, 101 * kFailureCluster + 512, 512, 5);
  PLATTER_CO_TRY(written);
  auto data = bytes(2 * kFailureCluster, 6);
  WriteFlags packed{.compressed = true};
  auto again = co_await node.write(102 * kFailureCluster, iov(data), packed);
  PLATTER_CO_TRY(again);
  auto flushed = co_await node.flush();
  co_return flushed;
}
Task<Result<void>> with_snapshot(BlockNode& node) {
  auto filled = co_await fill(node, 0, 16 * kFailureCluster, 1);
  PLATTER_CO_TRY(filled);
  filled = co_await fill(node, 100 * kFailureCluster, 4 * kFailureCluster, 2);
  PLATTER_CO_TRY(filled);
  auto taken = co_await node.driver().snapshots()->create("s", 1, 0);
  co_return taken;
}
Task<Result<void>> write_after_snapshot(BlockNode& node) {
  auto written = co_await fill(node, 101 * kFailureCluster + 512, kFailureCluster, 5);
  PLATTER_CO_TRY(written);
  auto flushed = co_await node.flush();
  co_return flushed;
}
Task<Result<void>> much(BlockNode& node) {
  auto written = co_await fill(node, 200 * 512, 200 << 10, 5);
  PLATTER_CO_TRY(written);
  auto flushed = co_await node.flush();
  co_return flushed;
}
Task<Result<void>> little(BlockNode& node) {
  auto filled = co_await fill(node, 0, 16 * kFailureCluster, 1);
  co_return filled;
}
Task<Result<void>> discard_and_zero(BlockNode& node) {
  auto discarded = co_await node.discard(100 * kFailureCluster, 2 * kFailureCluster);
  PLATTER_CO_TRY(discarded);
  ZeroFlags flags{.may_unmap = true};
  auto zeroed = co_await node.write_zeroes(102 * kFailureCluster, kFailureCluster + 512, flags);
  PLATTER_CO_TRY(zeroed);
  auto flushed = co_await node.flush();
  co_return flushed;
}
Task<Result<void>> take_snapshot(BlockNode& node) {
  for (const SnapshotInfo& one : node.driver().snapshots()->list()) {
    if (one.name == "new") co_return {};
  }
  auto taken = co_await node.driver().snapshots()->create("new", 1, 0);
  co_return taken;
}
Task<Result<void>> apply_snapshot(BlockNode& node) {
  auto applied = co_await node.driver().snapshots()->apply("s");
  co_return applied;
}
Task<Result<void>> remove_snapshot(BlockNode& node) {
  if (node.driver().snapshots()->list().empty()) co_return {};
  auto removed = co_await node.driver().snapshots()->remove("s");
  co_return removed;
}
Task<Result<void>> grow_disk(BlockNode& node) {
  ResizeRequest request{.size = std::uint64_t{64} << 20};
  auto grown = co_await node.resize(request);
  co_return grown;
}
Task<Result<void>> with_bitmap(BlockNode& node) {
  auto filled = co_await fill(node, 0, 16 * kFailureCluster, 1);
  PLATTER_CO_TRY(filled);
  auto added = co_await node.driver().bitmaps()->add("old", kFailureCluster, true);
  PLATTER_CO_TRY(added);
  filled = co_await fill(node, 100 * kFailureCluster, kFailureCluster, 2);
  PLATTER_CO_TRY(filled);
  auto disabled = co_await node.driver().bitmaps()->set_enabled("old", false);
  co_return disabled;
}
// All of it may have been done before.
Task<Result<void>> change_bitmaps(BlockNode& node) {
  BitmapAbility& bitmaps = *node.driver().bitmaps();
  auto removed = co_await bitmaps.remove("new");
  if (!removed && removed.error().code() != ENOENT) co_return removed;
  auto added = co_await bitmaps.add("new", 512, false);
  PLATTER_CO_TRY(added);
  auto contents = co_await bitmaps.contents("old");
  PLATTER_CO_TRY(contents);
  auto merged = co_await bitmaps.merge("new", *contents);
  co_return merged;
}

const Operation kOperations[] = {
    {"plain write", "cluster_size=4k", nothing, plain_write},
    {"first write in an L1 slot", "cluster_size=4k", nothing, first_write_of_a_table},
    {"overwriting packed clusters", "cluster_size=4k", with_packed, overwrite_packed},
    {"write after a snapshot", "cluster_size=4k", with_snapshot, write_after_snapshot},
    {"refcount table growth", "cluster_size=512,refcount_bits=64", little, much},
    {"discard and zero", "cluster_size=4k", with_snapshot, discard_and_zero},
    {"taking a snapshot", "cluster_size=4k", with_snapshot, take_snapshot, true},
    {"applying a snapshot", "cluster_size=4k", with_snapshot, apply_snapshot, true},
    {"removing a snapshot", "cluster_size=4k", with_snapshot, remove_snapshot, true},
    {"growing the disk", "cluster_size=4k", nothing, grow_disk, true},
    {"changing bitmaps", "cluster_size=4k", with_bitmap, change_bitmaps, true},
    {"growing a disk that has a bitmap", "cluster_size=4k", with_bitmap, grow_disk, true},
};

// Leaks that one failed operation may leave: the clusters it was about to use.
constexpr std::uint64_t kMostLeaks = 16;

Task<void> verify(const MemoryImage& image, const Operation& operation) {
  // Opening for writing repairs what an interrupted snapshot operation has left.
  auto opened = co_await image.open();
  CO_OK(opened);
  const std::uint64_t leaks = co_await leaks_of(**opened);
  EXPECT_LE(leaks, kMostLeaks);
  const bool intact = co_await reads_as(**opened, 0, 16 * kFailureCluster, 1);
  EXPECT_TRUE(intact) << "what was acknowledged before";
  auto again = operation.act(**opened);
  auto acted = co_await again;
  EXPECT_TRUE(acted) << (acted ? "" : acted.error().message());
  auto closed = co_await opened->detach();
  CO_OK(closed);
}

Task<void> exhaust(const MemoryImage& image, const Operation& operation, std::uint64_t room,
                   bool* succeeded) {
  auto opened = co_await open_watched(image, "discard=unmap");
  CO_OK(opened);
  BlockNode& node = *opened->node;
  auto preparing = operation.prepare(node);
  auto prepared = co_await preparing;
  CO_OK(prepared);
  auto flushed = co_await node.flush();
  CO_OK(flushed);
  const std::uint64_t clusters = image.disk().size() / node.limits().optimal_transfer;
  opened->driver().clusters().limit_clusters(clusters + room);
  for (int attempt = 0; attempt < 3 && !*succeeded; ++attempt) {
    auto acting = operation.act(node);
    auto acted = co_await acting;
    if (!acted) {
      EXPECT_EQ(acted.error().code(), ENOSPC) << acted.error().message();
    }
    *succeeded = acted.has_value();
  }
  const bool intact = co_await reads_as(node, 0, 16 * kFailureCluster, 1);
  EXPECT_TRUE(intact);
  const std::uint64_t leaks = co_await leaks_of(node);
  EXPECT_LE(leaks, kMostLeaks);
  auto closed = co_await opened->node.detach();
  CO_OK(closed);
}

TEST(C4, EveryAllocationFailsOnce) {
  for (const Operation& operation : kOperations) {
    bool succeeded = false;
    std::uint64_t room = 0;
    for (; room < 1000 && !succeeded && !HasFailure(); ++room) {
      SCOPED_TRACE(fmt::format("{}, room for {} clusters", operation.name, room));
      MemoryImage image("c4", 8 << 20, operation.create);
      run([&] { return exhaust(image, operation, room, &succeeded); });
      run([&] { return verify(image, operation); });
      // Large operations need not be tried at each cluster of their data.
      if (room > 40) room += 13;
    }
    EXPECT_TRUE(succeeded) << operation.name;
  }
}

Task<void> fail_one(const MemoryImage& image, const Operation& operation, std::uint32_t kind,
                    std::uint64_t skip, int error, bool* acted_on) {
  auto opened = co_await open_watched(image, "discard=unmap");
  CO_OK(opened);
  BlockNode& node = *opened->node;
  auto preparing = operation.prepare(node);
  auto prepared = co_await preparing;
  CO_OK(prepared);
  auto flushed = co_await node.flush();
  CO_OK(flushed);
  opened->points->add({.operations = kind, .skip = skip, .count = 1, .error = error});
  auto acting = operation.act(node);
  auto acted = co_await acting;
  *acted_on = opened->points->acted() != 0;
  opened->points->clear_rules();
  if (*acted_on && kind != fault_op::kDiscard) {
    // Told at once, or by the flush after it.
    if (acted) acted = co_await node.flush();
  }
  if (*acted_on && kind == fault_op::kFlush && !operation.own_flushes) {
    EXPECT_FALSE(acted) << "a failed flush is reported";
    auto next = co_await node.flush();
    EXPECT_FALSE(next) << "and to the next flush too";
  }
  const bool intact = co_await reads_as(node, 0, 16 * kFailureCluster, 1);
  EXPECT_TRUE(intact);
  auto closed = co_await opened->node.detach();
  static_cast<void>(closed);
}

TEST(C5, EveryReadWriteAndFlushFailsOnce) {
  for (const Operation& operation : kOperations) {
    for (const std::uint32_t kind :
         {fault_op::kRead, fault_op::kWrite | fault_op::kWriteZeroes | fault_op::kResize,
          fault_op::kFlush, fault_op::kDiscard}) {
      bool acted_on = true;
      for (std::uint64_t skip = 0; acted_on && !HasFailure(); ++skip) {
        SCOPED_TRACE(fmt::format("{}, operations {}, number {}", operation.name, kind, skip));
        MemoryImage image("c5", 8 << 20, operation.create);
        run([&] {
          return fail_one(image, operation, kind, skip, skip % 2 == 0 ? EIO : ENOSPC, &acted_on);
        });
        run([&] { return verify(image, operation); });
      }
    }
  }
}

// A repair gives the image a new refcount structure and fails later on. What is written next must
// be counted by the structure that the header on disk leads to.
Task<void> fail_repair(const MemoryImage& image, std::uint32_t kind, std::uint64_t skip,
                       bool* acted_on) {
  const auto table = [&image] {
    std::byte word[8];
    image.disk().read(48, IoVec(std::span(word)));
    return load_be<std::uint64_t>(word);
  };
  const std::uint64_t before = table();
  OpenRequest request;
  request.filename = "blkdebug::" + image.filename();
  request.format = "qcow2";
  request.flags.read_only = false;
  request.flags.check = true;
  request.permissions = Permissions::writer();
  auto opened = co_await open_node(std::move(request));
  CO_OK(opened);
  BlockNode& node = **opened;
  FaultPoints& points = *fault_points_of(node);
  points.add({.operations = kind, .skip = skip, .count = 1, .error = EIO});
  const CheckRequest repair{.fix_leaks = true, .fix_errors = true, .report = {}};
  auto repaired = co_await node.driver().checker()->check(repair);
  *acted_on = points.acted() != 0;
  points.clear_rules();
  if (*acted_on && !repaired && table() != before) {
    auto written = co_await fill(node, 1000 * kFailureCluster, 3 * kFailureCluster, 7);
    CO_OK(written);
    auto flushed = co_await node.flush();
    CO_OK(flushed);
  }
  const bool moved = table() != before;
  // What failed may have to be said once more.
  auto told = co_await node.flush();
  static_cast<void>(told);
  auto closed = co_await opened->detach();
  CO_OK(closed);
  if (!moved) co_return;
  auto again = co_await image.open();
  CO_OK(again);
  const std::uint64_t leaks = co_await leaks_of(**again);
  EXPECT_LE(leaks, kMostLeaks);
  const bool intact = co_await reads_as(**again, 0, 16 * kFailureCluster, 1);
  EXPECT_TRUE(intact);
  closed = co_await again->detach();
  CO_OK(closed);
}

Task<void> fill_and_close(const MemoryImage& image) {
  auto opened = co_await image.open();
  CO_OK(opened);
  auto filled = co_await nothing(**opened);
  CO_OK(filled);
  auto closed = co_await opened->detach();
  CO_OK(closed);
}

TEST(C5, ARepairThatFailsLateLeavesOneRefcountStructure) {
  for (const std::uint32_t kind : {fault_op::kRead, fault_op::kWrite, fault_op::kFlush}) {
    bool acted_on = true;
    for (std::uint64_t skip = 0; acted_on && !HasFailure(); ++skip) {
      SCOPED_TRACE(fmt::format("operations {}, number {}", kind, skip));
      MemoryImage image("c5-repair", 8 << 20, "cluster_size=4k");
      run([&] { return fill_and_close(image); });
      std::byte entry[8];
      image.disk().read(48, IoVec(std::span(entry)));
      const std::uint64_t table = load_be<std::uint64_t>(entry);
      store_be(entry, std::uint64_t{1} << 40);
      image.disk().write(table, IoVec(std::span(entry)));
      run([&] { return fail_repair(image, kind, skip, &acted_on); });
    }
  }
}

}  // namespace
}  // namespace platter::qcow2
