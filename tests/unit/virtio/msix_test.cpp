// MSI-X vectors: table, masks, pending bits (PCI 3.0, 6.8.2).
#include "virtio/msix.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>

#include "block/base/bytes.h"
#include "virtio/testing/fakes.h"

namespace platter::virtio {
namespace {

using ::testing::ElementsAre;
using testing::FakePlatform;
using ::testing::IsEmpty;

struct MsixTest : ::testing::Test {
  void write(std::uint64_t offset, std::uint32_t value) {
    std::array<std::byte, 4> data;
    store_le(data.data(), value);
    table.write_table(offset, data);
  }
  std::uint32_t read(std::uint64_t offset) {
    std::array<std::byte, 4> data;
    table.read_table(offset, data);
    return load_le<std::uint32_t>(data.data());
  }
  void program(unsigned vector, std::uint32_t address, std::uint32_t data) {
    write(vector * 16, address);
    write(vector * 16 + 4, 0);
    write(vector * 16 + 8, data);
    write(vector * 16 + 12, 0);
  }
  std::uint8_t pending() {
    std::array<std::byte, 1> data;
    table.read_pending(0, data);
    return std::to_integer<std::uint8_t>(data[0]);
  }

  FakePlatform platform;
  MsixTable table{platform, 3};
};

TEST_F(MsixTest, SendsTheProgrammedMessage) {
  program(1, 0xfee00000, 0x41);
  table.set_control(true, false);
  table.raise(1);
  table.raise(1);
  EXPECT_THAT(platform.sent(),
              ElementsAre(MsiMessage{0xfee00000, 0x41}, MsiMessage{0xfee00000, 0x41}));
  EXPECT_EQ(platform.signals_made(), 1u);
}

TEST_F(MsixTest, TableReadsBack) {
  program(2, 0xfee01000, 7);
  write(2 * 16 + 4, 5);
  EXPECT_EQ(read(32), 0xfee01000u);
  EXPECT_EQ(read(36), 5u);
  EXPECT_EQ(read(40), 7u);
  EXPECT_EQ(read(44), 0u);
  EXPECT_EQ(read(12), 1u) << "masked from the start";
}

TEST_F(MsixTest, MaskedVectorsArePending) {
  program(0, 0xfee00000, 1);
  table.set_control(true, false);
  write(12, 1);
  table.raise(0);
  table.raise(0);
  EXPECT_EQ(pending(), 1);
  EXPECT_THAT(platform.sent(), IsEmpty());
  write(12, 0);
  EXPECT_EQ(pending(), 0);
  EXPECT_THAT(platform.sent(), ElementsAre(MsiMessage{0xfee00000, 1}));
}

TEST_F(MsixTest, FunctionMaskHoldsAllBack) {
  program(0, 0xfee00000, 1);
  program(1, 0xfee00000, 2);
  table.set_control(true, true);
  table.raise(0);
  table.raise(1);
  EXPECT_EQ(pending(), 3);
  table.set_control(true, false);
  EXPECT_THAT(platform.sent(), ElementsAre(MsiMessage{0xfee00000, 1}, MsiMessage{0xfee00000, 2}));
}

TEST_F(MsixTest, MovedInterruptsUseTheSameSignal) {
  program(0, 0xfee00000, 1);
  table.set_control(true, false);
  table.raise(0);
  write(12, 1);
  write(0, 0xfee02000);
  write(8, 9);
  write(12, 0);
  table.raise(0);
  EXPECT_THAT(platform.sent(), ElementsAre(MsiMessage{0xfee00000, 1}, MsiMessage{0xfee02000, 9}));
  EXPECT_EQ(platform.signals_made(), 1u);
}

TEST_F(MsixTest, VectorsThatDoNotExist) {
  table.set_control(true, false);
  table.raise(3);
  table.raise(MsixTable::kNoVector);
  write(48, 1);
  write(0xfffffff0, 1);
  EXPECT_EQ(read(48), 0u);
  EXPECT_EQ(pending(), 0);
}

TEST_F(MsixTest, OddAccessesDoNothing) {
  std::array<std::byte, 2> half{std::byte{0xff}, std::byte{0xff}};
  table.write_table(0, half);
  std::array<std::byte, 4> word{};
  table.write_table(2, word);
  EXPECT_EQ(read(0), 0u);
  std::array<std::byte, 8> two;
  store_le<std::uint64_t>(two.data(), 0x5'fee00000);
  table.write_table(0, two);
  EXPECT_EQ(read(4), 5u);
}

TEST_F(MsixTest, APlatformWithoutRoutesLosesInterruptsOnly) {
  platform.refuse_msi = true;
  program(0, 0xfee00000, 1);
  table.set_control(true, false);
  table.raise(0);
  table.raise(0);
  EXPECT_THAT(platform.sent(), IsEmpty());
}

TEST_F(MsixTest, ResetMasksAndForgets) {
  program(0, 0xfee00000, 1);
  table.set_control(true, false);
  write(12, 1);
  table.raise(0);
  table.reset();
  EXPECT_FALSE(table.enabled());
  EXPECT_EQ(pending(), 0);
  EXPECT_EQ(read(0), 0u);
  EXPECT_EQ(read(12), 1u);
}

}  // namespace
}  // namespace platter::virtio
