// Rules that hold between two things under way at once, one by one: what a claim keeps others from,
// what a flush covers, what waits for requests, and what may not be used again yet.
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
Task<void> write_into_a_claim(Watched& watched) {
  BlockNode& node = *watched.node;
  FaultPoints& points = *watched.points;
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
}

TEST(C6, AWriteThatReachesIntoAnothersCluster) { act_out({}, write_into_a_claim); }

// Space that is there already is about to show a write's data: nobody may take it away.
Task<void> discard_of_a_claim(Watched& watched, bool zero) {
  BlockNode& node = *watched.node;
  FaultPoints& points = *watched.points;
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
}

TEST(C6, SpaceThatIsBeingFilledIsNotTakenAway) {
  for (const bool zero : {false, true}) {
    act_out({.open = "discard=unmap"},
            [&](Watched& watched) { return discard_of_a_claim(watched, zero); });
  }
}

// Packed places ----------------------------------------------------------------------------------

// The host cluster where packed bytes would go on is freed and becomes another's.
Task<void> packed_after_reuse(Watched& watched) {
  BlockNode& node = *watched.node;
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
}

TEST(C7, PackedBytesDoNotGoOnInAClusterThatIsAnothersNow) {
  act_out({.open = "discard=unmap"}, packed_after_reuse);
}

// The same when the packed write itself failed, and so gave its place back; with a neighbour that
// keeps its own and without.
Task<void> packed_after_failure(Watched& watched, bool neighbour) {
  BlockNode& node = *watched.node;
  FaultPoints& points = *watched.points;
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
}

TEST(C7, AFailedPackedWriteGivesItsPlaceBack) {
  for (const bool neighbour : {false, true}) {
    SCOPED_TRACE(neighbour);
    act_out({.open = "discard=unmap"},
            [&](Watched& watched) { return packed_after_failure(watched, neighbour); });
  }
}

// Flushes ----------------------------------------------------------------------------------------

// A flush that was asked for while another was under way: its data came after that one's barrier.
Task<void> flush_beside_flush(Watched& watched, bool failing) {
  BlockNode& node = *watched.node;
  FaultPoints& points = *watched.points;
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
}

TEST(C5, AFlushIsNotCoveredByOneThatBeganBeforeIt) {
  act_out({}, [](Watched& watched) { return flush_beside_flush(watched, false); });
}

TEST(C5, AllFlushesThatShareAWriteBackAreToldThatItFailed) {
  act_out({}, [](Watched& watched) { return flush_beside_flush(watched, true); });
}

// Who shares a write-back that failed is told, also when another one that nobody asked to be
// durable has succeeded in between.
Task<void> flush_behind_another_write_back(Watched& watched) {
  BlockNode& node = *watched.node;
  FaultPoints& points = *watched.points;
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
  auto second = node.flush();
  auto taking = node.driver().snapshots()->create("s", 1, 0);
  auto third = node.flush();
  // Not the one that is under way, but the next.
  points.add({.operations = fault_op::kFlush, .skip = 1, .count = 1, .error = EIO});
  auto resumed = points.resume("f");
  CO_OK(resumed);
  flushed = co_await first;
  CO_OK(flushed);
  auto failed = co_await second;
  auto shared = co_await third;
  EXPECT_FALSE(failed);
  EXPECT_FALSE(shared) << "what it was to make durable may be lost, and nobody is told";
  EXPECT_EQ(points.acted(), 1u);
  auto taken = co_await taking;
  CO_OK(taken);
  points.clear_rules();
  for (int i = 0; i < 3; ++i) flushed = co_await node.flush();
  CO_OK(flushed);
}

TEST(C5, AnErrorIsNotForgottenForAnotherWriteBack) { act_out({}, flush_behind_another_write_back); }

// A cache that needs room writes back what is dirty; nobody waits for that, and so the next flush
// says that it failed: the data that its barrier was for may be lost.
Task<void> failed_cleaning(Watched& watched) {
  BlockNode& node = *watched.node;
  FaultPoints& points = *watched.points;
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
}

TEST(C5, AFailedWriteBackThatNobodyWaitsForIsToldByTheNextFlush) {
  act_out({.size = 8 << 20,
           .create = "cluster_size=4k",
           .open = "l2-cache-size=1024,l2-cache-entry-size=512"},
          failed_cleaning);
}

// What is freed while a write-back is under way, or by one that fails, is not free yet.
Task<void> free_beside_write_back(Watched& watched, bool failing) {
  BlockNode& node = *watched.node;
  FaultPoints& points = *watched.points;
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
  auto reaping = watched.driver().clusters().reap(HostClusters::Wait::kNo);
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
    auto after = watched.driver().clusters().reap(HostClusters::Wait::kNo);
    co_await after;
    done = co_await fill(node, 2 * kOrderCluster, kOrderCluster, 3);
    CO_OK(done);
    place = co_await node.extent(2 * kOrderCluster, kOrderCluster);
    CO_OK(place);
    EXPECT_NE(place->host_offset, before->host_offset) << "nobody knows that it is unused";
  }
  for (int i = 0; i < 3; ++i) ended = co_await node.flush();
  CO_OK(ended);
}

