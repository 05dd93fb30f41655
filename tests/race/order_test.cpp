// Rules that hold between two things under way at once, one by one: what a claim keeps others from,
// what a flush covers, what waits for requests, and what may not be used again yet.
#include <functional>

#include "block/exec/timer.h"
#include "race/race_support.h"

namespace platter::qcow2 {
namespace {

using namespace testing;  // NOLINT: helpers of these tests

constexpr std::size_t kOrderCluster = 65536;
constexpr WriteFlags kOrderPacked{.compressed = true};

Task<Result<void>> fill_packed(BlockNode& node, std::uint64_t offset, int value) {
  auto data = bytes(kOrderCluster, value);
  auto written = co_await node.write(offset, iov(data), kOrderPacked);
  co_return written;
}

// Claims -----------------------------------------------------------------------------------------

// A write over several clusters, the last of which another one is about to give a place.
Task<void> write_into_a_claim(const MemoryImage& image) {
  auto opened = co_await open_watched(image);
  CO_OK(opened);
  BlockNode& node = *opened->node;
  FaultPoints& points = *opened->points;
  auto table = co_await fill(node, 8 * kOrderCluster, 512, 1);
  CO_OK(table);
  points.suspend("w", FaultEvent::kL2Update);
  auto one = bytes(4096, 1);
  auto first = node.write(2 * kOrderCluster + 8192, iov(one));
  EXPECT_TRUE(points.is_suspended("w"));
  auto two = bytes(2 * kOrderCluster + 4096, 2);
  auto second = node.write(0, iov(two));
  EXPECT_FALSE(second.done());
  auto resumed = points.resume("w");
  CO_OK(resumed);
  auto written = co_await first;
  CO_OK(written);
  written = co_await second;
  CO_OK(written);
  const bool head = co_await reads_as(node, 0, two.size(), 2);
  EXPECT_TRUE(head);
  const bool tail = co_await reads_as(node, 2 * kOrderCluster + 8192, 4096, 1);
  EXPECT_TRUE(tail) << "lost";
  const std::uint64_t leaks = co_await leaks_of(node);
  EXPECT_EQ(leaks, 0u);
  auto closed = co_await opened->node.detach();
  CO_OK(closed);
}

TEST(C6, AWriteThatReachesIntoAnothersCluster) {
  MemoryImage image("order-claim", 1 << 20, "");
  run([&] { return write_into_a_claim(image); });
}

// Space that is there already is about to show a write's data: nobody may take it away.
Task<void> discard_of_a_claim(const MemoryImage& image, bool zero) {
  auto opened = co_await open_watched(image, "discard=unmap");
  CO_OK(opened);
  BlockNode& node = *opened->node;
  FaultPoints& points = *opened->points;
  auto done = co_await fill(node, 0, kOrderCluster, 1);
  CO_OK(done);
  auto zeroed = co_await node.write_zeroes(0, kOrderCluster, ZeroFlags{});
  CO_OK(zeroed);
  points.suspend("w", FaultEvent::kL2Update);
  auto data = bytes(4096, 2);
  auto writing = node.write(8192, iov(data));
  EXPECT_TRUE(points.is_suspended("w"));
  auto taking = zero ? node.write_zeroes(0, kOrderCluster, ZeroFlags{.may_unmap = true})
                     : node.discard(0, kOrderCluster);
  EXPECT_FALSE(taking.done()) << "the claim must end first";
  auto resumed = points.resume("w");
  CO_OK(resumed);
  auto written = co_await writing;
  CO_OK(written);
  auto taken = co_await taking;
  CO_OK(taken);
  const bool gone = co_await reads_as(node, 0, kOrderCluster, 0);
  EXPECT_TRUE(gone);
  const std::uint64_t leaks = co_await leaks_of(node);
  EXPECT_EQ(leaks, 0u);
  auto closed = co_await opened->node.detach();
  CO_OK(closed);
}

TEST(C6, SpaceThatIsBeingFilledIsNotTakenAway) {
  for (const bool zero : {false, true}) {
    MemoryImage image("order-space", 1 << 20, "");
    run([&] { return discard_of_a_claim(image, zero); });
  }
}

// Packed places ----------------------------------------------------------------------------------

// The host cluster where packed bytes would go on is freed and becomes another's.
Task<void> packed_after_reuse(const MemoryImage& image) {
  auto opened = co_await open_watched(image, "discard=unmap");
  CO_OK(opened);
  BlockNode& node = *opened->node;
  auto done = co_await fill_packed(node, 0, 1);
  CO_OK(done);
  auto packed = co_await node.extent(0, kOrderCluster);
  CO_OK(packed);
  auto discarded = co_await node.discard(0, kOrderCluster);
  CO_OK(discarded);
  auto flushed = co_await node.flush();
  CO_OK(flushed);
  done = co_await fill(node, 4 * kOrderCluster, kOrderCluster, 2);
  CO_OK(done);
  auto plain = co_await node.extent(4 * kOrderCluster, kOrderCluster);
  CO_OK(plain);
  EXPECT_EQ(plain->host_offset / kOrderCluster, packed->host_offset / kOrderCluster)
      << "the space was to be used again";
  done = co_await fill_packed(node, kOrderCluster, 3);
  CO_OK(done);
  const bool intact = co_await reads_as(node, 4 * kOrderCluster, kOrderCluster, 2);
  EXPECT_TRUE(intact) << "packed bytes in another's cluster";
  const std::uint64_t leaks = co_await leaks_of(node);
  EXPECT_EQ(leaks, 0u);
  auto closed = co_await opened->node.detach();
  CO_OK(closed);
}

TEST(C7, PackedBytesDoNotGoOnInAClusterThatIsAnothersNow) {
  MemoryImage image("order-cursor", 1 << 20, "");
  run([&] { return packed_after_reuse(image); });
}

// The same when the packed write itself failed, and so gave its place back; with a neighbour that
// keeps its own and without.
Task<void> packed_after_failure(const MemoryImage& image, bool neighbour) {
  auto opened = co_await open_watched(image, "discard=unmap");
  CO_OK(opened);
  BlockNode& node = *opened->node;
  FaultPoints& points = *opened->points;
  Result<void> done;
  if (neighbour) done = co_await fill_packed(node, 0, 1);
  CO_OK(done);
  points.add({.operations = fault_op::kWrite, .count = 1, .error = EIO});
  auto failed = co_await fill_packed(node, kOrderCluster, 4);
  EXPECT_FALSE(failed);
  points.clear_rules();
  auto flushed = co_await node.flush();
  CO_OK(flushed);
  done = co_await fill(node, 4 * kOrderCluster, kOrderCluster, 2);
  CO_OK(done);
  done = co_await fill_packed(node, 2 * kOrderCluster, 3);
  CO_OK(done);
  const bool intact = co_await reads_as(node, 4 * kOrderCluster, kOrderCluster, 2);
  EXPECT_TRUE(intact) << "packed bytes in another's cluster";
  const std::uint64_t leaks = co_await leaks_of(node);
  EXPECT_EQ(leaks, 0u) << "a failed write gives its space back";
  auto closed = co_await opened->node.detach();
  CO_OK(closed);
}

TEST(C7, AFailedPackedWriteGivesItsPlaceBack) {
  for (const bool neighbour : {false, true}) {
    SCOPED_TRACE(neighbour);
    MemoryImage image("order-packed", 1 << 20, "");
    run([&] { return packed_after_failure(image, neighbour); });
  }
}

// Flushes ----------------------------------------------------------------------------------------

// A flush that was asked for while another was under way: its data came after that one's barrier.
Task<void> flush_beside_flush(const MemoryImage& image, bool failing) {
  auto opened = co_await open_watched(image);
  CO_OK(opened);
  BlockNode& node = *opened->node;
  FaultPoints& points = *opened->points;
  auto done = co_await fill(node, 0, kOrderCluster, 1);
  CO_OK(done);
  auto flushed = co_await node.flush();
  CO_OK(flushed);
  done = co_await fill(node, 0, 512, 2);
  CO_OK(done);
  points.suspend_operation("f", fault_op::kFlush);
  auto first = node.flush();
  EXPECT_TRUE(points.is_suspended("f"));
  done = co_await fill(node, 512, 512, 3);
  CO_OK(done);
  const std::uint64_t before = points.requests(fault_op::kFlush);
  // Both of these share what comes next.
  auto second = node.flush();
  auto third = node.flush();
  EXPECT_FALSE(second.done());
  if (failing) {
    points.add({.operations = fault_op::kFlush, .skip = 0, .count = 0, .error = EIO});
  }
  auto resumed = points.resume("f");
  CO_OK(resumed);
  auto ended = co_await first;
  auto later = co_await second;
  auto last = co_await third;
  EXPECT_GT(points.requests(fault_op::kFlush), before) << "it needs a flush of its own";
  EXPECT_EQ(later.has_value(), !failing);
  EXPECT_EQ(last.has_value(), !failing);
  points.clear_rules();
  // A failure is said once more.
  for (int i = 0; i < 3; ++i) ended = co_await node.flush();
  CO_OK(ended);
  auto closed = co_await opened->node.detach();
  CO_OK(closed);
}

TEST(C5, AFlushIsNotCoveredByOneThatBeganBeforeIt) {
  MemoryImage image("order-flush", 1 << 20, "");
  run([&] { return flush_beside_flush(image, false); });
}

TEST(C5, AllFlushesThatShareAWriteBackAreToldThatItFailed) {
  MemoryImage image("order-flush", 1 << 20, "");
  run([&] { return flush_beside_flush(image, true); });
}

// A cache that needs room writes back what is dirty; nobody waits for that, and so the next flush
// says that it failed: the data that its barrier was for may be lost.
Task<void> failed_cleaning(const MemoryImage& image) {
  auto opened = co_await open_watched(image, "l2-cache-size=1024,l2-cache-entry-size=512");
  CO_OK(opened);
  BlockNode& node = *opened->node;
  FaultPoints& points = *opened->points;
  constexpr std::uint64_t kCovered = 64 * 4096;
  for (std::uint64_t i = 0; i < 8; ++i) {
    auto done = co_await fill(node, i * kCovered, 512, 1);
    CO_OK(done);
  }
  auto flushed = co_await node.flush();
  CO_OK(flushed);
  const std::uint64_t before = points.requests(fault_op::kFlush);
  points.add({.operations = fault_op::kFlush, .count = 1, .error = EIO});
  for (std::uint64_t i = 0; i < 8; ++i) {
    auto written = co_await fill(node, i * kCovered + 4096, 512, 2);
    CO_OK(written);
  }
  EXPECT_GT(points.requests(fault_op::kFlush), before) << "the cache was to be too small";
  EXPECT_EQ(points.acted(), 1u);
  points.clear_rules();
  flushed = co_await node.flush();
  EXPECT_FALSE(flushed) << "nobody is told";
  for (int i = 0; i < 3; ++i) flushed = co_await node.flush();
  CO_OK(flushed);
  auto closed = co_await opened->node.detach();
  CO_OK(closed);
}

TEST(C5, AFailedWriteBackThatNobodyWaitsForIsToldByTheNextFlush) {
  MemoryImage image("order-clean", 8 << 20, "cluster_size=4k");
  run([&] { return failed_cleaning(image); });
}

// What is freed while a write-back is under way, or by one that fails, is not free yet.
Task<void> free_beside_write_back(const MemoryImage& image, bool failing) {
  auto opened = co_await open_watched(image, "discard=unmap,pass-discard-request=off");
  CO_OK(opened);
  BlockNode& node = *opened->node;
  FaultPoints& points = *opened->points;
  auto done = co_await fill(node, 0, kOrderCluster, 1);
  CO_OK(done);
  auto flushed = co_await node.flush();
  CO_OK(flushed);
  auto before = co_await node.extent(0, kOrderCluster);
  CO_OK(before);
  auto discarded = co_await node.discard(0, kOrderCluster);
  CO_OK(discarded);
  // The write-back's last step: the table without the cluster is not durable before it.
  points.suspend_operation("f", fault_op::kFlush);
  auto flushing = node.flush();
  EXPECT_TRUE(points.is_suspended("f"));
  points.suspend_operation("g", fault_op::kFlush);
  auto resumed = points.resume("f");
  CO_OK(resumed);
  auto halted = points.wait_suspended("g");
  co_await halted;
  auto reaping = opened->driver().clusters().reap(HostClusters::Wait::kNo);
  co_await reaping;
  done = co_await fill(node, kOrderCluster, kOrderCluster, 2);
  CO_OK(done);
  auto place = co_await node.extent(kOrderCluster, kOrderCluster);
  CO_OK(place);
  EXPECT_NE(place->host_offset, before->host_offset) << "used again too early";
  if (failing) points.add({.operations = fault_op::kFlush, .skip = 0, .count = 1, .error = EIO});
  resumed = points.resume("g");
  CO_OK(resumed);
  auto ended = co_await flushing;
  points.clear_rules();
  if (!ended) {
    auto after = opened->driver().clusters().reap(HostClusters::Wait::kNo);
    co_await after;
    done = co_await fill(node, 2 * kOrderCluster, kOrderCluster, 3);
    CO_OK(done);
    place = co_await node.extent(2 * kOrderCluster, kOrderCluster);
    CO_OK(place);
    EXPECT_NE(place->host_offset, before->host_offset) << "nobody knows that it is unused";
  }
  for (int i = 0; i < 3; ++i) ended = co_await node.flush();
  CO_OK(ended);
  const std::uint64_t leaks = co_await leaks_of(node);
  EXPECT_EQ(leaks, 0u);
  auto closed = co_await opened->node.detach();
  CO_OK(closed);
}

TEST(C2, SpaceIsNotFreeBeforeTheLossOfItsReferenceIsDurable) {
  for (const bool failing : {false, true}) {
    SCOPED_TRACE(failing);
    MemoryImage image("order-free", 1 << 20, "");
    run([&] { return free_beside_write_back(image, failing); });
  }
}

// Tables -----------------------------------------------------------------------------------------

// A slice that was given up is not used for another table while a request may still look at it.
Task<void> evicted_under_a_request(const MemoryImage& image) {
  auto opened = co_await open_watched(image, "l2-cache-size=1024,l2-cache-entry-size=512");
  CO_OK(opened);
  BlockNode& node = *opened->node;
  Qcow2Driver& driver = opened->driver();
  // A slice of 64 entries covers 64 clusters of 4 KiB.
  constexpr std::uint64_t kCovered = 64 * 4096;
  for (std::uint64_t i = 0; i < 8; ++i) {
    auto done = co_await fill(node, i * kCovered, 512, static_cast<int>(i) + 1);
    CO_OK(done);
  }
  auto flushed = co_await node.flush();
  CO_OK(flushed);
  const bool cached = co_await reads_as(node, 0, 512, 1);
  EXPECT_TRUE(cached);
  {
    const InFlight::Ticket ticket(driver.in_flight());
    const TableCache::Slice* seen = driver.l2_cache().peek(0);
    EXPECT_NE(seen, nullptr);
    if (!seen) co_return;
    const std::uint64_t word = seen->word(0);
    for (std::uint64_t round = 0; round < 3; ++round) {
      for (std::uint64_t i = 1; i < 8; ++i) {
        const bool same = co_await reads_as(node, i * kCovered, 512, static_cast<int>(i) + 1);
        EXPECT_TRUE(same) << i;
      }
    }
    EXPECT_NE(driver.l2_cache().peek(0), seen) << "it was to be given up";
    EXPECT_EQ(seen->word(0), word) << "another table's entry under a request's eyes";
  }
  auto closed = co_await opened->node.detach();
  CO_OK(closed);
}

TEST(C8, ATableThatIsGivenUpStaysForThoseWhoSeeIt) {
  MemoryImage image("order-evict", 8 << 20, "cluster_size=4k");
  run([&] { return evicted_under_a_request(image); });
}

// What needs the image to itself -----------------------------------------------------------------

using Alone = Task<Result<void>> (*)(BlockNode&);

Task<Result<void>> apply_it(BlockNode& node) {
  auto done = co_await node.driver().snapshots()->apply("s");
  co_return done;
}
Task<Result<void>> shrink_it(BlockNode& node) {
  const ResizeRequest request{.size = node.size() / 2};
  auto done = co_await node.resize(request);
  co_return done;
}
Task<Result<void>> check_it(BlockNode& node) {
  const CheckRequest request;
  auto done = co_await node.driver().checker()->check(request);
  PLATTER_CO_TRY(done);
  co_return {};
}
Task<Result<void>> amend_it(BlockNode& node) {
  const std::function<void(std::uint64_t, std::uint64_t)> silent;
  auto done = co_await node.driver().amender()->amend(options("refcount_bits=32"), false, silent);
  co_return done;
}
Task<Result<void>> add_bitmap(BlockNode& node) {
  auto done = co_await node.driver().bitmaps()->add("b", 65536, true);
  co_return done;
}

Task<void> alone(const MemoryImage& image, Alone act) {
  auto opened = co_await open_watched(image, "discard=unmap");
  CO_OK(opened);
  BlockNode& node = *opened->node;
  FaultPoints& points = *opened->points;
  auto done = co_await fill(node, 0, 2 * kOrderCluster, 1);
  CO_OK(done);
  done = co_await node.driver().snapshots()->create("s", 1, 0);
  CO_OK(done);
  done = co_await fill(node, 0, kOrderCluster, 2);
  CO_OK(done);
  points.suspend("w", FaultEvent::kMapped);
  auto data = bytes(4096, 3);
  auto writing = node.write(0, iov(data));
  EXPECT_TRUE(points.is_suspended("w"));
  auto acting = act(node);
  for (int i = 0; i < 50; ++i) co_await sleep_for(std::chrono::nanoseconds(0));
  EXPECT_FALSE(acting.done()) << "it waits for requests in flight";
  // And who comes later waits for it.
  auto more = bytes(512, 4);
  auto later = node.write(kOrderCluster, iov(more));
  EXPECT_FALSE(later.done());
  auto resumed = points.resume("w");
  CO_OK(resumed);
  auto written = co_await writing;
  CO_OK(written);
  auto acted = co_await acting;
  CO_OK(acted);
  written = co_await later;
  CO_OK(written);
  const bool same = co_await reads_as(node, kOrderCluster, 512, 4);
  EXPECT_TRUE(same);
  // Space that was freed just before is not forgotten when tables are loaded anew.
  auto discarded = co_await node.discard(0, kOrderCluster);
  CO_OK(discarded);
  acting = act == add_bitmap ? node.flush() : act(node);
  acted = co_await acting;
  CO_OK(acted);
  const std::uint64_t leaks = co_await leaks_of(node);
  EXPECT_EQ(leaks, 0u);
  auto closed = co_await opened->node.detach();
  CO_OK(closed);
  auto again = co_await image.open();
  CO_OK(again);
  const std::uint64_t leaks_then = co_await leaks_of(**again);
  EXPECT_EQ(leaks_then, 0u);
  closed = co_await again->detach();
  CO_OK(closed);
}

TEST(C13, WhatNeedsTheImageToItselfWaitsForRequests) {
  for (const Alone act : {apply_it, shrink_it, check_it, amend_it, add_bitmap}) {
    MemoryImage image("order-alone", 1 << 20, "");
    run([&] { return alone(image, act); });
  }
}

}  // namespace
}  // namespace platter::qcow2
