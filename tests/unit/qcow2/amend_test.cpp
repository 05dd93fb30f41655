// Amending images: what stays, what is refused, and what goes wrong on the way.
#include <gmock/gmock.h>

#include "unit/qcow2/engine_support.h"

namespace platter::qcow2 {
namespace {

using namespace testing;  // NOLINT: helpers of these tests
using ::testing::HasSubstr;

constexpr std::uint64_t kSize = 4 << 20;
constexpr std::size_t kCluster = 65536;

Task<Result<void>> amend(BlockNode& node, std::string_view text) {
  const std::function<void(std::uint64_t, std::uint64_t)> silent;
  return node.driver().amender()->amend(options(text), false, silent);
}

Task<Result<void>> fill(BlockNode& node, std::uint64_t offset, std::size_t size, int value) {
  std::vector<std::byte> data(size, static_cast<std::byte>(value));
  auto written = co_await node.write(offset, iov(data));
  co_return written;
}

Task<void> expect(BlockNode& node, std::uint64_t offset, std::size_t size, int value) {
  std::vector<std::byte> data(size);
  auto got = co_await node.read(offset, iov(data));
  CO_OK(got);
  EXPECT_EQ(std::ranges::count(data, static_cast<std::byte>(value)),
            static_cast<std::ptrdiff_t>(size))
      << "at " << offset;
}

// A cluster that the disk has zeroed keeps the space it shares with a snapshot, whose data is there.
Task<void> downgrade_beside_a_snapshot(const MemoryImage& image) {
  auto opened = co_await image.open();
  CO_OK(opened);
  BlockNode& node = **opened;
  auto step = co_await fill(node, 0, 4 * kCluster, 5);
  CO_OK(step);
  SnapshotAbility& snapshots = *node.driver().snapshots();
  step = co_await snapshots.create("one", 1, 0);
  CO_OK(step);
  step = co_await node.write_zeroes(kCluster, kCluster);
  CO_OK(step);
  step = co_await snapshots.create("two", 2, 0);
  CO_OK(step);
  step = co_await amend(node, "compat=0.10");
  CO_OK(step);
  EXPECT_EQ(node.driver().info().specific.front().name, "compat");
  co_await expect_clean(node);
  co_await expect(node, 0, kCluster, 5);
  co_await expect(node, kCluster, kCluster, 0);
  step = co_await fill(node, kCluster, kCluster, 6);
  CO_OK(step);
  step = co_await snapshots.apply("one");
  CO_OK(step);
  co_await expect(node, 0, 4 * kCluster, 5);
  step = co_await snapshots.apply("two");
  CO_OK(step);
  co_await expect(node, kCluster, kCluster, 0);
  co_await expect_clean(node);
  auto closed = co_await opened->detach();
  CO_OK(closed);
}

TEST(Amend, ADowngradeKeepsWhatSnapshotsHold) {
  MemoryImage image("amend", kSize, "");
  run([&] { return downgrade_beside_a_snapshot(image); });
}

TEST(Amend, ADowngradeOverABackingFileKeepsZeroesAndSnapshots) {
  auto backing = make_memory_disk("amend-backing", kSize);
  auto data = pattern(kSize, 3);
  backing->write(0, iov(data));
  MemoryImage image("amend", kSize, "backing_file=memory:amend-backing,backing_fmt=raw");
  run([&] { return downgrade_beside_a_snapshot(image); });
  remove_memory_disk("amend-backing");
}

Task<void> refusals(const MemoryImage& image) {
  auto opened = co_await image.open();
  CO_OK(opened);
  BlockNode& node = **opened;
  auto written = co_await fill(node, 0, kCluster, 5);
  CO_OK(written);
  SnapshotAbility& snapshots = *node.driver().snapshots();
  for (int i = 0; i < 4; ++i) {
    auto created = co_await snapshots.create("s" + std::to_string(i), 1, 0);
    CO_OK(created);
  }
  auto narrow = co_await amend(node, "refcount_bits=2");
  EXPECT_FALSE(narrow);
  if (!narrow) {
    EXPECT_THAT(narrow.error().message(), HasSubstr("Cannot decrease refcount entry width to 2"));
    EXPECT_THAT(narrow.error().message(), HasSubstr("has a refcount of 5"));
  }
  co_await expect_clean(node);
  auto fits = co_await amend(node, "refcount_bits=4");
  CO_OK(fits);
  auto added = co_await node.driver().bitmaps()->add("b", 0, true);
  CO_OK(added);
  auto wide = co_await amend(node, "refcount_bits=16");
  CO_OK(wide);
  auto down = co_await amend(node, "compat=0.10");
  EXPECT_FALSE(down) << "version 2 has no bitmaps";
  auto removed = co_await node.driver().bitmaps()->remove("b");
  CO_OK(removed);
  down = co_await amend(node, "compat=0.10");
  CO_OK(down);
  co_await expect(node, 0, kCluster, 5);
  co_await expect_clean(node);
  auto closed = co_await opened->detach();
  CO_OK(closed);
}

TEST(Amend, WhatWouldLoseSomethingIsRefused) {
  MemoryImage image("amend", kSize, "");
  run([&] { return refusals(image); });
}

}  // namespace
}  // namespace platter::qcow2
