#include "formats/qcow2/geometry.h"

#include <gtest/gtest.h>

#include <array>
#include <vector>

namespace platter::qcow2 {
namespace {

TEST(Geometry, SplitsAGuestOffset) {
  const Geometry g{};  // 64 KiB clusters
  EXPECT_EQ(g.l2_entries(), 8192u);
  EXPECT_EQ(g.l2_coverage(), std::uint64_t{512} << 20);
  const std::uint64_t guest = (std::uint64_t{512} << 20) * 3 + 65536 * 7 + 5;
  EXPECT_EQ(g.l1_index(guest), 3u);
  EXPECT_EQ(g.l2_index(guest), 7u);
  EXPECT_EQ(g.in_cluster(guest), 5u);
  EXPECT_EQ(g.l1_entries_for(0), 0u);
  EXPECT_EQ(g.l1_entries_for(1), 1u);
  EXPECT_EQ(g.l1_entries_for(g.l2_coverage() + 1), 2u);
  EXPECT_EQ(g.clusters_for(~std::uint64_t{0}), std::uint64_t{1} << 48);
}

TEST(Geometry, RefcountWidthsRoundTripWithoutTouchingNeighbours) {
  for (unsigned order = 0; order <= kMaxRefcountOrder; ++order) {
    const Geometry g{.cluster_bits = 9, .refcount_order = order};
    std::vector<std::byte> block(g.cluster_size());
    for (std::uint64_t i = 0; i < g.refblock_entries(); ++i)
      refcount_set(g, block.data(), i, g.max_refcount());
    refcount_set(g, block.data(), 5, 0);
    EXPECT_EQ(refcount_get(g, block.data(), 4), g.max_refcount()) << order;
    EXPECT_EQ(refcount_get(g, block.data(), 5), 0u) << order;
    EXPECT_EQ(refcount_get(g, block.data(), 6), g.max_refcount()) << order;
    refcount_set(g, block.data(), 5, 1);
    EXPECT_EQ(refcount_get(g, block.data(), 5), 1u) << order;
  }
}

TEST(Geometry, SubByteRefcountsStartAtTheLeastSignificantBit) {
  const Geometry g{.refcount_order = 1};
  std::array<std::byte, 2> block{};
  refcount_set(g, block.data(), 1, 3);
  EXPECT_EQ(std::to_integer<int>(block[0]), 0x0c);
}

TEST(Classify, OneStatePerEntry) {
  const Geometry v3{};
  const Geometry v2{.version = 2};
  EXPECT_EQ(classify(v3, 0), ClusterState(Unallocated{}));
  EXPECT_EQ(classify(v3, data_entry(0x50000, true)), ClusterState(DataCluster{0x50000, true}));
  EXPECT_EQ(classify(v3, data_entry(0x50000, false)), ClusterState(DataCluster{0x50000, false}));
  EXPECT_EQ(classify(v3, zero_entry(0, false)), ClusterState(ZeroCluster{0, false}));
  EXPECT_EQ(classify(v3, zero_entry(0x50000, true)), ClusterState(ZeroCluster{0x50000, true}));
  EXPECT_EQ(classify(v2, 0x50000 | kCopied | kZeroBit), ClusterState(DataCluster{0x50000, true}));
  EXPECT_EQ(l2_reserved_bits(v2, 0x50000 | kZeroBit), kZeroBit);
  EXPECT_TRUE(std::holds_alternative<InvalidEntry>(classify(v3, 0x50200)));
}

// Bit 0 of a compressed descriptor is part of its offset, not the zero flag.
TEST(Classify, CompressedBeforeZero) {
  const Geometry g{};
  const std::uint64_t entry = compressed_entry(g, 0x50001, 1000);
  EXPECT_EQ(classify(g, entry), ClusterState(CompressedCluster{0x50001, 1023}));
  EXPECT_EQ(l2_reserved_bits(g, entry), 0u);
}

TEST(Classify, CompressedLengthsAtBothEnds) {
  for (unsigned bits = kMinClusterBits; bits <= kMaxClusterBits; ++bits) {
    const Geometry g{.cluster_bits = bits};
    const auto one = std::get<CompressedCluster>(classify(g, compressed_entry(g, 0x100000, 1)));
    EXPECT_EQ(one.length, kSector);
    // The longest: a whole cluster that starts at a sector's last byte.
    const auto all =
        std::get<CompressedCluster>(classify(g, compressed_entry(g, 0x1001ff, g.cluster_size())));
    EXPECT_EQ(all.host, 0x1001ffu);
    EXPECT_EQ(all.length, g.cluster_size() + 1) << bits;
  }
}

TEST(Classify, CompressedOffsetBeyondTheFormatIsInvalid) {
  // 512-byte clusters leave bits above 55 in the offset field.
  const Geometry g{.cluster_bits = 9};
  EXPECT_TRUE(
      std::holds_alternative<InvalidEntry>(classify(g, kCompressedBit | (std::uint64_t{1} << 57))));
}

TEST(Classify, ExternalDataFileMayHoldOffsetZero) {
  const Geometry g{.external_data = true};
  EXPECT_EQ(classify(g, kCopied), ClusterState(DataCluster{0, true}));
  EXPECT_EQ(classify(g, 0), ClusterState(Unallocated{}));
}

TEST(Classify, Subclusters) {
  const Geometry g{.extended_l2 = true};
  EXPECT_EQ(g.l2_entries(), 4096u);
  EXPECT_EQ(classify(g, 0x50000 | kCopied, (std::uint64_t{2} << 32) | 1),
            ClusterState(SubclusteredCluster{0x50000, true, 1, 2}));
  EXPECT_TRUE(
      std::holds_alternative<InvalidEntry>(classify(g, 0x50000, (std::uint64_t{1} << 32) | 1)));
  EXPECT_TRUE(std::holds_alternative<InvalidEntry>(classify(g, 0, 1)));
}

}  // namespace
}  // namespace platter::qcow2
