// Resizing tells how far it is, and can be ended.
#include <atomic>
#include <cerrno>

#include "block/node/dirty_bitmap.h"
#include "formats/qcow2/driver.h"
#include "unit/qcow2/engine_support.h"

namespace platter::qcow2::resize_progress {
namespace {

using namespace qcow2::testing;  // NOLINT: helpers of these tests

constexpr std::uint64_t kGiB = std::uint64_t{1} << 30;
constexpr std::uint64_t kPiece = 128 << 10;

struct Told {
  unsigned times = 0;
  std::uint64_t last = 0;
  std::uint64_t total = 0;
  std::atomic<bool> cancelled{false};
  unsigned cancel_after = ~0u;

  void operator()(std::uint64_t done, std::uint64_t of) {
    EXPECT_GE(done, last);
    EXPECT_LE(done, of);
    EXPECT_TRUE(total == 0 || of == total) << "the whole has changed";
    last = done;
    total = of;
    if (++times == cancel_after) cancelled = true;
  }
};

Task<Result<void>> resize(BlockNode& node, std::uint64_t size, Told& told,
                          Preallocation preallocation = Preallocation::kOff) {
  const ResizeProgress progress = [&told](std::uint64_t done, std::uint64_t total) {
    told(done, total);
  };
  const ResizeRequest request{.size = size,
                              .preallocation = preallocation,
                              .cancelled = &told.cancelled,
                              .progress = &progress};
  auto done = co_await node.resize(request);
  co_return done;
}

Task<void> shrink(const MemoryImage& image) {
  auto opened = co_await image.open();
  CO_OK(opened);
  BlockNode& node = **opened;
  auto data = pattern(kPiece, 1);
  for (std::uint64_t at = 0; at < 8 * kGiB; at += kGiB) {
    auto written = co_await node.write(at, iov(data));
    CO_OK(written);
  }
  auto added = co_await node.driver().bitmaps()->add("changed", 65536, true);
  CO_OK(added);
  Told first;
  first.cancel_after = 2;
  auto done = co_await resize(node, kGiB, first);
  EXPECT_FALSE(done);
  if (!done) {
    EXPECT_EQ(done.error().code(), ECANCELED);
  }
  EXPECT_EQ(first.times, 2u);
  EXPECT_EQ(node.size(), 8 * kGiB);
  auto checking = expect_clean(node);
  co_await checking;
  // What has gone is marked, and what stays where it was is there.
  std::vector<std::byte> now(kPiece);
  auto contents = co_await node.driver().bitmaps()->contents("changed");
  CO_OK(contents);
  unsigned gone = 0;
  for (std::uint64_t at = 0; at < 8 * kGiB; at += kGiB) {
    auto got = co_await node.read(at, iov(now));
    CO_OK(got);
    if (now == data) continue;
    EXPECT_EQ(now, std::vector<std::byte>(kPiece));
    EXPECT_GE(at, kGiB);
    EXPECT_TRUE((*contents)->get(at));
    ++gone;
  }
  EXPECT_EQ(gone, 2u);
  EXPECT_FALSE((*contents)->get(0));

  Told all;
  done = co_await resize(node, kGiB, all);
  CO_OK(done);
  EXPECT_EQ(all.times, 7u);
  EXPECT_EQ(all.last, all.total);
  EXPECT_EQ(node.size(), kGiB);
  auto got = co_await node.read(0, iov(now));
  CO_OK(got);
  EXPECT_EQ(now, data);
  auto clean = expect_clean(node);
  co_await clean;
  auto closed = co_await opened->detach();
  CO_OK(closed);
}

TEST(ResizeProgress, ShrinkingTellsAndEndsInBetween) {
  const MemoryImage image("resize", 8 * kGiB, "");
  run([&] { return shrink(image); });
}

Task<void> preallocate(const MemoryImage& image, Preallocation how) {
  auto opened = co_await image.open();
  CO_OK(opened);
  BlockNode& node = **opened;
  Told cancelled;
  cancelled.cancel_after = 3;
  auto done = co_await resize(node, 32 * kMiB, cancelled, how);
  EXPECT_FALSE(done);
  EXPECT_EQ(node.size(), kMiB);
  Told told;
  done = co_await resize(node, 32 * kMiB, told, how);
  CO_OK(done);
  EXPECT_GT(told.times, 10u);
  EXPECT_EQ(told.last, told.total);
  auto clean = expect_clean(node);
  co_await clean;
  auto closed = co_await opened->detach();
  CO_OK(closed);
}

TEST(ResizeProgress, PreallocationTells) {
  for (const Preallocation how : {Preallocation::kMetadata, Preallocation::kFull}) {
    const MemoryImage image("resize", kMiB, "cluster_size=4k");
    run([&] { return preallocate(image, how); });
  }
}

}  // namespace
}  // namespace platter::qcow2::resize_progress
