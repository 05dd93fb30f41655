// The loop: readiness, the ring, timers, other threads' posts, draining.
#include "block/exec/executor.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <thread>
#include <vector>

#include "block/base/unique_fd.h"
#include "block/exec/executor_thread.h"
#include "block/exec/sync.h"
#include "block/exec/timer.h"

namespace platter {
namespace {

using namespace std::chrono_literals;

std::unique_ptr<Executor> make_executor(Executor::Config config = {}) {
  auto executor = Executor::create(config);
  EXPECT_TRUE(executor);
  return std::move(*executor);
}

Task<int> nop() {
  IoOp op;  // IORING_OP_NOP
  const int n = co_await op;
  co_return n;
}

Task<int> many_nops(int count) {
  std::vector<Task<int>> tasks;
  for (int i = 0; i < count; ++i) tasks.push_back(nop());
  int done = 0;
  for (Task<int>& task : tasks) done += co_await task == 0;
  co_return done;
}

// Writes a byte to a pipe through the ring; before, notes how many lie in it.
Task<void> look_and_write(int in, int out, std::vector<int>& seen) {
  IoOp first;  // all of these complete together
  co_await first;
  int waiting = 0;
  ::ioctl(in, FIONREAD, &waiting);
  seen.push_back(waiting);
  IoOp op = io::write(out, "x", 1, 0);
  co_await op;
}

Task<void> look_and_write_times(int in, int out, int count, std::vector<int>& seen) {
  std::vector<Task<void>> tasks;
  for (int i = 0; i < count; ++i) tasks.push_back(look_and_write(in, out, seen));
  for (Task<void>& task : tasks) co_await task;
}

TEST(Executor, ManyReadyCoroutinesDoNotHoldBackTheFirstOnesRequests) {
  int ends[2];
  ASSERT_EQ(::pipe2(ends, O_CLOEXEC), 0);
  const UniqueFd in(ends[0]);
  const UniqueFd out(ends[1]);
  std::vector<int> seen;
  auto executor = make_executor();
  executor->block_on([&] { return look_and_write_times(in.get(), out.get(), 16, seen); });
  // All sixteen run in one round of the loop.
  ASSERT_EQ(seen.size(), 16u);
  EXPECT_EQ(seen.front(), 0);
  EXPECT_GE(seen.back(), 8);
}

TEST(Executor, IndexesAreReusedAndBounded) {
  std::vector<std::unique_ptr<Executor>> all;
  std::uint64_t seen = 0;
  for (unsigned i = 0; i < Executor::kMaxExecutors; ++i) {
    all.push_back(make_executor());
    seen |= std::uint64_t{1} << all.back()->index();
  }
  EXPECT_EQ(seen, ~std::uint64_t{0});
  const auto refused = Executor::create();
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code(), EAGAIN);
  const unsigned freed = all[7]->index();
  all[7].reset();
  EXPECT_EQ(make_executor()->index(), freed);
}

TEST(Executor, MoreOperationsInFlightThanTheRingHolds) {
  auto executor = make_executor({.ring_entries = 4});
  EXPECT_EQ(executor->block_on([] { return many_nops(1000); }), 1000);
  EXPECT_EQ(executor->in_flight(), 0U);
}

struct Pipe {
  Pipe() { EXPECT_EQ(::pipe2(ends, O_CLOEXEC), 0); }
  ~Pipe() {
    ::close(ends[0]);
    ::close(ends[1]);
  }
  int ends[2];
};

Task<int> poll_for(int fd) {
  IoOp op = io::poll(fd, POLLIN);
  const int events = co_await op;
  co_return events;
}

Task<int> overflow_the_completion_queue(int count) {
  // All wait for one byte, so that all complete at once, far beyond the completion queue's size.
  Pipe pipe;
  std::vector<Task<int>> tasks;
  for (int i = 0; i < count; ++i) tasks.push_back(poll_for(pipe.ends[0]));
  auto settled = sleep_for(0ns);  // they are all submitted by then
  co_await settled;
  EXPECT_EQ(::write(pipe.ends[1], "x", 1), 1);
  int ready = 0;
  for (Task<int>& task : tasks) ready += (co_await task & POLLIN) != 0;
  co_return ready;
}

TEST(Executor, MoreCompletionsAtOnceThanTheQueueHolds) {
  auto executor = make_executor({.ring_entries = 4});
  EXPECT_EQ(executor->block_on([] { return overflow_the_completion_queue(300); }), 300);
}

Task<int> read_back(int fd) {
  char out[] = "platter";
  char in[8] = {};
  IoOp write = io::write(fd, out, sizeof out, 4096);
  EXPECT_EQ(co_await write, 8);
  IoOp sync = io::fsync(fd, true);
  EXPECT_EQ(co_await sync, 0);
  iovec iov[2] = {{in, 3}, {in + 3, 5}};
  IoOp readv = io::readv(fd, iov, 2, 4096);
  EXPECT_EQ(co_await readv, 8);
  EXPECT_STREQ(in, "platter");
  IoOp grow = io::fallocate(fd, 0, 0, 65536);
  EXPECT_EQ(co_await grow, 0);
  EXPECT_EQ(::lseek(fd, 0, SEEK_END), 65536);
  IoOp bad = io::read(-1, in, 1, 0);
  co_return co_await bad;
}

TEST(Executor, FileOperations) {
  const int fd = memfd_create("executor_test", MFD_CLOEXEC);
  ASSERT_GE(fd, 0);
  EXPECT_EQ(make_executor()->block_on([fd] { return read_back(fd); }), -EBADF);
  ::close(fd);
}

Task<void> note_after(std::chrono::milliseconds time, int id, std::vector<int>& order) {
  co_await sleep_for(time);
  order.push_back(id);
}

Task<std::vector<int>> sleeps() {
  std::vector<int> order;
  std::vector<Task<void>> tasks;
  tasks.push_back(note_after(20ms, 3, order));
  tasks.push_back(note_after(10ms, 2, order));
  tasks.push_back(note_after(-1ms, 1, order));
  for (Task<void>& task : tasks) co_await task;
  co_return order;
}

TEST(Timer, FiresInOrderOfTimeAndNotBefore) {
  auto executor = make_executor();
  const auto start = std::chrono::steady_clock::now();
  EXPECT_EQ(executor->block_on([] { return sleeps(); }), (std::vector<int>{1, 2, 3}));
  EXPECT_GE(std::chrono::steady_clock::now() - start, 20ms);
}

Task<bool> cancelled_timer() {
  Timer timer;
  auto waiting = timer.wait(1h);
  co_await timer.cancel();
  const bool elapsed = co_await waiting;
  EXPECT_FALSE(elapsed);
  co_await timer.cancel();  // nothing to cancel
  co_return co_await timer.wait(1ms);
}

TEST(Timer, CanBeCancelledAndUsedAgain) {
  EXPECT_TRUE(make_executor()->block_on([] { return cancelled_timer(); }));
}

TEST(Executor, BusyPollingSeesCompletionsAndOtherThreads) {
  auto executor = make_executor();
  executor->set_busy_poll(2ms);
  EXPECT_EQ(executor->block_on([] { return many_nops(50); }), 50);
  EXPECT_EQ(executor->block_on([] { return sleeps(); }), (std::vector<int>{1, 2, 3}));
}

struct Detached {
  struct promise_type {
    Detached get_return_object() noexcept { return {}; }
    std::suspend_never initial_suspend() noexcept { return {}; }
    std::suspend_never final_suspend() noexcept { return {}; }
    void return_void() noexcept {}
    void unhandled_exception() noexcept { std::terminate(); }
  };
};
Detached nops_in_the_background(int count, int& done) { done = co_await many_nops(count); }

Task<void> starts_background(int& done) {
  nops_in_the_background(100, done);
  co_return;
}

TEST(Executor, DrainRunsWhatIsLeft) {
  auto executor = make_executor({.ring_entries = 8});
  int done = 0;
  executor->block_on([&] { return starts_background(done); });
  executor->drain();
  EXPECT_EQ(done, 100);
  executor->drain();  // nothing to do: must not sleep
}

TEST(Executor, StopBeforeRunIsNotLost) {
  auto executor = make_executor();
  executor->stop();
  executor->run();
  // A stop that came too late for run() does not disturb block_on().
  executor->stop();
  EXPECT_EQ(executor->block_on([] { return many_nops(3); }), 3);
}

TEST(ExecutorDeathTest, DestroyingOneWithOperationsInFlightAborts) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(
      {
        auto executor = make_executor();
        int done = 0;
        executor->block_on([&] { return starts_background(done); });
        executor.reset();
      },
      "operations in flight");
}

