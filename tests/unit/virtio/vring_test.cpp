// The split ring against drivers that behave and drivers that do not (C19, HOSTILE V-2, V-4, V-5,
// V-7).
#include "virtio/vring.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <vector>

#include "virtio/testing/guest.h"

namespace platter::virtio {
namespace {

using testing::MockRing;
using testing::Piece;
using testing::TestGuest;

constexpr std::uint64_t kAll = kFeatureIndirectDesc | kFeatureEventIdx;

struct VringTest : ::testing::Test {
  explicit VringTest(std::uint16_t size = 8, std::uint64_t features = kAll)
      : driver(guest, size, features),
        ring(SplitRing::create(guest.memory(), driver.layout(), features).value()) {}

  // What pop() says of whatever the driver published.
  RingFault fault() {
    driver.publish();
    for (int i = 0; i < 64; ++i) {
      const auto popped = ring.pop(chain);
      if (!popped) return popped.error();
      if (!*popped) break;
    }
    ADD_FAILURE() << "no fault";
    return RingFault::kIndexJump;
  }
  bool pop() {
    const auto popped = ring.pop(chain);
    EXPECT_TRUE(popped) << to_string(popped.error());
    return popped && *popped;
  }
  std::uint64_t buffer(std::size_t size = 64) { return guest.allocate(size); }

