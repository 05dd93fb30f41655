#include "block/exec/workers.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <set>

#include "block/exec/executor.h"

namespace platter {
namespace {

Task<int> squares(WorkerPool& pool, int n, std::set<std::thread::id>& where) {
  int total = 0;
  for (int i = 1; i <= n; ++i) {
    std::thread::id id;
    auto work = [&] {
      id = std::this_thread::get_id();
      return i * i;
    };
    total += co_await run_on(pool, work);
    where.insert(id);
  }
  co_return total;
}

TEST(WorkerPool, ResultsComeBackToTheExecutor) {
  WorkerPool pool(2);
  auto executor = Executor::create();
  std::set<std::thread::id> where;
  EXPECT_EQ((*executor)->block_on([&] { return squares(pool, 100, where); }), 338350);
  EXPECT_EQ(where.count(std::this_thread::get_id()), 0U);
  EXPECT_LE(where.size(), 2U);
}

Task<int> several(WorkerPool& pool, std::set<std::thread::id>* where) {
  std::vector<Task<int>> tasks;
  for (int i = 0; i < 8; ++i) tasks.push_back(squares(pool, 20, where[i]));
  int total = 0;
  for (auto& task : tasks) total += co_await task;
  co_return total;
}

TEST(WorkerPool, ManyCoroutinesAtOnceStayWithinTheLimit) {
  WorkerPool pool(3);
  auto executor = Executor::create();
  std::set<std::thread::id> where[8];
  EXPECT_EQ((*executor)->block_on([&] { return several(pool, where); }), 8 * 2870);
  std::set<std::thread::id> all;
  for (const auto& some : where) all.insert(some.begin(), some.end());
  EXPECT_LE(all.size(), 3U);
}

// Prints what came of work once its process may have no more threads.
void work_without_threads(bool has_one) {
  auto executor = Executor::create();
  WorkerPool pool(8);
  std::set<std::thread::id> before;
  std::set<std::thread::id> after;
  if (has_one) (*executor)->block_on([&] { return squares(pool, 1, before); });
  const rlimit none{1, 1};
  const bool limited = ::setrlimit(RLIMIT_NPROC, &none) == 0;
  // Root has no such limit.
  constexpr uid_t kNobody = 65534;
  if (!limited || (::getuid() == 0 && ::setresuid(kNobody, kNobody, kNobody) != 0)) std::_Exit(3);
  const int sum = (*executor)->block_on([&] { return squares(pool, 100, after); });
  const bool here = after.contains(std::this_thread::get_id());
  std::fprintf(stderr, "%d by %s", sum, here ? "the caller" : "a worker");
  std::_Exit(0);
}

TEST(WorkerPoolDeathTest, WorkIsDoneWhereNoThreadCanBeHad) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(work_without_threads(false), ::testing::ExitedWithCode(0), "^338350 by the caller");
  EXPECT_EXIT(work_without_threads(true), ::testing::ExitedWithCode(0), "^338350 by a worker");
}

TEST(WorkerPool, FinishesWhatWasSubmitted) {
  std::atomic<int> ran{0};
  {
    WorkerPool pool(2);
    for (int i = 0; i < 100; ++i) pool.submit([&] { ++ran; });
  }
  EXPECT_EQ(ran, 100);
}

}  // namespace
}  // namespace platter
