#include "formats/qcow2/metadata_map.h"

#include <gtest/gtest.h>

namespace platter::qcow2 {
namespace {

TEST(MetadataMap, CoversEveryClusterARangeTouches) {
  const Geometry g{};
  MetadataMap map(g);
  map.add(65536 * 3 + 1, 65536);
  EXPECT_FALSE(map.contains(2));
  EXPECT_TRUE(map.contains(3));
  EXPECT_TRUE(map.contains(4));
  EXPECT_FALSE(map.contains(5));
  EXPECT_TRUE(map.overlaps(65536 * 5 - 1, 1));
  EXPECT_FALSE(map.overlaps(65536 * 5, 65536));
  EXPECT_TRUE(map.overlaps(0, 65536 * 10));
  map.remove(65536 * 3, 65536);
  EXPECT_FALSE(map.contains(3));
  EXPECT_TRUE(map.contains(4));
}

TEST(MetadataMap, HostOffsetsAtTheEndOfTheFormat) {
  const Geometry g{.cluster_bits = 9};
  MetadataMap map(g);
  map.add(kMaxHostOffset - 512, 512);
  EXPECT_TRUE(map.contains((kMaxHostOffset >> 9) - 1));
  EXPECT_FALSE(map.contains((kMaxHostOffset >> 9) - 2));
  EXPECT_FALSE(map.contains(~std::uint64_t{0} >> 9));
}

}  // namespace
}  // namespace platter::qcow2
