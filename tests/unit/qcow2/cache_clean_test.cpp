// cache-clean-interval: what nobody has used for so long is given up, and its memory with it.
#include "formats/qcow2/driver.h"
#include "unit/qcow2/engine_support.h"

namespace platter::qcow2::cache_clean {
namespace {

using namespace qcow2::testing;  // NOLINT: helpers of these tests

constexpr std::uint64_t kTableCovers = 512 * 4096;
constexpr std::uint64_t kTables = 4;
// Far from the machine's own clock, so that requests of the test are never the ones that shed.
constexpr std::int64_t kNow = std::int64_t{1} << 40;

Task<void> touch(BlockNode& node, std::uint64_t table) {
  std::vector<std::byte> bytes(512);
  auto read = co_await node.read(table * kTableCovers, iov(bytes));
  CO_OK(read);
  EXPECT_EQ(bytes, std::vector<std::byte>(512, std::byte{1}));
}

std::uint64_t resident(Qcow2Driver& driver) {
  MutexLock lock(driver.core().mutex());
  return driver.l2_cache().resident();
}

Task<void> fill_tables(const MemoryImage& image) {
  auto edge = co_await image.open();
  CO_OK(edge);
  std::vector<std::byte> bytes(512, std::byte{1});
  for (std::uint64_t i = 0; i < kTables; ++i) {
    auto written = co_await (*edge)->write(i * kTableCovers, iov(bytes));
    CO_OK(written);
  }
  auto closed = co_await edge->detach();
  CO_OK(closed);
}

Task<void> shed(const MemoryImage& image, bool writable) {
  auto edge = co_await image.open(writable, "cache-clean-interval=10");
  CO_OK(edge);
  BlockNode& node = **edge;
  auto& driver = static_cast<Qcow2Driver&>(node.driver());
  for (std::uint64_t i = 0; i < kTables; ++i) co_await touch(node, i);
  EXPECT_EQ(resident(driver), kTables);
  const TableCache::Slice* const kept = driver.l2_cache().peek(0);
  const TableCache::Slice* const lost = driver.l2_cache().peek(1);
  EXPECT_TRUE(kept && lost);
  if (!kept || !lost) co_return;
  driver.shed_if_due(kNow);
  EXPECT_EQ(resident(driver), kTables) << "all were in use until now";
  co_await touch(node, 0);
  driver.shed_if_due(kNow + 9);
  EXPECT_EQ(resident(driver), kTables) << "too early";
  driver.shed_if_due(kNow + 10);
  EXPECT_EQ(resident(driver), 1u);
  EXPECT_EQ(driver.l2_cache().peek(0), kept);
  EXPECT_EQ(driver.l2_cache().peek(1), nullptr);
  EXPECT_EQ(lost->data.size(), 0u) << "its memory is still there";
  co_await touch(node, 1);
  EXPECT_EQ(resident(driver), 2u);
  // What is dirty stays.
  if (writable) {
    std::vector<std::byte> bytes(512, std::byte{1});
    auto written = co_await node.write(2 * kTableCovers + 4096, iov(bytes));
    CO_OK(written);
    for (const int later : {20, 30, 40}) driver.shed_if_due(kNow + later);
    EXPECT_EQ(resident(driver), 1u);
    EXPECT_NE(driver.l2_cache().peek(2), nullptr);
  }
  auto closed = co_await edge->detach();
  CO_OK(closed);
}

TEST(CacheClean, WhatNobodyUsesIsGivenUp) {
  MemoryImage image("clean", kTables * kTableCovers, "cluster_size=4k");
  run([&] { return fill_tables(image); });
  run([&] { return shed(image, false); });
  run([&] { return shed(image, true); });
}

Task<void> never(const MemoryImage& image) {
  auto edge = co_await image.open(false, "cache-clean-interval=0");
  CO_OK(edge);
  auto& driver = static_cast<Qcow2Driver&>((*edge)->driver());
  for (std::uint64_t i = 0; i < kTables; ++i) co_await touch(**edge, i);
  for (int i = 0; i < 5; ++i) driver.shed_if_due(kNow + i * 1000);
  EXPECT_EQ(resident(driver), kTables);
  auto closed = co_await edge->detach();
  CO_OK(closed);
}

TEST(CacheClean, IntervalZeroIsNever) {
  MemoryImage image("clean", kTables * kTableCovers, "cluster_size=4k");
  run([&] { return fill_tables(image); });
  run([&] { return never(image); });
}

}  // namespace
}  // namespace platter::qcow2::cache_clean