// --- several threads -------------------------------------------------------------------------

Task<unsigned> where_am_i() {
  co_await sleep_for(0ns);
  co_return Executor::current().index();
}

Task<void> visits(Executor& other, int rounds) {
  const Executor* home = &Executor::current();
  for (int i = 0; i < rounds; ++i) {
    auto work = [] { return where_am_i(); };
    const unsigned index = co_await run_on_executor(other, work);
    EXPECT_EQ(index, other.index());
    EXPECT_EQ(&Executor::current(), home);
  }
}

TEST(ExecutorThread, RunsCoroutinesForOtherExecutors) {
  auto thread = ExecutorThread::start();
  ASSERT_TRUE(thread);
  auto executor = make_executor();
  executor->block_on([&] { return visits((*thread)->executor(), 200); });
  executor->block_on([&] { return visits(*executor, 3); });
}

Task<std::unique_ptr<int>> boxed(int value) {
  co_await sleep_for(0ns);
  co_return std::make_unique<int>(value);
}

TEST(ExecutorThread, ServesPlainThreadsAtOnce) {
  auto thread = ExecutorThread::start();
  ASSERT_TRUE(thread);
  Executor& target = (*thread)->executor();
  std::vector<std::thread> clients;
  std::atomic<int> sum{0};
  for (int t = 0; t < 4; ++t) {
    clients.emplace_back([&, t] {
      for (int i = 0; i < 100; ++i) sum += *run_blocking(target, [t] { return boxed(t); });
    });
  }
  for (std::thread& client : clients) client.join();
  EXPECT_EQ(sum, 600);
}

