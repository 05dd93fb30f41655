// The last cluster, where the disk ends within it: behind the end lie zeroes, not what another
// range had there. Another program that makes the disk longer goes on with what it finds.
#include <algorithm>

#include "unit/qcow2/engine_support.h"

namespace platter::qcow2::disk_end {
namespace {

using namespace qcow2::testing;  // NOLINT: helpers of these tests

constexpr std::uint64_t kCluster = 65536;
constexpr std::uint64_t kDiskBytes = 2 * kCluster + 512;
constexpr std::byte kOther{0x45};

// How many bytes of the other range lie anywhere in the file.
std::uint64_t others(const MemoryImage& image) {
  std::vector<std::byte> all(image.disk().size());
  image.disk().read(0, IoVec(std::span(all)));
  return static_cast<std::uint64_t>(std::ranges::count(all, kOther));
}

class ADiskThatEndsAmidACluster : public ::testing::TestWithParam<const char*> {};

// The space of the first cluster is free, and nothing has cleared it.
Task<void> leave_space(const MemoryImage& image) {
  auto edge = co_await image.open(true, "discard=unmap,pass-discard-request=off");
  CO_OK(edge);
  BlockNode& node = **edge;
  std::vector<std::byte> full(kCluster, kOther);
  for (const std::uint64_t at : {std::uint64_t{0}, kCluster}) {
    auto written = co_await node.write(at, iov(full));
    CO_OK(written);
  }
  auto gone = co_await node.discard(0, kCluster);
  CO_OK(gone);
  auto closed = co_await edge->detach();
  CO_OK(closed);
}

Task<void> write_last(const MemoryImage& image, std::uint64_t offset, std::uint64_t length,
                      bool zeroes_first) {
  auto edge = co_await image.open();
  CO_OK(edge);
  BlockNode& node = **edge;
  if (zeroes_first) {
    auto zeroed = co_await node.write_zeroes(2 * kCluster, 512);
    CO_OK(zeroed);
  }
  std::vector<std::byte> data(length, std::byte{1});
  auto written = co_await node.write(2 * kCluster + offset, iov(data));
  CO_OK(written);
  co_await expect_clean(node);
  auto closed = co_await edge->detach();
  CO_OK(closed);
}

TEST_P(ADiskThatEndsAmidACluster, HasZeroesBehindItsEnd) {
  for (const auto& [offset, length] : {std::pair{0, 256}, {128, 256}, {256, 256}, {0, 512}}) {
    for (const bool zeroes_first : {false, true}) {
      MemoryImage image("disk-end", kDiskBytes, GetParam());
      run([&] { return leave_space(image); });
      ASSERT_EQ(others(image), 2 * kCluster);
      run([&] {
        return write_last(image, static_cast<std::uint64_t>(offset),
                          static_cast<std::uint64_t>(length), zeroes_first);
      });
      const bool parts = std::string_view(GetParam()).find("extended_l2") != std::string_view::npos;
      // A subcluster that holds nothing says so by itself, whatever lies in its space.
      const std::uint64_t may_be_left = parts ? kCluster - kCluster / 32 : 0;
      EXPECT_LE(others(image), kCluster + may_be_left) << offset << " " << length;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, ADiskThatEndsAmidACluster,
                         ::testing::Values("cluster_size=64k", "cluster_size=64k,compat=0.10",
                                           "cluster_size=64k,extended_l2=on"));

}  // namespace
}  // namespace platter::qcow2::disk_end
