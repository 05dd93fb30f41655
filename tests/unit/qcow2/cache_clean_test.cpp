// cache-clean-interval: what nobody has used for so long is given up, and its memory with it, also
// when nobody uses the image at all.
#include <chrono>

#include "block/exec/chores.h"
#include "formats/qcow2/driver.h"
#include "unit/qcow2/engine_support.h"

namespace platter::qcow2::cache_clean {
namespace {

using namespace qcow2::testing;  // NOLINT: helpers of these tests

constexpr std::uint64_t kTableCovers = 512 * 4096;
constexpr std::uint64_t kTables = 4;
// So long that the time which the test itself takes is nothing.
constexpr std::chrono::seconds kInterval(1'000'000);
constexpr std::string_view kOption = "cache-clean-interval=1000000";

void pass(std::chrono::seconds time) { Chores::process().advance(time); }

Task<void> touch(BlockNode& node, std::uint64_t table) {
  std::vector<std::byte> bytes(512);
  auto read = co_await node.read(table * kTableCovers, iov(bytes));
  CO_OK(read);
  EXPECT_EQ(bytes, std::vector<std::byte>(512, std::byte{1}));
}

Task<void> touch_all(BlockNode& node) {
  for (std::uint64_t i = 0; i < kTables; ++i) {
    auto touched = touch(node, i);
    co_await touched;
  }
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
  auto edge = co_await image.open(writable, kOption);
  CO_OK(edge);
  BlockNode& node = **edge;
  auto& driver = static_cast<Qcow2Driver&>(node.driver());
  co_await touch_all(node);
  EXPECT_EQ(resident(driver), kTables);
  const TableCache::Slice* const kept = driver.l2_cache().peek(0);
  const TableCache::Slice* const lost = driver.l2_cache().peek(1);
  EXPECT_TRUE(kept && lost);
  if (!kept || !lost) co_return;
  pass(kInterval);
  EXPECT_EQ(resident(driver), kTables) << "all were in use until now";
  co_await touch(node, 0);
  pass(kInterval - std::chrono::hours(1));
  EXPECT_EQ(resident(driver), kTables) << "too early";
  pass(std::chrono::hours(1));
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
    for (int i = 0; i < 3; ++i) pass(kInterval);
    EXPECT_EQ(resident(driver), 1u);
    EXPECT_NE(driver.l2_cache().peek(2), nullptr);
  }
  auto closed = co_await edge->detach();
  CO_OK(closed);
  pass(kInterval);
}

TEST(CacheClean, WhatNobodyUsesIsGivenUp) {
  MemoryImage image("clean", kTables * kTableCovers, "cluster_size=4k");
  run([&] { return fill_tables(image); });
  run([&] { return shed(image, false); });
  run([&] { return shed(image, true); });
}

// No L2 table is loaded here: all are new.
Task<void> write_and_wait(const MemoryImage& image) {
  auto edge = co_await image.open(true, kOption);
  CO_OK(edge);
  BlockNode& node = **edge;
  std::vector<std::byte> bytes(512, std::byte{1});
  for (std::uint64_t i = 0; i < kTables; ++i) {
    auto written = co_await node.write(i * kTableCovers, iov(bytes));
    CO_OK(written);
  }
  auto flushed = co_await node.flush();
  CO_OK(flushed);
  auto& driver = static_cast<Qcow2Driver&>(node.driver());
  EXPECT_EQ(resident(driver), kTables);
  for (int i = 0; i < 2; ++i) pass(kInterval);
  EXPECT_EQ(resident(driver), 0u);
  auto closed = co_await edge->detach();
  CO_OK(closed);
}

TEST(CacheClean, NewTablesCountAsLoaded) {
  MemoryImage image("clean", kTables * kTableCovers, "cluster_size=4k");
  run([&] { return write_and_wait(image); });
}

Task<void> change_interval(const MemoryImage& image) {
  auto edge = co_await image.open(true, "cache-clean-interval=0");
  CO_OK(edge);
  auto& driver = static_cast<Qcow2Driver&>((*edge)->driver());
  co_await touch_all(**edge);
  for (int i = 0; i < 5; ++i) pass(kInterval);
  EXPECT_EQ(resident(driver), kTables);
  for (const bool on : {true, false}) {
    Options changes = options(on ? kOption : "cache-clean-interval=0");
    auto plan = driver.plan_change(changes);
    CO_OK(plan);
    auto changing = (*plan)();
    auto changed = co_await changing;
    CO_OK(changed);
    co_await touch_all(**edge);
    for (int i = 0; i < 2; ++i) pass(kInterval);
    EXPECT_EQ(resident(driver), on ? 0u : kTables);
  }
  auto closed = co_await edge->detach();
  CO_OK(closed);
}

TEST(CacheClean, IntervalZeroIsNeverAndMayChange) {
  MemoryImage image("clean", kTables * kTableCovers, "cluster_size=4k");
  run([&] { return fill_tables(image); });
  run([&] { return change_interval(image); });
}

}  // namespace
}  // namespace platter::qcow2::cache_clean
