// Snapshots are taken and removed again and again while several executors write. Every sector tells
// which write it is of, so that afterwards each snapshot can be held against what had been written
// when it was asked for, and what had begun when it was there.
#include <fmt/format.h>

#include <atomic>

#include "block/exec/executor_thread.h"
#include "race/race_support.h"
#include "race/stamped.h"
#include "unit/side_threads.h"

namespace platter::qcow2 {
namespace {

using namespace testing;  // NOLINT: helpers of these tests

constexpr std::uint64_t kDiskSize = std::uint64_t{2} << 20;
constexpr std::uint64_t kSectors = kDiskSize / kStamped;
constexpr std::uint64_t kStripe = 29;  // sectors: 3.6 clusters of 4 KiB

class Writer {
 public:
  Writer(BlockNode& node, Numbers& numbers, unsigned index, unsigned count, unsigned seed)
      : node_(node), numbers_(numbers), index_(index), count_(count), random_(seed * 31 + index) {}

  Task<void> play(const std::atomic<bool>& stop) {
    while (!stop.load() && !::testing::Test::HasFailure()) {
      auto one = step();
      co_await one;
    }
  }

 private:
  Task<void> step() {
    const std::uint64_t stripes = kSectors / kStripe;
    const std::uint64_t stripe = random_() % (stripes / count_) * count_ + index_;
    const std::uint64_t from = random_() % kStripe;
    const std::uint64_t first = stripe * kStripe + from;
    const std::uint64_t sectors = 1 + random_() % (kStripe - from);
    const std::uint64_t kind = random_() % 8;
    Result<void> done;
    if (kind == 0) {
      done = co_await node_.flush();
    } else if (kind == 1) {
      numbers_.begin(first, sectors, true);
      const ZeroFlags flags{.may_unmap = random_() % 2 == 0};
      done = co_await node_.write_zeroes(first * kStamped, sectors * kStamped, flags);
      numbers_.end(first, sectors);
    } else if (kind == 2) {
      std::vector<std::byte> now(sectors * kStamped);
      done = co_await node_.read(first * kStamped, iov(now));
      for (std::uint64_t s = 0; s < sectors; ++s) {
        const std::uint32_t change = numbers_.ended[first + s].load();
        EXPECT_TRUE(fair(now.data() + s * kStamped, first + s, change, change))
            << "sector " << first + s;
      }
    } else {
      numbers_.begin(first, sectors, false);
      std::vector<std::byte> data(sectors * kStamped);
      for (std::uint64_t s = 0; s < sectors; ++s)
        stamp(data.data() + s * kStamped, first + s, numbers_.begun[first + s].load());
      done = co_await node_.write(first * kStamped, iov(data));
      numbers_.end(first, sectors);
    }
    EXPECT_TRUE(done) << (done ? "" : done.error().message());
  }