  TestGuest guest;
  MockRing driver;
  SplitRing ring;
  Chain chain;
};

TEST_F(VringTest, EmptyRingGivesNothing) { EXPECT_FALSE(pop()); }

TEST_F(VringTest, ChainBecomesHostMemory) {
  const std::uint64_t a = buffer(), gap = buffer(16), b = buffer();
  driver.add({{a, 16, false}, {b, 64, true}});
  driver.publish();
  ASSERT_TRUE(pop());
  EXPECT_EQ(chain.readable().contiguous().data(), guest.at(a));
  EXPECT_EQ(chain.readable().size(), 16u);
  EXPECT_EQ(chain.writable().contiguous().data(), guest.at(b));
  EXPECT_EQ(chain.writable().size(), 64u);
  EXPECT_EQ(chain.descriptors(), 2u);
  EXPECT_FALSE(pop());
  static_cast<void>(gap);
}

TEST_F(VringTest, NeighboursBecomeOneSegment) {
  const std::uint64_t a = buffer(64);
  driver.add({{a, 16, false}, {a + 16, 16, false}, {a + 32, 16, true}, {a + 48, 16, true}});
  driver.publish();
  ASSERT_TRUE(pop());
  EXPECT_EQ(chain.readable().pieces(), 1u);
  EXPECT_EQ(chain.readable().size(), 32u);
  EXPECT_EQ(chain.writable().pieces(), 1u);
  EXPECT_EQ(chain.writable().size(), 32u);
}

TEST_F(VringTest, IndirectTableIsWalked) {
  const std::array<Piece, 3> pieces{Piece{buffer(), 16, false}, Piece{buffer(128), 64, true},
                                    Piece{buffer(), 1, true}};
  driver.add_indirect(pieces);
  driver.publish();
  ASSERT_TRUE(pop());
  EXPECT_EQ(chain.descriptors(), 1u);
  EXPECT_EQ(chain.readable().size(), 16u);
  EXPECT_EQ(chain.writable().size(), 65u);
}

TEST_F(VringTest, DirectDescriptorsMayPrecedeTheIndirectTable) {
  const std::uint64_t table = guest.allocate(16), a = buffer(), b = buffer();
  driver.write_descriptor(table, b, 8, MockRing::kWrite, 0);
  driver.set_descriptor(0, a, 16, MockRing::kNext, 1);
  driver.set_descriptor(1, table, 16, MockRing::kIndirect | MockRing::kWrite, 0);
  driver.push_available(0);
  driver.publish();
  ASSERT_TRUE(pop());
  EXPECT_EQ(chain.readable().size(), 16u);
  EXPECT_EQ(chain.writable().size(), 8u);
  EXPECT_EQ(chain.descriptors(), 2u);
}

TEST_F(VringTest, IndirectTableNeedsNoAlignment) {
  const std::uint64_t table = guest.allocate(32) + 3;
  const std::array<Piece, 1> pieces{Piece{buffer(), 16, false}};
  driver.add_indirect(pieces, table);
  driver.publish();
  EXPECT_TRUE(pop());
}

TEST_F(VringTest, IndexesWrapAround) {
  // Three times through the 16-bit index.
  const std::uint64_t a = buffer();
  for (unsigned i = 0; i < 3 * 65536; ++i) {
    const std::uint16_t head = driver.add({{a, 1 + i % 64, true}});
    driver.publish();
    ASSERT_TRUE(pop());
    ASSERT_EQ(chain.writable().size(), 1 + i % 64);
    ring.add_used(chain, i);
    ring.publish();
    const auto used = driver.take_used();
    ASSERT_TRUE(used);
    ASSERT_EQ(used->id, head);
    ASSERT_EQ(used->length, i);
  }
}

TEST_F(VringTest, UsedElementsAppearTogether) {
  const std::uint64_t a = buffer();
  std::vector<std::uint16_t> heads;
  for (int i = 0; i < 3; ++i) heads.push_back(driver.add({{a, 1, true}}));
  driver.publish();
  std::array<Chain, 3> chains;
  for (Chain& c : chains) ASSERT_TRUE(ring.pop(c).value());
  for (int i : {2, 0, 1}) ring.add_used(chains[static_cast<std::size_t>(i)], 7);
  EXPECT_TRUE(ring.has_unpublished());
  EXPECT_FALSE(driver.take_used());
  ring.publish();
  EXPECT_FALSE(ring.has_unpublished());
  EXPECT_EQ(driver.take_used()->id, heads[2]);
  EXPECT_EQ(driver.take_used()->id, heads[0]);
  EXPECT_EQ(driver.take_used()->id, heads[1]);
}

TEST_F(VringTest, EventIndexAsksForTheInterruptItNames) {
  const std::uint64_t a = buffer();
  for (int i = 0; i < 4; ++i) driver.add({{a, 1, true}});
  driver.publish();
  std::array<Chain, 4> chains;
  for (Chain& c : chains) ASSERT_TRUE(ring.pop(c).value());
  // used_event is 0: interrupt for the first.
  ring.add_used(chains[0], 0);
  EXPECT_TRUE(ring.publish());
  // Not asked again.
  ring.add_used(chains[1], 0);
  EXPECT_FALSE(ring.publish());
  driver.take_used();
  driver.take_used();
  EXPECT_FALSE(driver.enable_interrupts());
  // One notification for a batch of two.
  ring.add_used(chains[2], 0);
  ring.add_used(chains[3], 0);
  EXPECT_TRUE(ring.publish());
  EXPECT_FALSE(ring.publish()) << "nothing new";
}

TEST_F(VringTest, EventIndexTellsTheDriverWhenToNotify) {
  const std::uint64_t a = buffer();
  EXPECT_FALSE(ring.enable_notifications());
  driver.add({{a, 1, true}});
  EXPECT_TRUE(driver.publish());
  ASSERT_TRUE(pop());
  // The device did not ask again.
  driver.add({{a, 1, true}});
  EXPECT_FALSE(driver.publish());
  EXPECT_TRUE(ring.enable_notifications()) << "there is one already";
  ASSERT_TRUE(pop());
  EXPECT_FALSE(ring.enable_notifications());
  driver.add({{a, 1, true}});
  EXPECT_TRUE(driver.publish());
}

struct VringFlagsTest : VringTest {
  VringFlagsTest() : VringTest(8, 0) {}
};

TEST_F(VringFlagsTest, FlagsSuppressNotificationsBothWays) {
  const std::uint64_t a = buffer();
  ring.disable_notifications();
  driver.add({{a, 1, true}});
  EXPECT_FALSE(driver.publish());
  EXPECT_TRUE(ring.enable_notifications());
  driver.add({{a, 1, true}});
  EXPECT_TRUE(driver.publish());

  ASSERT_TRUE(pop());
  ring.add_used(chain, 0);
  EXPECT_TRUE(ring.publish());
  driver.disable_interrupts();
  ASSERT_TRUE(pop());
  ring.add_used(chain, 0);
  EXPECT_FALSE(ring.publish());
}

TEST_F(VringFlagsTest, IndirectMustHaveBeenNegotiated) {
  const std::array<Piece, 1> pieces{Piece{buffer(), 16, false}};
  driver.add_indirect(pieces);
  EXPECT_EQ(fault(), RingFault::kIndirectNotNegotiated);
}

// Drivers that misbehave -------------------------------------------------------------------------

struct C19 : VringTest {};

TEST_F(C19, IndexJumpIsAFault) {
  driver.set_available_index(9);
  EXPECT_EQ(ring.pop(chain).error(), RingFault::kIndexJump);
}

TEST_F(C19, IndexGoingBackIsAFault) {
  driver.add({{buffer(), 1, true}});
  driver.publish();
  ASSERT_TRUE(pop());
  driver.set_available_index(0);
  EXPECT_EQ(ring.pop(chain).error(), RingFault::kIndexJump);
}

TEST_F(C19, HeadBeyondTheTableIsAFault) {
  driver.push_available(8);
  EXPECT_EQ(fault(), RingFault::kHeadOutOfRange);
}

TEST_F(C19, HeadInFlightIsAFault) {
  const std::uint16_t head = driver.add({{buffer(), 1, true}});
  driver.push_available(head);
  EXPECT_EQ(fault(), RingFault::kHeadInFlight);
}

TEST_F(C19, HeadMayComeAgainOnceUsed) {
  const std::uint16_t head = driver.add({{buffer(), 1, true}});
  driver.publish();
  ASSERT_TRUE(pop());
  ring.add_used(chain, 0);
  driver.push_available(head);
  driver.publish();
  EXPECT_TRUE(pop());
}

TEST_F(C19, LoopIsAFault) {
  driver.set_descriptor(0, buffer(), 1, MockRing::kNext, 1);
  driver.set_descriptor(1, buffer(), 1, MockRing::kNext, 0);
  driver.push_available(0);
  EXPECT_EQ(fault(), RingFault::kChainTooLong);
}

TEST_F(C19, LoopToItselfIsAFault) {
  driver.set_descriptor(3, buffer(), 1, MockRing::kNext | MockRing::kWrite, 3);
  driver.push_available(3);
  EXPECT_EQ(fault(), RingFault::kChainTooLong);
}

TEST_F(C19, ChainOfTheWholeTableIsFine) {
  std::vector<Piece> pieces;
  for (int i = 0; i < 8; ++i) {
    pieces.push_back({buffer(), 1, false});
    buffer();
  }
  driver.add(pieces);
  driver.publish();
  ASSERT_TRUE(pop());
  EXPECT_EQ(chain.readable().pieces(), 8u);
}

TEST_F(C19, NextBeyondTheTableIsAFault) {
  driver.set_descriptor(0, buffer(), 1, MockRing::kNext, 8);
  driver.push_available(0);
  EXPECT_EQ(fault(), RingFault::kNextOutOfRange);
}

TEST_F(C19, LengthOverflowIsAFault) {
  // One big region so that each piece is good by itself.
  TestGuest large(16u << 20);
  MockRing big(large, 1024, kAll);
  SplitRing device = SplitRing::create(large.memory(), big.layout(), kAll).value();
  const std::uint64_t a = large.allocate(8u << 20);
  std::vector<Piece> pieces(512, Piece{a, 8u << 20, true});  // 4 GiB
  big.add(pieces);
  big.publish();
  EXPECT_EQ(device.pop(chain).error(), RingFault::kLengthOverflow);
  pieces.back().length -= 1;
  pieces.pop_back();
  pieces.push_back({a, (8u << 20) - 1, true});  // one byte less
  MockRing again(large, 1024, kAll);
  SplitRing other = SplitRing::create(large.memory(), again.layout(), kAll).value();
  again.add(pieces);
  again.publish();
  ASSERT_TRUE(other.pop(chain).value_or(false));
  EXPECT_EQ(chain.writable().size(), 0xffffffffu);
}

TEST_F(C19, EmptyBufferIsAFault) {
  driver.add({{buffer(), 16, false}, {buffer(), 0, true}});
  EXPECT_EQ(fault(), RingFault::kEmptyBuffer);
}

TEST_F(C19, ReadableAfterWritableIsAFault) {
  driver.add({{buffer(), 16, true}, {buffer(), 16, false}});
  EXPECT_EQ(fault(), RingFault::kReadableAfterWritable);
}

struct BadAddressTest : VringTest, ::testing::WithParamInterface<Piece> {};

TEST_P(BadAddressTest, IsAFault) {
  driver.add({GetParam()});
  EXPECT_EQ(fault(), RingFault::kBadAddress);
}

INSTANTIATE_TEST_SUITE_P(
    Vring, BadAddressTest,
    ::testing::Values(Piece{0, 16, true},                     // null
                      Piece{TestGuest::kBase - 1, 2, false},  // from the hole into memory
                      Piece{TestGuest::kBase + (4u << 20) - 1, 2, true},  // out of memory
                      Piece{TestGuest::kBase + (4u << 20), 1, true},      // the first byte beyond
                      Piece{0xfee00000, 4, true},                         // device registers
                      Piece{~std::uint64_t{0} - 7, 16, true},             // wraps
                      Piece{TestGuest::kBase, 0xffffffff, false}));       // longer than memory

TEST_F(C19, RomIsNotWritable) {
  Buffer rom(0x1000);
  ASSERT_TRUE(guest.memory().add(0xf0000000, rom.span(), GuestMemory::Kind::kRom, "rom"));
  driver.add({{0xf0000000, 16, false}});
  driver.publish();
  EXPECT_TRUE(pop());
  driver.add({{0xf0000000, 16, true}});
  EXPECT_EQ(fault(), RingFault::kBadAddress);
}

TEST_F(C19, NestedIndirectIsAFault) {
  const std::uint64_t table = guest.allocate(16);
  driver.write_descriptor(table, table, 16, MockRing::kIndirect, 0);
  driver.set_descriptor(0, table, 16, MockRing::kIndirect, 0);
  driver.push_available(0);
  EXPECT_EQ(fault(), RingFault::kIndirectNested);
}

TEST_F(C19, IndirectWithNextIsAFault) {
  const std::uint64_t table = guest.allocate(16);
  driver.write_descriptor(table, buffer(), 16, 0, 0);
  driver.set_descriptor(0, table, 16, MockRing::kIndirect | MockRing::kNext, 1);
  driver.push_available(0);
  EXPECT_EQ(fault(), RingFault::kIndirectWithNext);
}

TEST_F(C19, IndirectLoopIsAFault) {
  const std::uint64_t table = guest.allocate(32);
  driver.write_descriptor(table, buffer(), 1, MockRing::kNext, 1);
  driver.write_descriptor(table + 16, buffer(), 1, MockRing::kNext, 0);
  driver.set_descriptor(0, table, 32, MockRing::kIndirect, 0);
  driver.push_available(0);
  EXPECT_EQ(fault(), RingFault::kChainTooLong);
}

TEST_F(C19, IndirectNextBeyondItsTableIsAFault) {
  const std::uint64_t table = guest.allocate(64);
  driver.write_descriptor(table, buffer(), 1, MockRing::kNext, 2);
  driver.set_descriptor(0, table, 32, MockRing::kIndirect, 0);
  driver.push_available(0);
  EXPECT_EQ(fault(), RingFault::kNextOutOfRange);
}

struct BadTableTest : VringTest,
                      ::testing::WithParamInterface<std::pair<std::uint64_t, unsigned>> {};

TEST_P(BadTableTest, IsAFault) {
  driver.set_descriptor(0, GetParam().first, GetParam().second, MockRing::kIndirect, 0);
  driver.push_available(0);
  EXPECT_EQ(fault(), RingFault::kIndirectBadTable);
}

INSTANTIATE_TEST_SUITE_P(
    Vring, BadTableTest,
    ::testing::Values(std::pair{TestGuest::kBase, 0u}, std::pair{TestGuest::kBase, 15u},
                      std::pair{TestGuest::kBase, 24u}, std::pair{TestGuest::kBase, 16u * 1025},
                      std::pair{TestGuest::kBase, 0xfffffff0u}, std::pair{std::uint64_t{0}, 16u},
                      std::pair{~std::uint64_t{0} - 15, 32u}));

TEST_F(C19, ManySegmentsThroughAnIndirectTable) {
  std::vector<Piece> pieces;
  for (unsigned i = 0; i < Chain::kMaxSegments; ++i) {
    pieces.push_back({buffer(32), 16, i >= 512});
  }
  driver.add_indirect(pieces);
  driver.publish();
  ASSERT_TRUE(pop());
  EXPECT_EQ(chain.readable().pieces(), 512u);
  EXPECT_EQ(chain.writable().pieces(), 512u);
}

// Layouts ----------------------------------------------------------------------------------------

TEST(VringLayout, SizesAreChecked) {
  TestGuest guest;
  MockRing driver(guest, 1024, 0);
  for (unsigned size : {0u, 3u, 6u, 1023u, 2048u, 0x8000u, 0xffffu}) {
    auto layout = driver.layout();
    layout.size = static_cast<std::uint16_t>(size);
    EXPECT_FALSE(SplitRing::create(guest.memory(), layout, 0)) << size;
  }
  auto layout = driver.layout();
  layout.size = 1;
  EXPECT_TRUE(SplitRing::create(guest.memory(), layout, 0));
}

TEST(VringLayout, PlacesAndAlignmentsAreChecked) {
  TestGuest guest;
  MockRing driver(guest, 8, 0);
  using Field = std::uint64_t SplitRing::Layout::*;
  const std::vector<std::pair<Field, std::uint64_t>> fields{{&SplitRing::Layout::descriptors, 16},
                                                            {&SplitRing::Layout::driver, 2},
                                                            {&SplitRing::Layout::device, 4}};
  for (const auto& [field, alignment] : fields) {
    auto layout = driver.layout();
    layout.*field += alignment / 2;
    EXPECT_FALSE(SplitRing::create(guest.memory(), layout, 0)) << "alignment " << alignment;
    for (std::uint64_t place : {std::uint64_t{0}, guest.end() - 16, ~std::uint64_t{15}}) {
      layout = driver.layout();
      layout.*field = place;
      const auto ring = SplitRing::create(guest.memory(), layout, 0);
      ASSERT_FALSE(ring) << "place " << place;
      EXPECT_THAT(ring.error().message(), ::testing::HasSubstr("not in guest memory"));
    }
  }
}

TEST(VringLayout, UsedRingMustBeWritable) {
  TestGuest guest;
  Buffer rom = Buffer::zeroed(0x1000);
  ASSERT_TRUE(guest.memory().add(0xf0000000, rom.span(), GuestMemory::Kind::kRom, "rom"));
  MockRing driver(guest, 8, 0);
  auto layout = driver.layout();
  layout.device = 0xf0000000;
  EXPECT_FALSE(SplitRing::create(guest.memory(), layout, 0));
}

}  // namespace
}  // namespace platter::virtio
