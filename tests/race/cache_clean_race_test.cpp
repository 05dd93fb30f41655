// Tables are given up, on a thread of its own, while several queues use them and while all of them
// are read anew.
#include <chrono>

#include "block/exec/chores.h"
#include "race/lanes.h"

namespace platter::qcow2 {
namespace {

using namespace testing;  // NOLINT: helpers of these tests

// Short, so that the clock can be advanced by it a hundred million times.
constexpr std::chrono::seconds kCleanInterval(100);

Task<Result<void>> clean_on(BlockNode& node) {
  auto& driver = static_cast<Qcow2Driver&>(node.driver());
  for (int i = 0; i < 150; ++i) {
    Chores::process().advance(kCleanInterval);
    if (i % 15 == 0) {
      Options changes = options(i % 2 == 0 ? "cache-clean-interval=99" : "cache-clean-interval=50");
      auto plan = driver.plan_change(changes);
      PLATTER_CO_TRY(plan);
      auto changing = (*plan)();
      auto changed = co_await changing;
      PLATTER_CO_TRY(changed);
    }
    auto flushed = co_await node.flush();
    PLATTER_CO_TRY(flushed);
  }
  co_return {};
}

TEST(CacheClean, BesideFourQueues) {
  MemoryImage image("clean-race", kSize, "cluster_size=512");
  play(image, "discard=unmap,cache-clean-interval=100", {.beside = clean_on});
}

// The thread of chores sheds again and again while the queues run, however long they take.
TEST(CacheClean, AtAnyMomentOfFourQueues) {
  MemoryImage image("clean-race", kSize, "cluster_size=4k");
  std::atomic<bool> over{false};
  std::thread time([&over] {
    while (!over) Chores::process().advance(kCleanInterval);
  });
  play(image, "discard=unmap,cache-clean-interval=100");
  over = true;
  time.join();
}

}  // namespace
}  // namespace platter::qcow2