TEST(C2, SpaceIsNotFreeBeforeTheLossOfItsReferenceIsDurable) {
  for (const bool failing : {false, true}) {
    SCOPED_TRACE(failing);
    act_out({.open = "discard=unmap,pass-discard-request=off"},
            [&](Watched& watched) { return free_beside_write_back(watched, failing); });
  }
}

// Tables -----------------------------------------------------------------------------------------

// A slice that was given up is not used for another table while a request may still look at it.
Task<void> evicted_under_a_request(Watched& watched) {
  BlockNode& node = *watched.node;
  Qcow2Driver& driver = watched.driver();
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
}

TEST(C8, ATableThatIsGivenUpStaysForThoseWhoSeeIt) {
  act_out({.size = 8 << 20,
           .create = "cluster_size=4k",
           .open = "l2-cache-size=1024,l2-cache-entry-size=512"},
          evicted_under_a_request);
}

// A piece of a table that is being loaded while the table gets a place of its own: it belongs to
// the new one.
Task<void> moved_under_a_load(Watched& watched) {
  BlockNode& node = *watched.node;
  FaultPoints& points = *watched.points;
  SnapshotAbility& snapshots = *node.driver().snapshots();
  constexpr std::uint64_t kFar = 100 * 4096;  // in another piece of the same table
  auto done = co_await fill(node, 0, 512, 1);
  CO_OK(done);
  done = co_await fill(node, kFar, 512, 1);
  CO_OK(done);
  done = co_await snapshots.create("s", 1, 0);
  CO_OK(done);
  for (int i = 0; i < 3; ++i) watched.driver().l2_cache().shed_unused();
  points.suspend("r", FaultEvent::kL2Load);
  auto data = bytes(512, 9);
  auto reading = node.read(kFar, iov(data));
  EXPECT_TRUE(points.is_suspended("r"));
  done = co_await fill(node, 0, 512, 2);
  CO_OK(done);
  auto resumed = points.resume("r");
  CO_OK(resumed);
  auto read = co_await reading;
  CO_OK(read);
  EXPECT_EQ(data, bytes(512, 1));
  done = co_await fill(node, kFar, 512, 2);
  CO_OK(done);
  auto flushed = co_await node.flush();
  CO_OK(flushed);
  const std::uint64_t leaks = co_await leaks_of(node);
  EXPECT_EQ(leaks, 0u);
  bool same = co_await reads_as(node, kFar, 512, 2);
  EXPECT_TRUE(same) << "lost";
  done = co_await snapshots.apply("s");
  CO_OK(done);
  same = co_await reads_as(node, kFar, 512, 1);
  EXPECT_TRUE(same) << "the snapshot has changed";
}

TEST(C8, ATableThatMovesWhileAPieceOfItIsLoaded) {
  act_out({.create = "cluster_size=4k", .open = "l2-cache-entry-size=512"}, moved_under_a_load);
}

// What needs the image to itself -----------------------------------------------------------------

using Alone = Task<Result<void>> (*)(BlockNode&);
constexpr std::uint32_t kAnyRequest = fault_op::kRead | fault_op::kWrite | fault_op::kWriteZeroes |
                                      fault_op::kDiscard | fault_op::kFlush | fault_op::kExtent |
                                      fault_op::kResize;

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

Task<void> alone(Watched& watched, Alone act) {
  BlockNode& node = *watched.node;
  FaultPoints& points = *watched.points;
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
  // Nothing touches the disk before the request that is under way.
  points.suspend_operation("first", kAnyRequest);
  auto acting = act(node);
  const bool early = points.is_suspended("first");
  EXPECT_FALSE(early) << "it waits for requests in flight";
  if (early) {
    for (const char* tag : {"first", "w"}) {
      auto on = points.resume(tag);
      CO_OK(on);
    }
    auto one = co_await writing;
    auto other = co_await acting;
    EXPECT_TRUE(one && other);
    co_return;
  }
  // And who comes later waits for it.
  auto more = bytes(512, 4);
  auto later = node.write(kOrderCluster, iov(more));
  auto resumed = points.resume("w");
  CO_OK(resumed);
  auto halted = points.wait_suspended("first");
  co_await halted;
  EXPECT_FALSE(writing.done());
  points.suspend_operation("second", kAnyRequest);
  resumed = points.resume("first");
  CO_OK(resumed);
  halted = points.wait_suspended("second");
  co_await halted;
  EXPECT_TRUE(writing.done()) << "it began before the request had ended";
  EXPECT_FALSE(acting.done());
  EXPECT_FALSE(later.done());
  auto written = co_await writing;
  CO_OK(written);
  resumed = points.resume("second");
  CO_OK(resumed);
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
}

TEST(C13, WhatNeedsTheImageToItselfWaitsForRequests) {
  for (const Alone act : {apply_it, shrink_it, check_it, amend_it, add_bitmap}) {
    act_out({.open = "discard=unmap"}, [&](Watched& watched) { return alone(watched, act); });
  }
}

}  // namespace
}  // namespace platter::qcow2