  BlockNode& node_;
  Numbers& numbers_;
  const unsigned index_;
  const unsigned count_;
  std::mt19937 random_;
};

// Takes and removes snapshots, by themselves or in favour of the latest; some stay.
Task<void> snap(BlockNode& node, const Numbers& numbers, unsigned rounds,
                std::vector<Taken>& taken) {
  SnapshotAbility& snapshots = *node.driver().snapshots();
  for (unsigned i = 0; i < rounds && !::testing::Test::HasFailure(); ++i) {
    Taken one{.name = fmt::format("s{}", i), .from = copy_of(numbers.ended), .to = {}};
    auto done = co_await snapshots.create(one.name, i, 0);
    EXPECT_TRUE(done) << (done ? "" : done.error().message());
    one.to = copy_of(numbers.begun);
    taken.push_back(std::move(one));
    if (taken.size() <= 3) continue;
    const std::size_t which = i % taken.size();
    if (i % 2 == 0 || &taken[which] == &taken.back()) {
      done = co_await snapshots.remove(taken[which].name);
    } else {
      done = co_await snapshots.rename(taken.back().name, taken[which].name);
      taken.back().name = taken[which].name;
    }
    EXPECT_TRUE(done) << (done ? "" : done.error().message());
    taken.erase(taken.begin() + static_cast<std::ptrdiff_t>(which));
  }
}

Task<void> compare(BlockNode& node, const std::vector<std::uint32_t>& from,
                   const std::vector<std::uint32_t>& to) {
  std::vector<std::byte> now(kDiskSize);
  auto got = co_await node.read(0, iov(now));
  CO_OK(got);
  for (std::uint64_t s = 0; s < kSectors; ++s) {
    EXPECT_TRUE(fair(now.data() + s * kStamped, s, from[s], to[s]))
        << "sector " << s << ", changes " << from[s] << " to " << to[s];
    if (::testing::Test::HasFailure()) co_return;
  }
}

Task<void> look(const MemoryImage& image, const Taken& taken) {
  auto opened = co_await image.open(false);
  CO_OK(opened);
  auto loaded = co_await (*opened)->driver().snapshots()->load(taken.name);
  CO_OK(loaded);
  auto comparing = compare(**opened, taken.from, taken.to);
  co_await comparing;
  auto closed = co_await opened->detach();
  CO_OK(closed);
}

void play(const MemoryImage& image, std::string_view open_options, unsigned count) {
  unsigned seed = 20251122;
  unsigned rounds = 30;
  if (const char* given = std::getenv("PLATTER_SEED"))
    seed = static_cast<unsigned>(std::atoi(given));
  if (const char* given = std::getenv("PLATTER_STEPS"))
    rounds = static_cast<unsigned>(std::atoi(given));
  SCOPED_TRACE(fmt::format("seed {}", seed));
  auto main = ExecutorThread::start();
  ASSERT_TRUE(main);
  Executor& executor = (*main)->executor();
  auto opening = [&] { return image.open(true, open_options); };
  auto opened = run_blocking(executor, opening);
  ASSERT_TRUE(opened) << opened.error().message();
  Numbers numbers(kSectors);
  std::vector<Taken> taken;
  {
    std::atomic<bool> stop{false};
    std::vector<std::unique_ptr<Writer>> writers;
    for (unsigned i = 0; i < count; ++i)
      writers.push_back(std::make_unique<Writer>(**opened, numbers, i, count, seed));
    SideThreads side;
    for (const auto& writer : writers) side.start([&] { return writer->play(stop); });
    auto snapping = [&] { return snap(**opened, numbers, rounds, taken); };
    run_blocking(executor, snapping);
    stop.store(true);
  }
  EXPECT_FALSE(taken.empty());
  const std::vector<std::uint32_t> last = copy_of(numbers.ended);
  auto comparing = [&] { return compare(**opened, last, last); };
  run_blocking(executor, comparing);
  auto checking = [&] { return leaks_of(**opened); };
  EXPECT_EQ(run_blocking(executor, checking), 0u);
  auto closing = [&] { return opened->detach(); };
  auto closed = run_blocking(executor, closing);
  EXPECT_TRUE(closed) << (closed ? "" : closed.error().message());
  for (const Taken& one : taken) {
    SCOPED_TRACE(one.name);
    auto looking = [&] { return look(image, one); };
    run_blocking(executor, looking);
  }
}

// Room for two slices of each kind of table.
TEST(LiveSnapshotStress, EightQueuesOnTinyCaches) {
  MemoryImage image("stress-tiny", kDiskSize, "cluster_size=4k");
  play(image, "discard=unmap,l2-cache-size=1024,l2-cache-entry-size=512,refcount-cache-size=1024",
       8);
}

TEST(LiveSnapshotStress, OnSmallClusters) {
  MemoryImage image("stress-small", kDiskSize, "cluster_size=512");
  play(image, "discard=unmap", 4);
}

TEST(LiveSnapshotStress, OnSubclusters) {
  MemoryImage image("stress-sub", kDiskSize, "cluster_size=16k,extended_l2=on");
  play(image, "discard=unmap", 4);
}

TEST(LiveSnapshotStress, OnVersion2) {
  MemoryImage image("stress-v2", kDiskSize, "cluster_size=4k,compat=0.10");
  play(image, "discard=unmap", 4);
}

TEST(LiveSnapshotStress, WithLazyRefcounts) {
  MemoryImage image("stress-lazy", kDiskSize, "cluster_size=4k,lazy_refcounts=on");
  play(image, "discard=unmap", 4);
}

}  // namespace
}  // namespace platter::qcow2
