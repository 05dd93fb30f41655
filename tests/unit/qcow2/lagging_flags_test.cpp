// An operation on snapshots that fails after its switch leaves "refcount is one" flags behind the
// counts: the image stays marked dirty until it is repaired, whatever is amended meanwhile.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "unit/qcow2/engine_support.h"

namespace platter::qcow2 {
namespace lagging_flags {
namespace {

using namespace testing;  // NOLINT: helpers of these tests
using ::testing::HasSubstr;

constexpr std::size_t kCluster = 65536;

// Bit 0 of incompatible_features (qcow2 specification, "Header"), as it is in the file.
bool marked_dirty(const MemoryImage& image) {
  std::vector<std::byte> header(104);
  image.disk().read(0, iov(header));
  return (std::to_integer<unsigned>(header[79]) & 1) != 0;
}

Task<void> write_and_snapshot(const MemoryImage& image) {
  auto opened = co_await image.open();
  CO_OK(opened);
  auto step = co_await fill(**opened, 0, 4 * kCluster, 5);
  CO_OK(step);
  step = co_await (*opened)->driver().snapshots()->create("gone", 1, 0);
  CO_OK(step);
  step = co_await opened->detach();
  CO_OK(step);
}

// The snapshot goes, its counts too, but the flags of the disk's own tables cannot be set.
Task<Result<Edge>> open_with_lagging_flags(const MemoryImage& image) {
  OpenRequest request;
  request.options = options(
      fmt::format("driver=qcow2,file.driver=blkdebug,file.image.driver=memory,file.image.name={},"
                  "file.inject-error.0.event=l2_load,file.inject-error.0.once=on",
                  image.name()));
  request.flags.read_only = false;
  request.permissions = Permissions::writer();
  auto opened = co_await open_node(std::move(request));
  if (!opened) co_return opened;
  auto removed = co_await (*opened)->driver().snapshots()->remove("gone");
  EXPECT_FALSE(removed);
  EXPECT_TRUE((*opened)->driver().snapshots()->list().empty());
  co_return opened;
}

Task<Result<void>> amend(BlockNode& node, std::string_view text) {
  const std::function<void(std::uint64_t, std::uint64_t)> silent;
  auto done = co_await node.driver().amender()->amend(options(text), false, silent);
  co_return done;
}

Task<void> amend_lagging(const MemoryImage& image, std::string_view text) {
  auto made = write_and_snapshot(image);
  co_await made;
  auto opened = co_await open_with_lagging_flags(image);
  CO_OK(opened);
  auto step = co_await amend(**opened, text);
  CO_OK(step);
  step = co_await opened->detach();
  CO_OK(step);
  EXPECT_TRUE(marked_dirty(image));
}

// What opens a dirty image for writing repairs it.
Task<void> expect_repaired_at_open(const MemoryImage& image) {
  auto opened = co_await image.open();
  CO_OK(opened);
  const bool kept = co_await reads_as(**opened, 0, 4 * kCluster, 5);
  EXPECT_TRUE(kept);
  auto step = co_await opened->detach();
  CO_OK(step);
  EXPECT_FALSE(marked_dirty(image));
  opened = co_await image.open(false);
  CO_OK(opened);
  co_await expect_clean(**opened);
  step = co_await opened->detach();
  CO_OK(step);
}

TEST(LaggingFlags, LazyRefcountsOffLeavesTheImageDirty) {
  const MemoryImage image("lagging_lazy", kMiB, "lazy_refcounts=on");
  run([&] { return amend_lagging(image, "lazy_refcounts=off"); });
  run([&] { return expect_repaired_at_open(image); });
}

TEST(LaggingFlags, AnUpgradeMarksTheImageDirty) {
  const MemoryImage image("lagging_upgrade", kMiB, "compat=0.10");
  run([&] { return amend_lagging(image, "compat=1.1"); });
  run([&] { return expect_repaired_at_open(image); });
}

Task<void> downgrade_lagging(const MemoryImage& image) {
  auto made = write_and_snapshot(image);
  co_await made;
  auto opened = co_await open_with_lagging_flags(image);
  CO_OK(opened);
  const auto refused = co_await amend(**opened, "compat=0.10");
  EXPECT_THAT(refused ? "" : refused.error().message(), HasSubstr("'check -r all'"));
  auto step = co_await opened->detach();
  CO_OK(step);
  EXPECT_TRUE(marked_dirty(image));
}

TEST(LaggingFlags, ADowngradeIsRefusedUntilTheImageIsRepaired) {
  const MemoryImage image("lagging_downgrade", kMiB, "");
  run([&] { return downgrade_lagging(image); });
  run([&] { return expect_repaired_at_open(image); });
}

}  // namespace
}  // namespace lagging_flags
}  // namespace platter::qcow2
