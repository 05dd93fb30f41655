#include "block/node/dirty_bitmap.h"

#include <random>
#include <thread>
#include <vector>

#include "unit/node/support.h"

namespace platter {
namespace {

constexpr std::uint64_t kMiB = 1 << 20;

std::vector<std::pair<std::uint64_t, std::uint64_t>> ranges(const DirtyBitmap& bitmap) {
  std::vector<std::pair<std::uint64_t, std::uint64_t>> all;
  for (auto r = bitmap.next(0); r.length != 0; r = bitmap.next(r.offset + r.length))
    all.emplace_back(r.offset, r.length);
  return all;
}

using Ranges = std::vector<std::pair<std::uint64_t, std::uint64_t>>;

TEST(DirtyBitmap, MarksEveryGranuleThatIsTouched) {
  DirtyBitmap bitmap(10 * kMiB, 16);
  bitmap.set(65535, 2);
  bitmap.set(kMiB, 1);
  EXPECT_EQ(ranges(bitmap), (Ranges{{0, 131072}, {kMiB, 65536}}));
  EXPECT_EQ(bitmap.count(), 3u);
  EXPECT_TRUE(bitmap.get(70000));
  EXPECT_FALSE(bitmap.get(131072));
}

TEST(DirtyBitmap, EndsWithTheDisk) {
  DirtyBitmap bitmap(kMiB + 512, 16);
  EXPECT_EQ(bitmap.bits(), 17u);
  bitmap.set(0, ~std::uint64_t{0});
  bitmap.set(kMiB + 512, 512);
  EXPECT_EQ(ranges(bitmap), (Ranges{{0, kMiB + 512}}));
  EXPECT_EQ(bitmap.next(kMiB + 100).offset, kMiB + 100);
  EXPECT_EQ(bitmap.count(), 17u);
  DirtyBitmap none(0, 16);
  none.set(0, 5);
  EXPECT_EQ(none.next(0).length, 0u);
}

TEST(DirtyBitmap, AgreesWithAModel) {
  std::mt19937 random(7);
  const std::uint64_t size = 40000 * 512 + 100;
  DirtyBitmap bitmap(size, 9);
  std::vector<bool> model(bitmap.bits());
  for (int i = 0; i < 300; ++i) {
    const std::uint64_t offset = random() % size;
    const std::uint64_t length = 1 + random() % (i % 10 == 0 ? 400000 : 3000);
    bitmap.set(offset, length);
    for (std::uint64_t at = offset / 512; at <= std::min(size - 1, offset + length - 1) / 512; ++at)
      model[at] = true;
  }
  for (std::uint64_t i = 0; i < model.size(); ++i) ASSERT_EQ(bitmap.get(i * 512), model[i]) << i;
  EXPECT_EQ(bitmap.count(), static_cast<std::uint64_t>(std::ranges::count(model, true)));
  std::uint64_t sum = 0;
  for (const auto& [offset, length] : ranges(bitmap)) sum += (length + 511) / 512;
  EXPECT_EQ(sum, bitmap.count());

  // Through bytes and back, in two parts.
  std::vector<std::byte> bytes(8192, std::byte{0xff});
  bitmap.store(0, std::span(bytes).first(1024));
  bitmap.store(1024, std::span(bytes).subspan(1024));
  for (std::size_t i = 0; i < bytes.size() * 8; ++i) {
    const bool bit = (static_cast<unsigned>(bytes[i / 8]) >> i % 8 & 1) != 0;
    ASSERT_EQ(bit, i < model.size() && model[i]) << i;
  }
  for (std::byte& b : std::span(bytes).subspan(bitmap.bytes())) b = std::byte{0xff};
  DirtyBitmap copy(size, 9);
  copy.load(0, std::span(bytes).first(1024));
  copy.load(1024, std::span(bytes).subspan(1024));
  EXPECT_EQ(ranges(copy), ranges(bitmap));
  EXPECT_EQ(ranges(*copy.clone()), ranges(bitmap));
}

TEST(DirtyBitmap, AllOnesTakeNoMemoryAndAreNotWrittenTo) {
  DirtyBitmap bitmap(100 * kMiB, 9);
  bitmap.load_ones(0, 4096);
  bitmap.set(0, kMiB);
  bitmap.load_ones(bitmap.bytes() - 100, 4096);  // beyond the end
  DirtyBitmap other(100 * kMiB, 9);
  other.load_ones(512, 512);
  other.set(0, 1);
  EXPECT_EQ(ranges(bitmap), (Ranges{{0, 16 * kMiB}, {100 * kMiB - 800 * 512, 800 * 512}}));
  EXPECT_EQ(ranges(other), (Ranges{{0, 512}, {2 * kMiB, 2 * kMiB}}));
  EXPECT_EQ(ranges(*bitmap.resized(3 * kMiB + 512)), (Ranges{{0, 3 * kMiB + 512}}));
  EXPECT_TRUE(bitmap.any(0, 512));
  EXPECT_FALSE(bitmap.any(4096, 8192));
}

TEST(DirtyBitmap, MergesOtherGranularities) {
  DirtyBitmap fine(10 * kMiB, 9);
  DirtyBitmap coarse(10 * kMiB, 16);
  fine.set(70000, 10);
  coarse.set(kMiB, 1);
  DirtyBitmap both(10 * kMiB, 12);
  both.merge(fine);
  both.merge(coarse);
  EXPECT_EQ(ranges(both), (Ranges{{69632, 4096}, {kMiB, 65536}}));
  coarse.merge(fine);
  EXPECT_EQ(ranges(coarse), (Ranges{{65536, 65536}, {kMiB, 65536}}));
}

TEST(DirtyBitmap, GrowsAndShrinks) {
  DirtyBitmap bitmap(10 * kMiB, 16);
  bitmap.set(0, 10 * kMiB);
  EXPECT_EQ(ranges(*bitmap.resized(20 * kMiB)), (Ranges{{0, 10 * kMiB}}));
  EXPECT_EQ(ranges(*bitmap.resized(kMiB)->resized(20 * kMiB)), (Ranges{{0, kMiB}}));
}

TEST(DirtyBitmap, ThreadsMarkAtOnce) {
  DirtyBitmap bitmap(64 * kMiB, 9);
  std::vector<std::jthread> threads;
  for (unsigned t = 0; t < 4; ++t) {
    threads.emplace_back([&bitmap, t] {
      for (std::uint64_t i = t; i < bitmap.bits(); i += 4) bitmap.set(i * 512, 512);
    });
  }
  threads.clear();
  EXPECT_EQ(bitmap.count(), bitmap.bits());
}

}  // namespace
}  // namespace platter
