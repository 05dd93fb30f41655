// Clusters filled from another file without passing through memory.
#include <gtest/gtest.h>

#include "block/node/dirty_bitmap.h"
#include "unit/adapters/adapter_test.h"
#include "unit/qcow2/engine_support.h"

namespace platter::qcow2 {
namespace {

using namespace testing;  // NOLINT: helpers of these tests

constexpr std::uint64_t kCopyCluster = 65536;

Task<Edge> open(std::string path, std::string driver, bool read_only) {
  OpenRequest request;
  request.filename = path;
  request.format = driver;
  request.flags.read_only = read_only;
  request.permissions = read_only ? Permissions::reader() : Permissions::writer();
  auto opened = co_await open_node(std::move(request));
  EXPECT_TRUE(opened) << (opened ? "" : opened.error().message());
  co_return std::move(*opened);
}

Task<void> expect_bytes(BlockNode& image, std::uint64_t offset, std::size_t length, char value) {
  std::vector<std::byte> bytes(length);
  auto read = co_await image.read(offset, iov(bytes));
  EXPECT_TRUE(read);
  EXPECT_EQ(std::ranges::count(bytes, static_cast<std::byte>(value)),
            static_cast<std::ptrdiff_t>(length))
      << "at " << offset;
}

Task<void> copy_clusters(std::string source, std::string target) {
  Edge from = co_await open(source, "file", true);
  Edge to = co_await open(target, "qcow2", false);
  const CopyFlags plain{.may_share = false};
  BitmapAbility& bitmaps = *to->driver().bitmaps();
  auto added = co_await bitmaps.add("changes", kCopyCluster, true);
  EXPECT_TRUE(added);
  auto whole =
      co_await to->copy_from(*from, kCopyCluster, 2 * kCopyCluster, 3 * kCopyCluster, plain);
  EXPECT_TRUE(whole) << (whole ? "" : whole.error().message());
  auto changes = co_await bitmaps.contents("changes");
  EXPECT_TRUE(changes);
  if (changes) {
    const auto first = (*changes)->next(0);
    EXPECT_EQ(first.offset, 2 * kCopyCluster);
    EXPECT_EQ(first.length, 3 * kCopyCluster);
  }
  // Over what is there by now, and a part of it only.
  auto over = co_await to->copy_from(*from, 0, 3 * kCopyCluster + 4096, 8192, plain);
  EXPECT_TRUE(over) << (over ? "" : over.error().message());
  // A new cluster's other bytes would have to come from the backing file.
  auto part = co_await to->copy_from(*from, 0, 9 * kCopyCluster + 4096, 8192, plain);
  EXPECT_FALSE(part);
  if (!part) {
    EXPECT_EQ(part.error().code(), ENOTSUP);
  }
  // A source that is no file.
  auto odd = co_await to->copy_from(*to, 2 * kCopyCluster, 10 * kCopyCluster, kCopyCluster, plain);
  EXPECT_FALSE(odd);
  if (!odd) {
    EXPECT_EQ(odd.error().code(), ENOTSUP);
  }

  co_await expect_bytes(*to, 0, 2 * kCopyCluster, 'x');
  co_await expect_bytes(*to, 2 * kCopyCluster, kCopyCluster + 4096, 'b');
  co_await expect_bytes(*to, 3 * kCopyCluster + 4096, 8192, 'a');
  co_await expect_bytes(*to, 3 * kCopyCluster + 12288, 2 * kCopyCluster - 12288, 'b');
  co_await expect_bytes(*to, 5 * kCopyCluster, 11 * kCopyCluster, 'x');
  auto checked = co_await check(*to);
  EXPECT_TRUE(checked);
  if (checked) {
    EXPECT_EQ(checked->corruptions, 0U);
    EXPECT_EQ(checked->leaks, 0U);
  }
  auto closed = co_await to.detach();
  EXPECT_TRUE(closed);
  auto source_closed = co_await from.detach();
  EXPECT_TRUE(source_closed);
}

TEST(CopyFrom, FillsWholeClusters) {
  // (In memory: a disk that has just been slow to take a write is given bytes from memory.)
  if (!std::filesystem::is_directory("/dev/shm")) GTEST_SKIP() << "no /dev/shm";
  const ScratchDir dir("/dev/shm");
  write_file(dir / "from", std::string(kCopyCluster, 'a') + std::string(3 * kCopyCluster, 'b'));
  write_file(dir / "backing", std::string(16 * kCopyCluster, 'x'));
  const Options backed = options("backing_fmt=raw,backing_file=" + (dir / "backing"));
  auto made = run([&] { return create_image("qcow2", dir / "image", 16 * kCopyCluster, backed); });
  ASSERT_TRUE(made) << made.error().message();
  run([&] { return copy_clusters(dir / "from", dir / "image"); });
}

}  // namespace
}  // namespace platter::qcow2
