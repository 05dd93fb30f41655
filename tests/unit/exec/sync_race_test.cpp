// The same objects shared by several executors; the thread sanitizer watches.
#include <gtest/gtest.h>

#include <thread>
#include <vector>

#include "block/exec/executor_thread.h"
#include "block/exec/sync.h"
#include "block/exec/timer.h"

namespace platter {
namespace {

using namespace std::chrono_literals;

constexpr int kExecutors = 3;
constexpr int kRounds = 300;

// Runs `start(i)` on executor i of several at once; each start's task is waited for.
template <class Start>
void on_each_executor(Start start) {
  std::vector<std::unique_ptr<ExecutorThread>> threads;
  for (int i = 0; i < kExecutors; ++i) {
    auto thread = ExecutorThread::start({.ring_entries = 8});
    ASSERT_TRUE(thread);
    threads.push_back(std::move(*thread));
  }
  std::vector<std::thread> callers;
  for (int i = 0; i < kExecutors; ++i) {
    callers.emplace_back([&, i] {
      run_blocking(threads[static_cast<std::size_t>(i)]->executor(), [&] { return start(i); });
    });
  }
  for (std::thread& caller : callers) caller.join();
}

Task<void> all(std::vector<Task<void>>& tasks) {
  for (auto& task : tasks) co_await task;
}

// Starts four coroutines of `make()` and waits for them.
template <class Make>
Task<void> four(Make make) {
  std::vector<Task<void>> tasks;
  for (int i = 0; i < 4; ++i) tasks.push_back(make());
  co_await all(tasks);
}

Task<void> add_locked(AsyncMutex& mutex, long& total) {
  for (int i = 0; i < kRounds; ++i) {
    auto guard = co_await mutex.lock();
    const long before = total;
    if (i % 16 == 0) co_await sleep_for(0ns);
    total = before + 1;
  }
}

TEST(SyncRace, AsyncMutexExcludesAcrossExecutors) {
  AsyncMutex mutex;
  long total = 0;
  on_each_executor([&](int) { return four([&] { return add_locked(mutex, total); }); });
  EXPECT_EQ(total, long{kExecutors} * 4 * kRounds);
}

Task<void> shares_range(RangeLock& ranges, std::vector<long>& cells, unsigned seed) {
  for (int i = 0; i < kRounds; ++i) {
    seed = seed * 1664525U + 1013904223U;
    const std::uint64_t from = (seed >> 8) % 12;
    const bool write = (seed >> 20) % 3 == 0;
    RangeLock::Hold hold(ranges, from, 4,
                         write ? RangeLock::Mode::kExclusive : RangeLock::Mode::kShared);
    co_await hold.acquire();
    if (write) {
      for (std::uint64_t c = from; c < from + 4; ++c) ++cells[c];
    } else {
      long sum = 0;
      for (std::uint64_t c = from; c < from + 4; ++c) sum += cells[c];
      EXPECT_GE(sum, 0);
    }
    if (i % 16 == 0) co_await sleep_for(0ns);
  }
}

TEST(SyncRace, RangeLockKeepsReadersAndWritersApart) {
  RangeLock ranges;
  std::vector<long> cells(16);
  on_each_executor([&](int i) {
    return four([&, i] { return shares_range(ranges, cells, static_cast<unsigned>(i) * 77 + 1); });
  });
}

Task<void> permits(AsyncSemaphore& semaphore, std::atomic<int>& inside) {
  for (int i = 0; i < kRounds; ++i) {
    co_await semaphore.acquire();
    EXPECT_LE(inside.fetch_add(1) + 1, 2);
    if (i % 16 == 0) co_await sleep_for(0ns);
    inside.fetch_sub(1);
    semaphore.release();
  }
}

TEST(SyncRace, AsyncSemaphoreBoundsAcrossExecutors) {
  AsyncSemaphore semaphore(2);
  std::atomic<int> inside{0};
  on_each_executor([&](int) { return four([&] { return permits(semaphore, inside); }); });
}

Task<void> set_event(AsyncEvent& event) {
  event.set();
  co_return;
}

// The event lives in the waiter's frame and dies as soon as the wait is over.
Task<void> short_lived_events(Executor& setter) {
  for (int i = 0; i < kRounds; ++i) {
    AsyncEvent event;
    auto set = [&] { return set_event(event); };
    TaskScope scope;
    auto remote = [](Executor& target, auto& work) -> Task<void> {
      co_await run_on_executor(target, work);
    };
    scope.spawn(remote(setter, set));
    co_await event.wait();
    co_await scope.join();
  }
}

TEST(SyncRace, AnEventMayDieAfterItsWait) {
  auto setter = ExecutorThread::start();
  ASSERT_TRUE(setter);
  auto executor = Executor::create();
  (*executor)->block_on([&] { return short_lived_events((*setter)->executor()); });
}

TEST(SyncRace, AnEventOfAThreadMayDieAfterItsWait) {
  auto executor = Executor::create();
  for (int i = 0; i < kRounds; ++i) {
    auto event = std::make_unique<AsyncEvent>();
    std::thread setter([raw = event.get()] { raw->set(); });
    (*executor)->block_on([&]() -> Task<void> {
      co_await event->wait();
      event.reset();
    });
    setter.join();
  }
}

struct Queue {
  Mutex mutex;
  ConditionQueue filled;
  int items = 0;
  long taken = 0;
};

Task<void> produce(Queue& queue, int count) {
  for (int i = 0; i < count; ++i) {
    {
      MutexLock lock(queue.mutex);
      ++queue.items;
      queue.filled.notify_one();
    }
    // Lets the consumers catch up and go to sleep.
    if (i % 4 == 0) co_await sleep_for(0ns);
  }
}

Task<void> consume(Queue& queue) {
  for (int i = 0; i < kRounds; ++i) {
    while (true) {
      UniqueMutexLock lock(queue.mutex);
      if (queue.items > 0) {
        --queue.items;
        ++queue.taken;
        break;
      }
      co_await queue.filled.wait(lock);
    }
  }
}

TEST(SyncRace, ConditionQueueLosesNoWakeUp) {
  Queue queue;
  constexpr int kItems = (kExecutors - 1) * 4 * kRounds;
  on_each_executor([&](int i) {
    return i == 0 ? produce(queue, kItems) : four([&] { return consume(queue); });
  });
  EXPECT_EQ(queue.taken, kItems);
}

Task<void> use_gate(Gate& gate, std::atomic<bool>& closed) {
  while (true) {
    Gate::Ticket ticket(gate);
    if (!ticket) co_return;
    EXPECT_FALSE(closed.load());
    co_await sleep_for(0ns);
  }
}

Task<void> close_soon(Gate& gate, std::atomic<bool>& closed) {
  co_await sleep_for(2ms);
  co_await gate.close();
  closed = true;
  EXPECT_EQ(gate.inside(), 0U);
}

TEST(SyncRace, AClosedGateIsEmpty) {
  Gate gate;
  std::atomic<bool> closed{false};
  on_each_executor([&](int i) {
    return i == 0 ? close_soon(gate, closed) : four([&] { return use_gate(gate, closed); });
  });
}

}  // namespace
}  // namespace platter
