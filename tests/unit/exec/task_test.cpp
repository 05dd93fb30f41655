// Tripwires for what g++ 12 makes of our coroutines, and the behaviour that Task promises.
#include "block/exec/task.h"

#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "block/exec/executor.h"

namespace platter {
namespace {

Task<int> immediate(int value) { co_return value; }

Task<long> sum_of_immediate(int count) {
  long total = 0;
  for (int i = 0; i < count; ++i) total += co_await immediate(i);
  co_return total;
}

TEST(Task, AMillionAwaitsUseConstantStack) {
  auto executor = Executor::create();
  ASSERT_TRUE(executor);
  EXPECT_EQ((*executor)->block_on([] { return sum_of_immediate(1'000'000); }), 499999500000L);
}

struct Yield {
  bool await_ready() noexcept { return false; }
  void await_suspend(std::coroutine_handle<> h) noexcept { Executor::current().post(h); }
  void await_resume() noexcept {}
};

Task<int> yielding(int value) {
  co_await Yield{};
  co_return value;
}

Task<long> sum_of_yielding(int count) {
  long total = 0;
  for (int i = 0; i < count; ++i) total += co_await yielding(1);
  co_return total;
}

TEST(Task, AMillionSuspensionsUseConstantStack) {
  auto executor = Executor::create();
  EXPECT_EQ((*executor)->block_on([] { return sum_of_yielding(1'000'000); }), 1'000'000L);
}

struct CountedLife {
  explicit CountedLife(int& count) : alive(&count) { ++*alive; }
  CountedLife(CountedLife&& other) noexcept : alive(other.alive) { ++*alive; }
  CountedLife(const CountedLife& other) : alive(other.alive) { ++*alive; }
  CountedLife& operator=(const CountedLife&) = delete;
  ~CountedLife() { --*alive; }
  int* alive;
};

Task<int> consumes(CountedLife life) {
  co_await Yield{};
  co_return *life.alive;
}

Task<void> passes_arguments(int& count) {
  const int inside = co_await consumes(CountedLife(count));
  EXPECT_GE(inside, 1);
  co_return;
}

TEST(Task, ArgumentsAreDestroyedOnce) {
  auto executor = Executor::create();
  int count = 0;
  (*executor)->block_on([&] { return passes_arguments(count); });
  EXPECT_EQ(count, 0);
}

Task<Result<std::string>> failing() {
  co_await Yield{};
  co_return fail(EIO, "no luck with {}", 7);
}

Task<Result<std::size_t>> passes_errors_on() {
  auto text = co_await failing();
  PLATTER_CO_TRY(text);
  co_return text->size();
}

TEST(Task, ErrorsTravelAsValues) {
  auto executor = Executor::create();
  const Result<std::size_t> result = (*executor)->block_on([] { return passes_errors_on(); });
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().message(), "no luck with 7");
}

TEST(TaskDeathTest, DestroyingAnUnfinishedTaskAborts) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(
      {
        auto executor = Executor::create();
        (*executor)->block_on([]() -> Task<void> {
          {
            auto dropped = yielding(1);
          }
          co_return;
        });
      },
      "destroyed before it had finished");
}

}  // namespace
}  // namespace platter
