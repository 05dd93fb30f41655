// Guest addresses become host bytes only inside one fitting region (HOSTILE V-5).
#include "virtio/guest_memory.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "block/exec/buffer.h"

namespace platter::virtio {
namespace {

using Access = GuestMemory::Access;
using Kind = GuestMemory::Kind;
constexpr std::uint64_t kTop = std::numeric_limits<std::uint64_t>::max();

struct GuestMemoryTest : ::testing::Test {
  void SetUp() override {
    ASSERT_TRUE(memory.add(0x1000, low.span(), Kind::kRam, "low"));
    ASSERT_TRUE(memory.add(0x3000, high.span(), Kind::kRam, "high"));
    ASSERT_TRUE(memory.add(0xf000, rom.span(), Kind::kRom, "rom"));
  }
  Buffer low{0x2000};
  Buffer high{0x1000};
  Buffer rom{0x1000};
  GuestMemory memory;
};

TEST_F(GuestMemoryTest, FindsWhatLiesInOneRegion) {
  const auto all = memory.find(0x1000, 0x2000, Access::kWrite);
  ASSERT_TRUE(all);
  EXPECT_EQ(all->data(), low.data());
  EXPECT_EQ(all->size(), 0x2000u);
  const auto last = memory.find(0x3fff, 1, Access::kWrite);
  ASSERT_TRUE(last);
  EXPECT_EQ(last->data(), high.data() + 0xfff);
}

TEST_F(GuestMemoryTest, RefusesGapsStraddlesWrapsAndNothing) {
  EXPECT_FALSE(memory.find(0, 16, Access::kRead));
  EXPECT_FALSE(memory.find(0xfff, 2, Access::kRead));
  EXPECT_FALSE(memory.find(0x2fff, 2, Access::kRead)) << "straddles two regions";
  EXPECT_FALSE(memory.find(0x3fff, 2, Access::kRead));
  EXPECT_FALSE(memory.find(0x4000, 1, Access::kRead));
  EXPECT_FALSE(memory.find(0x1000, 0, Access::kRead));
  EXPECT_FALSE(memory.find(0x1000, kTop, Access::kRead));
  EXPECT_FALSE(memory.find(kTop, 2, Access::kRead));
  EXPECT_FALSE(memory.find(kTop - 15, kTop, Access::kRead));
}

TEST_F(GuestMemoryTest, RomIsForReading) {
  EXPECT_TRUE(memory.find(0xf000, 16, Access::kRead));
  EXPECT_FALSE(memory.find(0xf000, 16, Access::kWrite));
}

TEST_F(GuestMemoryTest, RefusesOverlapsByName) {
  Buffer more(0x1000);
  const auto r = memory.add(0x2000, more.span(), Kind::kRam, "more");
  ASSERT_FALSE(r);
  EXPECT_EQ(r.error().code(), EEXIST);
  EXPECT_THAT(r.error().message(), ::testing::HasSubstr("'more' at 0x2000-0x2fff overlaps 'low'"));
}

TEST_F(GuestMemoryTest, RefusesWrapsEmptinessAndMisalignment) {
  Buffer more(0x1000);
  EXPECT_FALSE(memory.add(0x8000, {}, Kind::kRam, "empty"));
  EXPECT_FALSE(memory.add(kTop - 0xff0, more.span(), Kind::kRam, "wrapping"));
  EXPECT_FALSE(memory.add(0x8008, more.span(), Kind::kRam, "misaligned"));
  EXPECT_EQ(memory.regions().size(), 3u);
}

TEST_F(GuestMemoryTest, MayEndAtTheTopOfTheAddressSpace) {
  Buffer more(0x1000);
  ASSERT_TRUE(memory.add(kTop - 0xfff, more.span(), Kind::kRam, "top"));
  EXPECT_TRUE(memory.find(kTop, 1, Access::kWrite));
  EXPECT_FALSE(memory.find(kTop, 2, Access::kWrite));
  EXPECT_EQ(memory.total_size(), 0x5000u);
}

TEST(GuestMemory, NumberOfRegionsIsBounded) {
  Buffer bytes(16 * (GuestMemory::kMaxRegions + 1));
  GuestMemory memory;
  for (std::size_t i = 0; i < GuestMemory::kMaxRegions; ++i) {
    ASSERT_TRUE(memory.add(i * 0x1000, bytes.span(i * 16, 16), Kind::kRam, "bank"));
  }
  EXPECT_FALSE(
      memory.add(0x100000, bytes.span(GuestMemory::kMaxRegions * 16, 16), Kind::kRam, "bank"));
}

TEST(GuestMemory, SharedValuesAreLittleEndian) {
  alignas(8) std::byte bytes[8] = {};
  store_shared<std::uint32_t>(bytes, 0x01020304);
  EXPECT_EQ(bytes[0], std::byte{4});
  EXPECT_EQ(load_shared<std::uint16_t>(bytes), 0x0304);
}

}  // namespace
}  // namespace platter::virtio