TEST(ExecutorThread, DestructionFinishesWhatWasPosted) {
  int done = 0;
  {
    auto thread = ExecutorThread::start();
    ASSERT_TRUE(thread);
    run_blocking((*thread)->executor(), [&] { return starts_background(done); });
  }
  EXPECT_EQ(done, 100);
}

// The executor goes away as soon as the last post has been served: a poster that touched it
// afterwards would be seen by the sanitizers.
TEST(ExecutorThread, APosterMayOutliveTheExecutor) {
  auto thread = ExecutorThread::start();
  ASSERT_TRUE(thread);
  for (int i = 0; i < 200; ++i) {
    auto executor = make_executor();
    executor->block_on([&] { return visits((*thread)->executor(), 1); });
  }
}

Task<void> ping_pong(int rounds, AsyncSemaphore& mine, AsyncSemaphore& theirs) {
  for (int i = 0; i < rounds; ++i) {
    co_await mine.acquire();
    theirs.release();
  }
}

TEST(ExecutorThread, WakeUpsAreNotLost) {
  auto a = ExecutorThread::start();
  auto executor = make_executor();
  ASSERT_TRUE(a);
  AsyncSemaphore ping(1);
  AsyncSemaphore pong(0);
  Executor& there = (*a)->executor();
  std::thread starter([&] { run_blocking(there, [&] { return ping_pong(2000, pong, ping); }); });
  executor->block_on([&] { return ping_pong(2000, ping, pong); });
  starter.join();
}

}  // namespace
}  // namespace platter
