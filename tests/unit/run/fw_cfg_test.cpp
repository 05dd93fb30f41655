#include "tools/run/fw_cfg.h"

#include <gtest/gtest.h>

#include <array>
#include <string>
#include <vector>

#include "block/base/bytes.h"

namespace platter::run {
namespace {

class FwCfgTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(memory_.add_ram(4 * kMiB));
    ASSERT_TRUE(memory_.add_bank(BankKind::kRom, 0xfffc0000, 256 * kKiB, "flash"));
    device_ = std::make_unique<FwCfg>(memory_);
  }
  void select(std::uint16_t key) {
    std::array<std::byte, 2> raw;
    store_le(raw.data(), key);
    device_->write(0, raw);
  }
  std::string read(std::size_t count) {
    std::string text;
    for (std::size_t i = 0; i < count; ++i) {
      std::array<std::byte, 1> byte{};
      device_->read(1, byte);
      text += static_cast<char>(byte[0]);
    }
    return text;
  }
  // A DMA request at 0x1000; gives the control word afterwards.
  std::uint32_t dma(std::uint32_t control, std::uint32_t length, std::uint64_t address,
                    std::uint64_t request_at = 0x1000) {
    std::array<std::byte, 16> request;
    Writer writer(request);
    writer.be(control);
    writer.be(length);
    writer.be(address);
    EXPECT_TRUE(memory_.write(request_at, request));
    std::array<std::byte, 4> where;
    store_be(where.data(), static_cast<std::uint32_t>(request_at));
    device_->write(8, where);
    EXPECT_TRUE(memory_.read(request_at, std::span(request).first(4)));
    return load_be<std::uint32_t>(request.data());
  }

  Memory memory_;
  std::unique_ptr<FwCfg> device_;
};

TEST_F(FwCfgTest, SignatureAndEnd) {
  select(FwCfg::kSignature);
  EXPECT_EQ(read(6), std::string("QEMU\0\0", 6)) << "zeroes beyond the end";
  select(0x1234);
  EXPECT_EQ(read(2), std::string(2, '\0')) << "an item that is not there";
  std::array<std::byte, 4> high{}, low{};
  device_->read(4, high);
  device_->read(8, low);
  EXPECT_EQ(load_be<std::uint32_t>(high.data()), 0x51454d55U);
  EXPECT_EQ(load_be<std::uint32_t>(low.data()), 0x20434647U);
}

TEST_F(FwCfgTest, FilesAreInTheDirectory) {
  ASSERT_TRUE(device_->add_file("bootorder", "/disk"));
  ASSERT_TRUE(device_->add_file_number("etc/number", 0x3f8));
  select(FwCfg::kFileDirectory);
  EXPECT_EQ(read(4), std::string("\0\0\0\2", 4));
  EXPECT_EQ(read(8), std::string("\0\0\0\5\0\x20\0\0", 8));
  EXPECT_EQ(read(56).substr(0, 10), std::string("bootorder\0", 10));
  select(0x20);
  EXPECT_EQ(read(6), std::string("/disk\0", 6));
  select(0x4021);
  EXPECT_EQ(read(3), std::string("\xf8\x03\0", 3)) << "bit 14 is not part of the key";
  EXPECT_EQ(device_->add_file("bootorder", "again").error().code(), EEXIST);
  EXPECT_EQ(device_->add_file(std::string(56, 'n'), "long").error().code(), EINVAL);
}

TEST_F(FwCfgTest, DmaReadsAndSkips) {
  ASSERT_TRUE(device_->add_file("file", "0123456789"));
  EXPECT_EQ(dma(0x00200000 | 8 | 4, 3, 0), 0U);  // select item 0x20, skip 3
  EXPECT_EQ(dma(2, 4, 0x2000), 0U);
  std::array<std::byte, 12> data{};
  ASSERT_TRUE(memory_.read(0x2000, data));
  EXPECT_EQ(std::to_integer<char>(data[0]), '3');
  EXPECT_EQ(std::to_integer<char>(data[3]), '6');
  ASSERT_TRUE(memory_.write(0x2000, std::vector<std::byte>(12, std::byte{0xee})));
  EXPECT_EQ(dma(2, 12, 0x2000), 0U) << "the rest is zeroes";
  ASSERT_TRUE(memory_.read(0x2000, data));
  EXPECT_EQ(std::to_integer<char>(data[2]), '9');
  EXPECT_EQ(data[3], std::byte{0});
  EXPECT_EQ(data[11], std::byte{0});
}

TEST_F(FwCfgTest, DmaToBadPlacesIsAnError) {
  ASSERT_TRUE(device_->add_file("file", "0123456789"));
  EXPECT_EQ(dma(0x00200000 | 8 | 2, 10, 4 * kMiB - 4), 1U) << "beyond RAM";
  EXPECT_EQ(dma(0x00200000 | 8 | 2, 0xffffffff, 0), 1U) << "longer than RAM";
  EXPECT_EQ(dma(0x00200000 | 8 | 2, 10, ~std::uint64_t{0} - 2), 1U) << "wraps";
  EXPECT_EQ(dma(0x00200000 | 8 | 2, 10, 0xfffc0000), 1U) << "ROM";
  EXPECT_EQ(dma(0x00200000 | 8 | 16, 4, 0x2000), 1U) << "items are read-only";
  std::array<std::byte, 4> where;
  store_be(where.data(), std::uint32_t{0xf0000000});
  device_->write(8, where);  // a request that is nowhere: nothing happens
}

TEST(E820, ListsRamOnly) {
  Memory memory;
  ASSERT_TRUE(memory.add_ram(kLowRamLimit + 2 * kGiB));
  ASSERT_TRUE(memory.add_bank(BankKind::kRom, 0xfffc0000, 256 * kKiB, "flash"));
  const auto table = e820_table(memory);
  ASSERT_EQ(table.size(), 40U);
  EXPECT_EQ(load_le<std::uint64_t>(table.data() + 8), kLowRamLimit);
  EXPECT_EQ(load_le<std::uint64_t>(table.data() + 20), kHighRamBase);
  EXPECT_EQ(load_le<std::uint64_t>(table.data() + 28), 2 * kGiB);
}

TEST(Memory, OverlapsAreRefusedWithBothNames) {
  Memory memory;
  ASSERT_TRUE(memory.add_ram(16 * kMiB));
  const auto added = memory.add_bank(BankKind::kRom, 8 * kMiB, 4096, "rom");
  ASSERT_FALSE(added);
  EXPECT_EQ(added.error().message(),
            "memory bank 'rom' [0x800000, 0x801000) overlaps bank 'low RAM' [0x0, 0x1000000)");
  EXPECT_FALSE(memory.add_bank(BankKind::kRam, ~std::uint64_t{0} - 4095, 8192, "wraps"));
  EXPECT_FALSE(memory.at(16 * kMiB - 1, 2));
  EXPECT_FALSE(memory.at(1, ~std::uint64_t{0}));
}

}  // namespace
}  // namespace platter::run
