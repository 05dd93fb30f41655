// A request on the fast path allocates nothing once its queue has warmed up. Not built for
// sanitizers.
#include <gtest/gtest.h>

#include <cstdlib>
#include <new>

#include "unit/virtio/blk_fixture.h"

namespace {
thread_local bool counting = false;
thread_local unsigned long allocations = 0;
}  // namespace

void* operator new(std::size_t size) {
  if (counting) ++allocations;
  void* p = std::malloc(size == 0 ? 1 : size);
  if (!p) std::abort();
  return p;
}
void operator delete(void* p) noexcept { std::free(p); }
void operator delete(void* p, std::size_t) noexcept { std::free(p); }

namespace platter::virtio {
namespace {

Task<void> set_counting(bool on) {
  counting = on;
  co_return;
}
Task<unsigned long> count_of_thread() { co_return allocations; }

struct AllocationTest : BlkFixture {};

TEST_F(AllocationTest, NoneForARead) {
  bring_up(64);
  Executor& executor = threads[0]->executor();
  const std::uint64_t header = driver->put_header(kBlkIn, 0);
  const std::uint64_t in = guest->allocate(16 * 1024);
  const auto rounds = [&](int count) {
    for (int i = 0; i < count; ++i) {
      for (std::uint32_t k = 0; k < 16; ++k) {
        driver->ring().add({{header, 16, false}, {in + k * 1024, 513, true}});
      }
      driver->publish();
      for (int k = 0; k < 16; ++k) driver->wait();
    }
  };
  rounds(50);
  auto on = [] { return set_counting(true); };
  auto off = [] { return set_counting(false); };
  auto count = [] { return count_of_thread(); };
  run_blocking(executor, on);
  const unsigned long before = run_blocking(executor, count);
  rounds(100);
  const unsigned long after = run_blocking(executor, count);
  run_blocking(executor, off);
  // A few for asking; 1600 requests.
  EXPECT_LT(after - before, 50u);
}

}  // namespace
}  // namespace platter::virtio
