#include "block/exec/chores.h"

#include <gtest/gtest.h>

#include <atomic>
#include <filesystem>
#include <iterator>

#include "block/exec/executor_thread.h"

namespace platter::chores {
namespace {

using namespace std::chrono_literals;

TEST(Chores, EachIsDoneWhenItsTimeHasComeAndNotBefore) {
  Chores chores;
  std::atomic<int> hours{0};
  std::atomic<int> days{0};
  Chore hourly([&] { ++hours; }, chores);
  Chore daily([&] { ++days; }, chores);
  hourly.every(1h);
  daily.every(24h);
  hourly.begin();
  daily.begin();
  chores.advance(59min);
  EXPECT_EQ(hours, 0);
  for (int i = 0; i < 3; ++i) chores.advance(1h);
  EXPECT_EQ(hours, 3);
  EXPECT_EQ(days, 0);
  chores.advance(24h);
  EXPECT_EQ(hours, 4) << "what was missed is made up for";
  EXPECT_EQ(days, 1);
}

TEST(Chores, AnotherIntervalCountsFromNowAndZeroIsNever) {
  Chores chores;
  std::atomic<int> times{0};
  Chore chore([&] { ++times; }, chores);
  chores.advance(24h);
  EXPECT_EQ(times, 0) << "nobody has asked for it yet";
  chore.every(1h);
  chore.begin();
  chores.advance(50min);
  chore.every(2h);
  chores.advance(100min);
  EXPECT_EQ(times, 0);
  chores.advance(20min);
  EXPECT_EQ(times, 1);
  chore.every(0s);
  chores.advance(24h);
  EXPECT_EQ(times, 1);
  chore.every(1h);
  chores.advance(1h);
  EXPECT_EQ(times, 2);
}

std::ptrdiff_t threads() {
  const std::filesystem::directory_iterator tasks("/proc/self/task");
  return std::distance(tasks, std::filesystem::directory_iterator());
}

TEST(Chores, OneThatHasNotBegunNeedsNoThreadAndItsTimeCountsFromThen) {
  // A sanitizer may start a thread of its own beside a program's first one.
  Chores others;
  Chore first([] {}, others);
  first.every(1h);
  first.begin();
  Chores chores;
  std::atomic<int> times{0};
  Chore chore([&] { ++times; }, chores);
  const std::ptrdiff_t before = threads();
  chore.every(1h);
  EXPECT_EQ(threads(), before);
  chores.advance(24h);
  EXPECT_EQ(times, 0);
  chore.begin();
  chore.begin();
  EXPECT_EQ(threads(), before + 1);
  chores.advance(50min);
  EXPECT_EQ(times, 0);
  chores.advance(20min);
  EXPECT_EQ(times, 1);
}

TEST(Chores, OneThatHasBegunWaitsForAnInterval) {
  Chores chores;
  std::atomic<int> times{0};
  Chore chore([&] { ++times; }, chores);
  chore.begin();
  chores.advance(24h);
  EXPECT_EQ(times, 0);
  chore.every(1h);
  chores.advance(1h);
  EXPECT_EQ(times, 1);
}

TEST(Chores, TheyAreDoneAsRealTimePasses) {
  Chores chores;
  std::atomic<int> times{0};
  Chore chore(
      [&] {
        ++times;
        times.notify_all();
      },
      chores);
  chore.every(1ms);
  chore.begin();
  for (int seen = 0; seen < 3; seen = times) times.wait(seen);
}

TEST(Chores, NoneIsRunningOnceItHasBeenStopped) {
  Chores chores;
  std::atomic<bool> begun{false};
  std::atomic<bool> go_on{false};
  std::atomic<bool> stopped{false};
  int done = 0;  // without a lock of its own: who stops the chore has it to himself afterwards
  {
    Chore chore(
        [&] {
          begun = true;
          begun.notify_all();
          go_on.wait(false);
          EXPECT_FALSE(stopped);
          ++done;
        },
        chores);
    chore.every(1h);
    chore.begin();
    std::thread time([&] { chores.advance(1h); });
    begun.wait(false);
    std::thread other([&] {
      go_on = true;
      go_on.notify_all();
    });
    chore.every(0s);
    stopped = true;
    EXPECT_EQ(done, 1);
    other.join();
    time.join();
  }
  chores.advance(24h);
  EXPECT_EQ(done, 1);
}

// An executor that drains, and one that ends, do not wait for a chore that was asked for there.
TEST(Chores, NoExecutorWaitsForThem) {
  std::atomic<int> times{0};
  Chores chores;
  Chore chore([&] { ++times; }, chores);
  auto start = [&]() -> Task<void> {
    chore.every(24h);
    chore.begin();
    co_return;
  };
  {
    auto thread = ExecutorThread::start();
    ASSERT_TRUE(thread);
    run_blocking((*thread)->executor(), start);
  }
  auto here = Executor::create();
  ASSERT_TRUE(here);
  (*here)->block_on(start);
  (*here)->drain();
  EXPECT_EQ((*here)->in_flight(), 0u);
  chores.advance(24h);
  EXPECT_EQ(times, 1);
}

}  // namespace
}  // namespace platter::chores
