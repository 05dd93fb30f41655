// Bitmaps that lie: opening for writing and using their contents ends soon, in little memory, with
// an error that names what is wrong.
#include "block/node/dirty_bitmap.h"
#include "block/node/graph.h"
#include "unit/qcow2/hostile_support.h"

namespace platter::qcow2 {
namespace {

using namespace platter::qcow2::testing;

using HostileBitmaps = Hostile;

// The directory of one enabled bitmap at kDirectory, its table behind it; each lie is told by what
// opens the image for writing, or uses the bitmap's contents.
TEST_F(HostileBitmaps, I11BitmapFields) {
  constexpr std::uint64_t kDirectory = 0x200000;
  constexpr std::uint64_t kTable = 0x210000;
  constexpr std::uint64_t kBits = 0x220000;
  use("cluster_size=64k", std::uint64_t{1} << 40);  // its bitmap has two clusters of 64 KiB
  header_.autoclear_features = autoclear::kBitmaps;
  std::vector<std::byte> zeroes(0x40000);
  BitmapEntry good;
  good.table_offset = kTable;
  good.table_size = 32;
  good.granularity_bits = 16;
  good.flags = bitmap_flag::kAuto;
  good.name = "b";
  const auto place = [&](const BitmapEntry& entry) {
    put(kDirectory, zeroes);
    const auto bytes = encode_bitmap_directory({entry});
    put(kDirectory, bytes);
    header_.extensions.bitmaps = BitmapsExtension{1, bytes.size(), kDirectory};
    put_header();
  };
  const auto said = [&] {
    const double start = cpu_seconds();
    const std::uint64_t memory = peak_memory();
    std::string message;
    run([&]() -> Task<void> {
      OpenRequest request;
      request.filename = "memory:hostile";
      request.format = "qcow2";
      request.flags.read_only = false;
      request.permissions = Permissions::writer();
      auto edge = co_await open_node(std::move(request));
      if (!edge) {
        message = edge.error().message();
        co_return;
      }
      auto contents = co_await (*edge)->driver().bitmaps()->contents("b");
      if (!contents) message = contents.error().message();
      auto closed = co_await edge->detach();
      if (!closed) message += closed.error().message();
    });
    EXPECT_LT(cpu_seconds() - start, kSeconds);
    if (!kSanitized) {
      EXPECT_LT(peak_memory() - memory, 64 * kMiB);
    }
    return message;
  };
  const auto with = [&](const std::function<void(BitmapEntry&)>& lie) {
    BitmapEntry entry = good;
    lie(entry);
    place(entry);
    return said();
  };
  const auto entry_is = [&](std::uint64_t value) {
    place(good);
    put64(kTable + 8, value);
    return said();
  };
  EXPECT_EQ(with([](BitmapEntry&) {}), "");
  EXPECT_THAT(with([](BitmapEntry& e) { e.table_offset = 0; }), HasSubstr("bitmap_table_offset"));
  EXPECT_THAT(with([](BitmapEntry& e) { e.table_offset = kTable + 8; }),
              HasSubstr("bitmap_table_offset"));
  EXPECT_THAT(with([](BitmapEntry& e) { e.table_offset = std::uint64_t{1} << 50; }),
              HasSubstr("bitmap_table_offset"));
  EXPECT_THAT(with([](BitmapEntry& e) { e.table_size = 0; }), HasSubstr("bitmap_table_size"));
  EXPECT_THAT(with([](BitmapEntry& e) { e.table_size = 31; }), HasSubstr("do not cover"));
  EXPECT_THAT(with([](BitmapEntry& e) { e.table_size = 33; }),
              HasSubstr("bitmap_table_size is 33"));
  EXPECT_THAT(with([](BitmapEntry& e) { e.table_size = 0x8000000; }),
              HasSubstr("table entries make"));
  EXPECT_THAT(with([](BitmapEntry& e) { e.flags = 8; }), HasSubstr("reserved flags"));
  EXPECT_THAT(with([](BitmapEntry& e) { e.granularity_bits = 8; }), HasSubstr("granularity_bits"));
  EXPECT_THAT(with([](BitmapEntry& e) { e.granularity_bits = 200; }),
              HasSubstr("granularity_bits"));
  EXPECT_THAT(with([](BitmapEntry& e) { e.name.clear(); }), HasSubstr("name_size"));
  EXPECT_THAT(with([](BitmapEntry& e) { e.extra.resize(8); }),
              HasSubstr("extra data of unknown meaning"));
  EXPECT_EQ(with([](BitmapEntry& e) {
              e.extra.resize(8);
              e.flags |= bitmap_flag::kExtraDataCompatible;
            }),
            "");
  EXPECT_THAT(entry_is(2), HasSubstr("bitmap table entry 1 is 0x2: reserved bits are set"));
  EXPECT_THAT(entry_is(kBits | 1), HasSubstr("reserved bits are set"));
  EXPECT_THAT(entry_is(std::uint64_t{1} << 63), HasSubstr("reserved bits are set"));
  EXPECT_THAT(entry_is(kBits + 512), HasSubstr("is not a multiple of the cluster size"));
  EXPECT_THAT(entry_is(std::uint64_t{1} << 50), HasSubstr("is behind the file's end"));
  EXPECT_EQ(entry_is(1), "");
  place(good);
  for (unsigned i = 0; i < 32; ++i) put64(kTable + 8 * i, kBits);
  EXPECT_THAT(said(), HasSubstr("two bitmap table entries name the cluster at 0x220000"));
}

// Many bitmaps that are all enabled and all ones.
TEST_F(HostileBitmaps, X6BitmapsOfOnes) {
  use("cluster_size=64k", std::uint64_t{1} << 40);
  std::vector<BitmapEntry> entries(3000);
  for (std::size_t i = 0; i < entries.size(); ++i) {
    entries[i].table_offset = 0x300000;
    entries[i].table_size = 32;
    entries[i].granularity_bits = 16;
    entries[i].flags = bitmap_flag::kAuto;
    entries[i].name = std::to_string(i);
  }
  const auto bytes = encode_bitmap_directory(entries);
  put(0x200000, bytes);
  for (unsigned i = 0; i < 32; ++i) put64(0x300000 + 8 * i, 1);
  header_.autoclear_features = autoclear::kBitmaps;
  header_.extensions.bitmaps = BitmapsExtension{3000, bytes.size(), 0x200000};
  put_header();
  const double start = cpu_seconds();
  const std::uint64_t memory = peak_memory();
  run([&]() -> Task<void> {
    OpenRequest request;
    request.filename = "memory:hostile";
    request.format = "qcow2";
    request.flags.read_only = false;
    request.permissions = Permissions::writer();
    auto edge = co_await open_node(std::move(request));
    EXPECT_FALSE(edge);
    if (!edge) {
      EXPECT_THAT(edge.error().message(), HasSubstr("the bitmaps in memory would take"));
    }
  });
  EXPECT_LT(cpu_seconds() - start, kSeconds);
  if (!kSanitized) {
    EXPECT_LT(peak_memory() - memory, 64 * kMiB);
  }
}

}  // namespace
}  // namespace platter::qcow2
