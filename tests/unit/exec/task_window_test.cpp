// Tasks that run side by side in a bounded window.
#include "block/exec/task_window.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "block/exec/timer.h"

namespace platter {
namespace {

using namespace std::chrono_literals;

struct Seen {
  unsigned running = 0;
  unsigned most = 0;
  std::string ended;
};

// Lets others run so many times; fails when it is called by a capital letter.
Task<Result<void>> part(char name, unsigned turns, Seen& seen) {
  seen.most = std::max(seen.most, ++seen.running);
  for (; turns != 0; --turns) co_await sleep_for(0ns);
  --seen.running;
  seen.ended += name;
  if (name < 'a') co_return fail(EIO, "{}", name);
  co_return {};
}

Task<Result<void>> all_parts(std::string names, std::size_t at_once, unsigned turns, Seen& seen) {
  TaskWindow window(at_once);
  EXPECT_TRUE(window.unused());
  for (std::size_t i = 0; i < names.size() && window.good(); ++i) {
    if (window.full()) co_await window.oldest();
    // The later, the sooner it ends.
    window.add(part(names[i], turns == 0 ? 0 : turns - static_cast<unsigned>(i), seen));
    EXPECT_FALSE(window.unused());
  }
  while (window.busy()) co_await window.oldest();
  EXPECT_FALSE(window.full());
  co_return window.take();
}

Result<void> run_parts(const std::string& names, std::size_t at_once, unsigned turns, Seen& seen) {
  auto executor = Executor::create();
  EXPECT_TRUE(executor);
  return (*executor)->block_on([&] { return all_parts(names, at_once, turns, seen); });
}

TEST(TaskWindow, SoManyRunAtATimeAndNoMore) {
  Seen seen;
  EXPECT_TRUE(run_parts("abcdefgh", 3, 20, seen));
  EXPECT_EQ(seen.most, 3u);
  EXPECT_EQ(seen.ended.size(), 8u);
}

TEST(TaskWindow, TasksThatAreDoneAtOnceNeedNoTurn) {
  Seen seen;
  EXPECT_TRUE(run_parts("abcd", 2, 0, seen));
  EXPECT_EQ(seen.ended, "abcd");
  EXPECT_EQ(seen.most, 1u);
}

TEST(TaskWindow, TheFirstTaskThatFailsIsTheErrorAndAllAreAwaited) {
  Seen seen;
  const Result<void> result = run_parts("aBcDe", 5, 20, seen);
  ASSERT_FALSE(result);
  // D has failed before B.
  EXPECT_EQ(seen.ended, "eDcBa");
  EXPECT_EQ(result.error().message(), "B");
}

TEST(TaskWindow, NothingIsStartedAfterAnErrorIsKnown) {
  Seen seen;
  const Result<void> result = run_parts("Abcdefgh", 2, 20, seen);
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().message(), "A");
  // (The one that there was room for when A had ended.)
  EXPECT_EQ(seen.ended.size(), 3u);
}

TEST(TaskWindow, AnErrorThatIsNoTasksIsKeptUnlessThereIsOne) {
  TaskWindow window(1);
  window.note(Result<void>());
  EXPECT_TRUE(window.good());
  window.note(fail(EIO, "first"));
  window.note(fail(EIO, "second"));
  EXPECT_FALSE(window.good());
  EXPECT_EQ(window.take().error().message(), "first");
}

}  // namespace
}  // namespace platter
