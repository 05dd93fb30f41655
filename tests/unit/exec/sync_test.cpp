// Locks, events and gates between coroutines of one executor.
#include "block/exec/sync.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "block/exec/timer.h"

namespace platter {
namespace {

using namespace std::chrono_literals;

template <class Start>
auto run(Start start) {
  auto executor = Executor::create();
  EXPECT_TRUE(executor);
  return (*executor)->block_on(start);
}

// Lets every other coroutine that is ready run.
detail::SleepAwaiter turn_of_the_others() { return sleep_for(0ns); }

Task<void> locked_section(AsyncMutex& mutex, char name, std::string& log) {
  auto guard = co_await mutex.lock();
  log += name;
  co_await turn_of_the_others();
  log += name;
}

Task<std::string> contend() {
  AsyncMutex mutex;
  std::string log;
  std::vector<Task<void>> tasks;
  for (char name : std::string("abcd")) tasks.push_back(locked_section(mutex, name, log));
  for (auto& task : tasks) co_await task;
  // Free again, also by hand and by moving the guard.
  auto guard = co_await mutex.lock();
  AsyncMutex::Guard other = std::move(guard);
  other.unlock();
  guard = co_await mutex.lock();
  co_return log;
}

TEST(AsyncMutex, ExcludesAndServesInOrder) { EXPECT_EQ(run(contend), "aabbccdd"); }

Task<void> wait_event(AsyncEvent& event, int& count) {
  co_await event.wait();
  ++count;
}

Task<void> event_wakes_all() {
  AsyncEvent event;
  int count = 0;
  std::vector<Task<void>> tasks;
  for (int i = 0; i < 3; ++i) tasks.push_back(wait_event(event, count));
  EXPECT_FALSE(event.is_set());
  EXPECT_EQ(count, 0);
  event.set();
  for (auto& task : tasks) co_await task;
  co_await event.wait();
  EXPECT_EQ(count, 3);
}

TEST(AsyncEvent, WakesAllAndStaysSet) { run(event_wakes_all); }

struct Box {
  Mutex mutex;
  ConditionQueue changed;
  int items = 0;
  int taken = 0;
};

Task<void> take_one(Box& box) {
  while (true) {
    UniqueMutexLock lock(box.mutex);
    if (box.items > 0) {
      --box.items;
      ++box.taken;
      co_return;
    }
    co_await box.changed.wait(lock);
    MutexLock free_again(box.mutex);  // hangs if wait() came back with the mutex
  }
}

Task<void> condition() {
  Box box;
  std::vector<Task<void>> tasks;
  for (int i = 0; i < 3; ++i) tasks.push_back(take_one(box));
  {
    MutexLock lock(box.mutex);
    box.items = 1;
    box.changed.notify_one();
  }
  co_await tasks[0];
  EXPECT_EQ(box.taken, 1);
  {
    MutexLock lock(box.mutex);
    EXPECT_FALSE(box.changed.empty());
    box.items = 2;
    box.changed.notify_all();
  }
  co_await tasks[1];
  co_await tasks[2];
  EXPECT_EQ(box.taken, 3);
}

TEST(ConditionQueue, WaitersLookAgain) { run(condition); }

Task<void> with_permit(AsyncSemaphore& semaphore, int& inside, int& most) {
  co_await semaphore.acquire();
  most = std::max(most, ++inside);
  co_await turn_of_the_others();
  --inside;
  semaphore.release();
}

Task<int> semaphore_bound() {
  AsyncSemaphore semaphore(3);
  int inside = 0;
  int most = 0;
  std::vector<Task<void>> tasks;
  for (int i = 0; i < 20; ++i) tasks.push_back(with_permit(semaphore, inside, most));
  for (auto& task : tasks) co_await task;
  co_return most;
}

TEST(AsyncSemaphore, BoundsTheNumberInside) { EXPECT_EQ(run(semaphore_bound), 3); }

using Mode = RangeLock::Mode;

Task<void> hold_range(RangeLock& ranges, std::uint64_t offset, std::uint64_t length, Mode mode,
                      char name, std::string& log, AsyncEvent& leave) {
  RangeLock::Hold hold(ranges, offset, length, mode);
  co_await hold.acquire();
  log += name;
  co_await leave.wait();
}

Task<void> range_order() {
  RangeLock ranges;
  std::string log;
  AsyncEvent leave[6];
  std::vector<Task<void>> tasks;
  const auto claim = [&](std::uint64_t offset, std::uint64_t length, Mode mode) {
    const std::size_t i = tasks.size();
    tasks.push_back(
        hold_range(ranges, offset, length, mode, static_cast<char>('a' + i), log, leave[i]));
  };
  claim(0, 100, Mode::kShared);      // a
  claim(50, 100, Mode::kShared);     // b: shares with a
  claim(100, 10, Mode::kExclusive);  // c: waits for b only
  claim(0, 200, Mode::kShared);      // d: waits for c, which came first
  claim(300, 1, Mode::kExclusive);   // e: elsewhere
  claim(150, 0, Mode::kExclusive);   // f: empty, conflicts with nobody
  EXPECT_EQ(log, "abef");
  leave[0].set();
  co_await tasks[0];
  EXPECT_EQ(log, "abef");
  leave[1].set();
  co_await tasks[1];
  co_await turn_of_the_others();
  EXPECT_EQ(log, "abefc");
  leave[2].set();
  co_await tasks[2];
  co_await turn_of_the_others();
  EXPECT_EQ(log, "abefcd");
  for (int i = 3; i < 6; ++i) leave[i].set();
  for (std::size_t i = 3; i < 6; ++i) co_await tasks[i];
}

TEST(RangeLock, ConflictsWaitInOrderOfArrival) { run(range_order); }

Task<void> close_gate(Gate& gate, bool& closed) {
  co_await gate.close();
  closed = true;
}

Task<void> gate_life() {
  Gate gate;
  bool closed = false;
  std::vector<Task<void>> closers;
  {
    Gate::Ticket ticket(gate);
    EXPECT_TRUE(static_cast<bool>(ticket));
    EXPECT_EQ(gate.inside(), 1U);
    closers.push_back(close_gate(gate, closed));
    closers.push_back(gate.close());
    Gate::Ticket refused(gate);
    EXPECT_FALSE(static_cast<bool>(refused));
    co_await turn_of_the_others();
    EXPECT_FALSE(closed);
  }
  for (auto& closer : closers) co_await closer;
  EXPECT_TRUE(closed);
  gate.reopen();
  Gate::Ticket again(gate);
  EXPECT_TRUE(static_cast<bool>(again));
}

TEST(Gate, ClosesWhenTheLastHasLeft) { run(gate_life); }

TEST(GateDeathTest, AbortsWhenDestroyedWithWorkInside) {
  EXPECT_DEATH(
      {
        Gate gate;
        gate.enter();
      },
      "Gate was destroyed with work inside");
}

Task<void> spawn_more(TaskScope& scope, int depth, int& ran) {
  co_await turn_of_the_others();
  ++ran;
  if (depth > 0) {
    scope.spawn(spawn_more(scope, depth - 1, ran));
    scope.spawn(spawn_more(scope, depth - 1, ran));
  }
}

Task<void> finishes_at_once() { co_return; }

Task<int> scope_joins() {
  TaskScope scope;
  int ran = 0;
  co_await scope.join();  // nothing to wait for
  scope.spawn(finishes_at_once());
  EXPECT_EQ(scope.running(), 0U);
  scope.spawn(spawn_more(scope, 4, ran));
  co_await scope.join();
  EXPECT_EQ(scope.running(), 0U);
  co_return ran;
}

TEST(TaskScope, JoinWaitsForTasksSpawnedMeanwhile) { EXPECT_EQ(run(scope_joins), 31); }

}  // namespace
}  // namespace platter
