// Bitmaps while several executors write, and while I/O fails: what was written is always marked, or
// the bitmap says that it is not to be trusted.
#include <fmt/format.h>

#include "block/exec/executor_thread.h"
#include "block/node/dirty_bitmap.h"
#include "race/race_support.h"
#include "unit/side_threads.h"

namespace platter::qcow2 {
namespace {

using namespace testing;  // NOLINT: helpers of these tests

constexpr std::uint64_t kSize = std::uint64_t{4} << 20;
constexpr std::uint64_t kGranule = 4096;

Task<void> write_randomly(BlockNode& node, unsigned seed, unsigned steps,
                          std::vector<bool>* written) {
  std::mt19937 random(seed);
  for (unsigned i = 0; i < steps; ++i) {
    const std::uint64_t offset = random() % (kSize / 512 - 64) * 512;
    const std::uint64_t length = (1 + random() % 40) * 512;
    Result<void> done;
    if (random() % 5 == 0) {
      done = co_await node.write_zeroes(offset, length, ZeroFlags{.may_unmap = true});
    } else {
      done = co_await fill(node, offset, length, 1 + static_cast<int>(i % 200));
    }
    EXPECT_TRUE(done) << (done ? "" : done.error().message());
    for (std::uint64_t at = offset / kGranule; at <= (offset + length - 1) / kGranule; ++at)
      (*written)[at] = true;
    if (random() % 50 == 0) done = co_await node.flush();
  }
}

// Adds, merges and removes others meanwhile.
Task<void> disturb(BlockNode& node, unsigned rounds) {
  BitmapAbility& bitmaps = *node.driver().bitmaps();
  for (unsigned i = 0; i < rounds; ++i) {
    auto done = co_await bitmaps.add("other", 512, i % 2 == 0);
    CO_OK(done);
    auto contents = co_await bitmaps.contents("all");
    CO_OK(contents);
    done = co_await bitmaps.merge("other", *contents);
    CO_OK(done);
    done = co_await bitmaps.set_enabled("other", i % 2 != 0);
    CO_OK(done);
    auto later = co_await bitmaps.contents("other");
    CO_OK(later);
    for (auto r = (*contents)->next(0); r.length != 0; r = (*contents)->next(r.offset + r.length)) {
      EXPECT_TRUE((*later)->get(r.offset));
    }
    done = co_await bitmaps.remove("other");
    CO_OK(done);
  }
}

Task<void> expect_marks(BlockNode& node, const std::vector<bool>& written) {
  auto contents = co_await node.driver().bitmaps()->contents("all");
  CO_OK(contents);
  for (std::size_t i = 0; i < written.size(); ++i) {
    EXPECT_EQ((*contents)->get(i * kGranule), written[i]) << "granule " << i;
  }
}

TEST(BitmapRace, FourQueuesMarkWhatTheyWrite) {
  constexpr unsigned kQueues = 4;
  MemoryImage image("bitmap-race", kSize, "cluster_size=4k");
  auto main = ExecutorThread::start();
  ASSERT_TRUE(main);
  const auto on_main = [&](auto start) { return run_blocking((*main)->executor(), start); };
  auto opened = on_main([&] { return image.open(true, "discard=unmap,l2-cache-size=8192"); });
  ASSERT_TRUE(opened) << opened.error().message();
  BlockNode& node = **opened;
  auto added = on_main([&] { return node.driver().bitmaps()->add("all", kGranule, true); });
  ASSERT_TRUE(added) << added.error().message();
  std::vector<std::vector<bool>> written(kQueues, std::vector<bool>(kSize / kGranule));
  {
    SideThreads side;
    for (unsigned i = 0; i < kQueues; ++i)
      side.start([&, i] { return write_randomly(node, i + 1, 60, &written[i]); });
    on_main([&] { return disturb(node, 10); });
  }
  std::vector<bool> all(kSize / kGranule);
  for (const auto& one : written) {
    for (std::size_t i = 0; i < all.size(); ++i) all[i] = all[i] || one[i];
  }
  on_main([&] { return expect_marks(node, all); });
  EXPECT_EQ(on_main([&] { return leaks_of(node); }), 0u);
  auto closed = on_main([&] { return opened->detach(); });
  EXPECT_TRUE(closed) << (closed ? "" : closed.error().message());
  opened = on_main([&] { return image.open(); });
  ASSERT_TRUE(opened) << opened.error().message();
  on_main([&] { return expect_marks(**opened, all); });
  closed = on_main([&] { return opened->detach(); });
  EXPECT_TRUE(closed) << (closed ? "" : closed.error().message());
}

// Every I/O fails once, in turn
// ------------------------------------------------------------------------------------------------

struct Granules {
  std::vector<bool> acknowledged = std::vector<bool>(kSize / kGranule);
  void note(std::uint64_t granule, const Result<void>& done) {
    if (done) acknowledged[granule] = true;
  }
};

Task<void> work(BlockNode& node, Granules* granules) {
  BitmapAbility& bitmaps = *node.driver().bitmaps();
  Result<void> done;
  done = co_await fill(node, 10 * kGranule, 512, 2);
  granules->note(10, done);
  done = co_await bitmaps.add("b", 512, true);
  done = co_await fill(node, 700 * kGranule, 512, 2);
  granules->note(700, done);
  auto contents = co_await bitmaps.contents("all");
  if (contents) done = co_await bitmaps.merge("b", *contents);
  done = co_await bitmaps.set_enabled("b", false);
  done = co_await fill(node, 20 * kGranule, 512, 2);
  granules->note(20, done);
  ResizeRequest grow{.size = kSize * 2};
  done = co_await node.resize(grow);
  done = co_await bitmaps.remove("b");
  done = co_await fill(node, 30 * kGranule, 512, 2);
  granules->note(30, done);
}

Task<void> fail_one(const MemoryImage& image, std::uint32_t kind, std::uint64_t skip,
                    Granules* granules, bool crash, bool* acted_on) {
  auto opened = co_await open_watched(image, "discard=unmap");
  CO_OK(opened);
  BlockNode& node = *opened->node;
  auto prepared = co_await fill(node, 0, 16 * kGranule, 1);
  CO_OK(prepared);
  prepared = co_await node.driver().bitmaps()->add("all", kGranule, true);
  CO_OK(prepared);
  opened->points->add({.operations = kind, .skip = skip, .count = 1, .error = EIO});
  auto working = work(node, granules);
  co_await working;
  *acted_on = opened->points->acted() != 0;
  opened->points->clear_rules();
  if (crash) {
    Edge gone = std::move(opened->node);
    co_return;
  }
  auto closed = co_await opened->node.detach();
  static_cast<void>(closed);
}

Task<void> judge(const MemoryImage& image, const Granules& granules, bool may_be_lost) {
  auto opened = co_await image.open();
  CO_OK(opened);
  BlockNode& node = **opened;
  const std::uint64_t leaks = co_await leaks_of(node);
  EXPECT_LE(leaks, 40u);
  const bool intact = co_await reads_as(node, 0, 10 * kGranule, 1);
  EXPECT_TRUE(intact);
  const std::vector<BitmapInfo> list = node.driver().bitmaps()->list();
  EXPECT_FALSE(list.empty());
  if (!list.empty() && !list[0].inconsistent) {
    auto contents = co_await node.driver().bitmaps()->contents("all");
    CO_OK(contents);
    for (std::size_t i = 0; i < granules.acknowledged.size(); ++i) {
      if (granules.acknowledged[i] && !may_be_lost) {
        EXPECT_TRUE((*contents)->get(i * kGranule)) << "granule " << i;
      }
      // Whatever differs from what it was when the bitmap was added is marked.
      const bool same = co_await reads_as(node, i * kGranule, 512, i < 16 ? 1 : 0);
      EXPECT_TRUE(same || (*contents)->get(i * kGranule)) << "granule " << i;
    }
  }
  auto closed = co_await opened->detach();
  CO_OK(closed);
}

TEST(BitmapFailures, EveryReadWriteAndFlushFailsOnce) {
  for (const std::uint32_t kind :
       {fault_op::kRead, fault_op::kWrite | fault_op::kWriteZeroes | fault_op::kResize,
        fault_op::kFlush}) {
    for (const bool crash : {false, true}) {
      bool acted_on = true;
      for (std::uint64_t skip = 0; acted_on && !HasFailure(); ++skip) {
        SCOPED_TRACE(fmt::format("operations {}, number {}, crash {}", kind, skip, crash));
        MemoryImage image("bitmap-failure", kSize, "cluster_size=4k");
        Granules granules;
        run([&] { return fail_one(image, kind, skip, &granules, crash, &acted_on); });
        run([&] { return judge(image, granules, crash); });
      }
    }
  }
}

}  // namespace
}  // namespace platter::qcow2
