#include "block/exec/slab.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <thread>
#include <vector>

#include "block/exec/buffer.h"

namespace platter {
namespace {

std::uintptr_t address(const void* p) { return reinterpret_cast<std::uintptr_t>(p); }

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kSanitized = true;  // what sanitizers remember of each page stays in memory
#else
constexpr bool kSanitized = false;
#endif

// Pages of this process that are in memory.
long resident_pages() {
  std::ifstream in("/proc/self/statm");
  long size = 0;
  long resident = 0;
  in >> size >> resident;
  return resident;
}

TEST(Slab, BlocksAreAlignedApartAndComeBackFromAnyThread) {
  for (unsigned size_class = 0; size_class < detail::kSlabClasses; ++size_class) {
    const std::size_t bytes = detail::kSlabPage << size_class;
    std::vector<std::byte*> blocks(2000 >> size_class);
    const long before = resident_pages();
    for (std::size_t i = 0; i < blocks.size(); ++i) {
      blocks[i] = detail::allocate_block(size_class);
      EXPECT_EQ(address(blocks[i]) % detail::kSlabPage, 0U);
      std::memset(blocks[i], static_cast<int>(i % 251), bytes);
    }
    for (std::size_t i = 0; i < blocks.size(); ++i) {
      const auto value = static_cast<std::byte>(i % 251);
      EXPECT_EQ(std::count(blocks[i], blocks[i] + bytes, value), static_cast<long>(bytes));
    }
    const long full = resident_pages();
    if (!kSanitized) {
      EXPECT_GE(full - before, 1900);
    }
    std::thread([&] {
      for (std::byte* block : blocks) detail::free_block(block, size_class);
    }).join();
    // All slabs but one have gone back to the kernel.
    if (!kSanitized) {
      EXPECT_LE(resident_pages() - before, 400);
    }
  }
}

TEST(Slab, AFreedBlockIsGivenAgain) {
  std::byte* const first = detail::allocate_block(0);
  std::byte* const second = detail::allocate_block(0);
  EXPECT_NE(first, second);
  detail::free_block(first, 0);
  EXPECT_EQ(detail::allocate_block(0), first);
  detail::free_block(first, 0);
  detail::free_block(second, 0);
}

// Sanitizers watch each buffer on the heap instead.
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
TEST(Slab, SmallBuffersWasteNoPages) {
  std::vector<Buffer> buffers;
  for (int i = 0; i < 1000; ++i) buffers.emplace_back(std::size_t{4096});
  std::vector<std::uintptr_t> places;
  for (const Buffer& buffer : buffers) places.push_back(address(buffer.data()));
  std::ranges::sort(places);
  int neighbours = 0;
  for (std::size_t i = 1; i < places.size(); ++i) neighbours += places[i] - places[i - 1] == 4096;
  EXPECT_GE(neighbours, 990);
}
#endif

}  // namespace
}  // namespace platter
