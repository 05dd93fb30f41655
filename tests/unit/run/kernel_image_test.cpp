#include "tools/run/kernel_image.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "block/base/bytes.h"

namespace platter::run {
namespace {

using Bytes = std::vector<std::byte>;

// A 64-bit executable of one segment (256 bytes at 1 MiB, twice that in memory) and a PVH note.
Bytes elf64() {
  Bytes file(0x300);
  const std::byte ident[] = {std::byte{0x7f}, std::byte{'E'}, std::byte{'L'}, std::byte{'F'},
                             std::byte{2},    std::byte{1},   std::byte{1}};
  std::ranges::copy(ident, file.begin());
  const auto put = [&file]<class T>(std::size_t at, T value) { store_le(file.data() + at, value); };
  put(16, std::uint16_t{2});
  put(18, std::uint16_t{62});
  put(24, std::uint64_t{0x100000});
  put(32, std::uint64_t{64});
  put(54, std::uint16_t{56});
  put(56, std::uint16_t{2});
  put(64, std::uint32_t{1});
  put(64 + 8, std::uint64_t{0x200});
  put(64 + 24, std::uint64_t{0x100000});
  put(64 + 32, std::uint64_t{0x100});
  put(64 + 40, std::uint64_t{0x200});
  put(120, std::uint32_t{4});
  put(120 + 8, std::uint64_t{0x1c0});
  put(120 + 32, std::uint64_t{20});
  put(0x1c0, std::uint32_t{4});
  put(0x1c4, std::uint32_t{4});
  put(0x1c8, std::uint32_t{18});
  std::memcpy(file.data() + 0x1cc, "Xen", 4);
  put(0x1d0, std::uint32_t{0x100040});
  return file;
}

TEST(Elf, ReadsSegmentsAndThePvhNote) {
  const auto image = parse_elf(elf64());
  ASSERT_TRUE(image) << image.error().message();
  ASSERT_EQ(image->segments.size(), 1U);
  EXPECT_EQ(image->segments[0].file_offset, 0x200U);
  EXPECT_EQ(image->segments[0].file_size, 0x100U);
  EXPECT_EQ(image->segments[0].address, 0x100000U);
  EXPECT_EQ(image->segments[0].memory_size, 0x200U);
  EXPECT_EQ(image->entry, 0x100000U);
  EXPECT_EQ(image->pvh_entry, 0x100040U);
}

TEST(Elf, WithoutTheNoteThereIsNoPvhEntry) {
  Bytes file = elf64();
  file[0x1cc] = std::byte{'Y'};
  const auto image = parse_elf(file);
  ASSERT_TRUE(image);
  EXPECT_FALSE(image->pvh_entry);
}

struct Fault {
  const char* name;
  std::function<void(Bytes&)> make;
  const char* message;
};

void expect_refused(const std::vector<Fault>& faults, const Bytes& good,
                    const std::function<Error(const Bytes&)>& error_of) {
  for (const Fault& fault : faults) {
    Bytes file = good;
    fault.make(file);
    const Error error = error_of(file);
    EXPECT_NE(error.message().find(fault.message), std::string::npos)
        << fault.name << ": " << error.message();
  }
}

TEST(Elf, LiesAreRefused) {
  const auto put = []<class T>(std::size_t at, T value) {
    return [at, value](Bytes& file) { store_le(file.data() + at, value); };
  };
  const std::vector<Fault> faults{
      {"magic", put(0, std::uint8_t{0}), "not an ELF file"},
      {"class", put(4, std::uint8_t{9}), "ELF class 9"},
      {"byte order", put(5, std::uint8_t{2}), "little-endian"},
      {"type", put(16, std::uint16_t{3}), "ELF type 3"},
      {"machine", put(18, std::uint16_t{183}), "ELF machine 183"},
      {"header size", put(54, std::uint16_t{55}), "program header size"},
      {"too many", put(56, std::uint16_t{0xffff}), "at most 128"},
      {"no segments", put(56, std::uint16_t{0}), "cut off or empty"},
      {"table beyond the end", put(32, ~std::uint64_t{0} - 8), "cut off or empty"},
      {"segment beyond the end", put(64 + 8, std::uint64_t{0x201}), "beyond the end of the file"},
      {"segment offset wraps", put(64 + 8, ~std::uint64_t{0}), "beyond the end of the file"},
      {"less memory than file", put(64 + 40, std::uint64_t{0xff}), "only 0xff in memory"},
      {"address wraps", put(64 + 24, ~std::uint64_t{0}), "wraps around"},
      {"nothing to load", put(64, std::uint32_t{6}), "nothing to load"},
      {"cut off", [](Bytes& file) { file.resize(10); }, "cut off"},
  };
  expect_refused(faults, elf64(), [](const Bytes& file) {
    const auto image = parse_elf(file);
    return image ? Error(0, "accepted") : image.error();
  });
}

TEST(Elf, NotesThatLieAreNotFollowed) {
  for (std::size_t at : {0x1c0U, 0x1c4U}) {
    Bytes file = elf64();
    store_le(file.data() + at, std::uint32_t{0xfffffffd});
    const auto image = parse_elf(file);
    ASSERT_TRUE(image);
    EXPECT_FALSE(image->pvh_entry);
  }
}

TEST(Elf, EveryTruncationIsSafe) {
  const Bytes whole = elf64();
  for (std::size_t size = 0; size < whole.size(); ++size) {
    (void)parse_elf(std::span(whole).first(size));
  }
}

Bytes bzimage() {
  Bytes file(0x2000);
  const auto put = [&file]<class T>(std::size_t at, T value) { store_le(file.data() + at, value); };
  put(0x1f1, std::uint8_t{3});
  put(0x1fe, std::uint16_t{0xaa55});
  put(0x200, std::uint16_t{0x6aeb});
  put(0x202, std::uint32_t{0x53726448});
  put(0x206, std::uint16_t{0x020f});
  put(0x211, std::uint8_t{1});
  put(0x214, std::uint32_t{0x100000});
  put(0x22c, std::uint32_t{0x7fffffff});
  put(0x236, std::uint16_t{1});
  put(0x238, std::uint32_t{2047});
  put(0x260, std::uint32_t{0x3000000});
  return file;
}

TEST(BzImage, ReadsTheHeader) {
  const auto image = parse_bzimage(bzimage());
  ASSERT_TRUE(image) << image.error().message();
  EXPECT_EQ(image->protocol, 0x020f);
  EXPECT_EQ(image->kernel_offset, 4U * 512);
  EXPECT_EQ(image->kernel_size, 0x2000U - 4 * 512);
  EXPECT_EQ(image->load_address, 0x100000U);
  EXPECT_EQ(image->init_size, 0x3000000U);
  EXPECT_EQ(image->initrd_max, 0x7fffffffU);
  EXPECT_EQ(image->command_line_max, 2047U);
  EXPECT_EQ(image->header_end, 0x202U + 0x6a);
  EXPECT_TRUE(image->has_64bit_entry);
}

TEST(BzImage, NoSetupSectorsMeansFour) {
  Bytes file = bzimage();
  file[0x1f1] = std::byte{0};
  EXPECT_EQ(parse_bzimage(file)->kernel_offset, 5U * 512);
}

TEST(BzImage, LiesAreRefused) {
  const auto put = []<class T>(std::size_t at, T value) {
    return [at, value](Bytes& file) { store_le(file.data() + at, value); };
  };
  const std::vector<Fault> faults{
      {"flag", put(0x1fe, std::uint16_t{0}), "not a Linux bzImage"},
      {"magic", put(0x202, std::uint32_t{0}), "not a Linux bzImage"},
      {"old", put(0x206, std::uint16_t{0x0205}), "2.05 is older"},
      {"zImage", put(0x211, std::uint8_t{0}), "loads low"},
      {"header length", put(0x201, std::uint8_t{0x10}), "setup header ends at"},
      {"no code", put(0x1f1, std::uint8_t{15}), "cut off"},
      {"short", [](Bytes& file) { file.resize(0x230); }, "not a Linux bzImage"},
  };
  expect_refused(faults, bzimage(), [](const Bytes& file) {
    const auto image = parse_bzimage(file);
    return image ? Error(0, "accepted") : image.error();
  });
}

}  // namespace
}  // namespace platter::run
