// Headers of formats without a driver: known by their start, never taken for a raw disk, never
// written into a raw disk whose format was guessed.
#include "block/node/foreign_format.h"

#include "block/adapters/memory.h"
#include "block/node/registry.h"
#include "unit/node/support.h"

namespace platter {
namespace {

using namespace testing;
using namespace std::string_view_literals;

struct Header {
  std::string_view format;
  std::string bytes;
};

std::vector<Header> headers() {
  return {
      {"vmdk", "KDMV"},
      {"vmdk", "COWD"},
      {"vmdk", "# Disk DescriptorFile\nversion=1\n"},
      {"vmdk", "#\r\n\r\n  \r\n \nversion=3\r\n"},
      {"vmdk", "\r#\nversion=2\n"},
      {"vdi", std::string(64, 't') + "\x7f\x10\xda\xbe"},
      {"vpc", "conectix"},
      {"vhdx", "vhdxfile"},
      {"qed", std::string("QED\0"sv)},
      {"luks", "LUKS\xba\xbe"},
      {"parallels", "WithoutFreeSpace"},
      {"parallels", "WithouFreSpacExt"},
      {"bochs", std::string("Bochs Virtual HD Image\0"sv)},
      {"cloop", "#!/bin/sh\n#V2.0 Format\nmodprobe cloop file=$0"},
      {"qcow", std::string("QFI\xfb\0\0\0\1"sv)},
  };
}

std::optional<std::string_view> format_of(std::string_view text) {
  return foreign_format(std::as_bytes(std::span(text)));
}

// In a block of its own size, so that a sanitizer sees a read beyond it.
std::optional<std::string_view> format_of_part(std::string_view text) {
  const std::vector<char> exact(text.begin(), text.end());
  return foreign_format(std::as_bytes(std::span(exact)));
}

TEST(ForeignFormat, KnowsEachByItsStart) {
  for (const Header& header : headers()) {
    EXPECT_EQ(format_of(header.bytes), header.format) << header.bytes;
    EXPECT_EQ(format_of(header.bytes + std::string(2000, '\0')), header.format) << header.bytes;
  }
}

TEST(ForeignFormat, AnythingShorterIsNone) {
  EXPECT_EQ(format_of_part(""), std::nullopt);
  for (const Header& header : headers()) {
    for (std::size_t length = 0; length < header.bytes.size(); ++length) {
      EXPECT_EQ(format_of_part(header.bytes.substr(0, length)), std::nullopt)
          << header.format << ' ' << length;
    }
  }
}

TEST(ForeignFormat, WhatOnlyResemblesOneIsNone) {
  for (const std::string_view text :
       {"version=4\n"sv, "version=1"sv, "version=1 \n"sv, " version=1\n"sv, "x\nversion=1\n"sv,
        "#version=1\n"sv, "# without an end"sv, "  \r"sv, " "sv, "\r"sv, "QFI\xfb\0\0\0\2"sv,
        "xKDMV"sv, "Bochs Virtual HD Images"sv, "LUKS\xba\xbf"sv}) {
    EXPECT_EQ(format_of_part(text), std::nullopt) << text;
  }
}

TEST(ForeignFormat, ADiskImageOfAppleGoesByItsName) {
  EXPECT_EQ(foreign_format({}, "a.dmg"), "dmg");
  EXPECT_EQ(foreign_format({}, ".dmg"), std::nullopt);
  EXPECT_EQ(foreign_format({}, "a.dmg.raw"), std::nullopt);
}

class ForeignHead : public ::testing::Test {
 protected:
  void SetUp() override { make_memory_disk("foreign", 8192); }
  void TearDown() override { remove_memory_disk("foreign"); }

  static Result<Edge> open(std::string format) {
    OpenRequest request;
    request.filename = "memory:foreign";
    request.format = std::move(format);
    request.flags.read_only = false;
    request.permissions = Permissions::writer();
    return run([&] { return open_node(request); });
  }
  static void close(Edge& edge) {
    EXPECT_OK(run([&] { return edge.detach(); }));
  }
};

TEST_F(ForeignHead, IsNotTakenForARawDisk) {
  for (const Header& header : headers()) {
    if (find_driver(header.format)) continue;  // a driver of its own knows better
    auto named = open("raw");
    ASSERT_OK(named);
    EXPECT_OK(run([&] { return (*named)->write_zeroes(0, 4096, {}); }));
    EXPECT_OK(write_bytes(**named, 0, std::as_bytes(std::span(header.bytes))));
    close(*named);
    auto guessed = open("");
    EXPECT_EQ(message_of(guessed),
              fmt::format("Could not open 'memory:foreign': 'memory:foreign' is a {} image, a "
                          "format that is not supported",
                          header.format));
    if (guessed) close(*guessed);
  }
}

TEST_F(ForeignHead, IsNotWrittenIntoADiskOfGuessedFormat) {
  for (const Header& header : headers()) {
    auto edge = open("");
    ASSERT_OK(edge);
    ASSERT_TRUE((*edge)->probed());
    EXPECT_OK(write_bytes(**edge, 0, filled(4096, 0xff)));
    const auto bytes = std::as_bytes(std::span(header.bytes));
    const auto refused = write_bytes(**edge, 0, bytes);
    EXPECT_EQ(refused ? 0 : refused.error().code(), EPERM) << header.format << header.bytes;
    // Nor piece by piece.
    const std::size_t most =
        header.format == "qcow" ? 3 : bytes.size() - 1;  // (qcow2 has its start)
    EXPECT_OK(write_bytes(**edge, 0, bytes.first(most)));
    EXPECT_FALSE(write_bytes(**edge, most, bytes.subspan(most))) << header.format << header.bytes;
    EXPECT_OK(write_bytes(**edge, 4096, bytes));
    close(*edge);
  }
}

}  // namespace
}  // namespace platter
