// Amending images: what stays, what is refused, and what goes wrong on the way.
#include <gmock/gmock.h>

#include "block/base/bytes.h"
#include "block/base/checked.h"
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

Task<void> expect(BlockNode& node, std::uint64_t offset, std::size_t size, int value) {
  std::vector<std::byte> data(size);
  auto got = co_await node.read(offset, iov(data));
  CO_OK(got);
  EXPECT_EQ(std::ranges::count(data, static_cast<std::byte>(value)),
            static_cast<std::ptrdiff_t>(size))
      << "at " << offset;
}

// A cluster that the disk has zeroed keeps the space it shares with a snapshot, whose data is
// there.
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

// Snapshot table entries as old programs wrote them: without extra data.
void strip_snapshots(MemoryDisk& disk) {
  std::vector<std::byte> head(72);
  disk.read(0, iov(head));
  const auto count = load_be<std::uint32_t>(&head[60]);
  std::uint64_t to = load_be<std::uint64_t>(&head[64]);
  std::uint64_t from = to;
  std::vector<std::byte> table(4096);
  disk.read(to, iov(table));
  std::vector<std::byte> out(table.size());
  to = 0;
  std::uint64_t at = 0;
  for (std::uint32_t i = 0; i < count; ++i) {
    const std::uint64_t extra = load_be<std::uint32_t>(&table[at + 36]);
    const std::uint64_t text =
        load_be<std::uint16_t>(&table[at + 12]) + load_be<std::uint16_t>(&table[at + 14]);
    std::copy_n(&table[at], 40, &out[to]);
    store_be(&out[to + 36], std::uint32_t{0});
    std::copy_n(&table[at + 40 + extra], text, &out[to + 40]);
    at = align_up<std::uint64_t>(at + 40 + extra + text, 8);
    to = align_up<std::uint64_t>(to + 40 + text, 8);
  }
  disk.write(from, iov(out));
}

Task<void> make_old_snapshots(const MemoryImage& image) {
  auto opened = co_await image.open();
  CO_OK(opened);
  for (const char* name : {"one", "two"}) {
    auto step = co_await fill(**opened, 0, kCluster, *name);
    CO_OK(step);
    step = co_await (*opened)->driver().snapshots()->create(name, 1, 0);
    CO_OK(step);
  }
  auto closed = co_await opened->detach();
  CO_OK(closed);
}

Task<void> upgrade_old_snapshots(const MemoryImage& image) {
  auto opened = co_await image.open();
  CO_OK(opened);
  BlockNode& node = **opened;
  auto step = co_await amend(node, "compat=1.1");
  CO_OK(step);
  co_await expect_clean(node);
  step = co_await node.driver().snapshots()->apply("one");
  CO_OK(step);
  co_await expect(node, 0, kCluster, 'o');
  EXPECT_EQ(node.size(), kSize);
  auto closed = co_await opened->detach();
  CO_OK(closed);
  // And as it lies on the disk.
  opened = co_await image.open(false);
  CO_OK(opened);
  co_await expect_clean(**opened);
  closed = co_await opened->detach();
  CO_OK(closed);
}

TEST(Amend, AnUpgradeCompletesOldSnapshotTables) {
  MemoryImage image("amend", kSize, "compat=0.10");
  run([&] { return make_old_snapshots(image); });
  strip_snapshots(image.disk());
  run([&] { return upgrade_old_snapshots(image); });
}

Task<void> add_to_old_snapshots(const MemoryImage& image) {
  auto opened = co_await image.open();
  CO_OK(opened);
  SnapshotAbility& snapshots = *(*opened)->driver().snapshots();
  auto step = co_await snapshots.create("three", 1, 0);
  CO_OK(step);
  auto closed = co_await opened->detach();
  CO_OK(closed);
  opened = co_await image.open();
  CO_OK(opened);
  step = co_await (*opened)->driver().snapshots()->apply("one");
  CO_OK(step);
  EXPECT_EQ((*opened)->size(), kSize);
  co_await expect(**opened, 0, kCluster, 'o');
  co_await expect_clean(**opened);
  closed = co_await opened->detach();
  CO_OK(closed);
}

TEST(Amend, ASnapshotBesideOldOnesKeepsTheirSize) {
  MemoryImage image("amend", kSize, "compat=0.10");
  run([&] { return make_old_snapshots(image); });
  strip_snapshots(image.disk());
  run([&] { return add_to_old_snapshots(image); });
}

Task<void> change_backing_references(const MemoryImage& image) {
  auto opened = co_await image.open();
  CO_OK(opened);
  BlockNode& node = **opened;
  BackingAbility& reference = *node.driver().backing_reference();
  const auto refused = [&](std::string_view text) { return amend(node, text); };
  for (const char* text : {"backing_file=other", "backing_file=other,backing_fmt=nosuch",
                           "backing_fmt=raw", "backing_file=,backing_fmt=raw"}) {
    auto result = co_await refused(text);
    EXPECT_FALSE(result) << text;
  }
  EXPECT_EQ(reference.backing_filename(), "");
  auto step = co_await amend(node, "backing_file=");
  CO_OK(step);
  step = co_await amend(node, "backing_file=memory:other,backing_fmt=raw");
  CO_OK(step);
  EXPECT_EQ(reference.backing_filename(), "memory:other");
  EXPECT_EQ(reference.backing_format(), "raw");
  step = co_await amend(node, "backing_fmt=qcow2,compat=0.10");
  CO_OK(step);
  EXPECT_EQ(reference.backing_filename(), "memory:other");
  EXPECT_EQ(reference.backing_format(), "qcow2");
  step = co_await amend(node, "backing_file=");
  CO_OK(step);
  EXPECT_EQ(reference.backing_filename(), "");
  EXPECT_EQ(reference.backing_format(), "");
  auto closed = co_await opened->detach();
  CO_OK(closed);
}

TEST(Amend, TheBackingReferenceChangesAsInAnUnsafeRebase) {
  MemoryImage image("amend", kSize, "");
  run([&] { return change_backing_references(image); });
}

}  // namespace
}  // namespace platter::qcow2
