// Compressed writes from memory that the file does not take as it is.
#include <gtest/gtest.h>

#include "unit/qcow2/engine_support.h"

namespace platter::qcow2::packed_bounce {
namespace {

using namespace qcow2::testing;  // NOLINT: helpers of these tests

class Qcow2PackedBounce : public ::testing::TestWithParam<const char*> {};

INSTANTIATE_TEST_SUITE_P(Clusters, Qcow2PackedBounce, ::testing::Values("64k", "1M", "2M"),
                         [](const auto& cluster) { return std::string(cluster.param); });

Task<void> write_and_read(const MemoryImage& image) {
  constexpr std::uint64_t kLength = 4 * kMiB;
  OpenRequest request;
  request.options = options("driver=qcow2,file.driver=memory,file.request-alignment=512," +
                            ("file.memory-alignment=512,file.name=" + image.name()));
  request.flags.read_only = false;
  request.permissions = Permissions::writer();
  auto opened = co_await open_node(std::move(request));
  CO_OK(opened);
  BlockNode& node = **opened;
  std::vector<std::byte> bytes(kLength + 513);
  // Aligned to one byte and no more.
  const auto address = reinterpret_cast<std::uintptr_t>(bytes.data());
  const std::span<std::byte> odd = std::span(bytes).subspan(address % 2 == 0 ? 1 : 0, kLength);
  std::fill(odd.begin(), odd.end(), std::byte{5});
  const WriteFlags packed{.compressed = true};
  auto written = co_await node.write(0, IoVec(odd), packed);
  CO_OK(written);
  auto extent = co_await node.extent(0, kLength);
  CO_OK(extent);
  EXPECT_EQ(extent->kind, ExtentKind::kCompressed);
  std::vector<std::byte> found(kLength);
  auto read = co_await node.read(0, iov(found));
  CO_OK(read);
  EXPECT_EQ(found, std::vector<std::byte>(kLength, std::byte{5}));
  auto closed = co_await opened->detach();
  CO_OK(closed);
}

TEST_P(Qcow2PackedBounce, WritesWholeClusters) {
  const MemoryImage image("packed_bounce", 8 * kMiB, std::string("cluster_size=") + GetParam());
  run([&] { return write_and_read(image); });
}

// The disk's end need not be the end of a block of the file.
Task<void> write_to_the_end(const MemoryImage& image) {
  OpenRequest request;
  request.options = options(
      "driver=qcow2,file.driver=memory,file.request-alignment=4096,file.name=" + image.name());
  request.flags.read_only = false;
  request.permissions = Permissions::writer();
  auto opened = co_await open_node(std::move(request));
  CO_OK(opened);
  BlockNode& node = **opened;
  std::vector<std::byte> bytes(node.size(), std::byte{5});
  const WriteFlags packed{.compressed = true};
  auto written = co_await node.write(0, iov(bytes), packed);
  CO_OK(written);
  auto extent = co_await node.extent(kMiB, 5632);
  CO_OK(extent);
  EXPECT_EQ(extent->kind, ExtentKind::kCompressed);
  std::vector<std::byte> found(node.size());
  auto read = co_await node.read(0, iov(found));
  CO_OK(read);
  EXPECT_EQ(found, bytes);
  auto closed = co_await opened->detach();
  CO_OK(closed);
}

TEST_P(Qcow2PackedBounce, WritesTheDisksLastClusterWhole) {
  const MemoryImage image("packed_end", kMiB + 5632, std::string("cluster_size=") + GetParam());
  run([&] { return write_to_the_end(image); });
}

}  // namespace
}  // namespace platter::qcow2::packed_bounce
