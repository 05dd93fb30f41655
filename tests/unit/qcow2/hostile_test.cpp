// Images that lie, one lie each: opening, checking, mapping and reading them ends soon, in little
// memory, with an error that names what is wrong. Names of tests: numbers of the project's list of
// hostile input (I: image parsing, X: exhaustion).
#include <gmock/gmock.h>
#include <sys/resource.h>

#include <ctime>
#include <functional>

#include "block/node/dirty_bitmap.h"
#include "block/node/node.h"
#include "formats/qcow2/codec.h"
#include "unit/qcow2/image_support.h"

namespace platter::qcow2 {
namespace {

using namespace platter::qcow2::testing;
using ::testing::HasSubstr;

constexpr std::uint64_t kMiB = 1 << 20;
constexpr std::uint64_t kRefcountTable = 0x10000;
constexpr std::uint64_t kRefcountBlock = 0x20000;
constexpr std::uint64_t kL1 = 0x30000;
constexpr std::uint64_t kL2 = 0x40000;
constexpr std::uint64_t kData = 0x50000;

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kSanitized = true;
#elif defined(__has_feature)
constexpr bool kSanitized = __has_feature(address_sanitizer) || __has_feature(thread_sanitizer);
#else
constexpr bool kSanitized = false;
#endif
#if defined(NDEBUG)
constexpr double kSeconds = kSanitized ? 60 : 2;  // 1 on the machines we know
#else
constexpr double kSeconds = kSanitized ? 60 : 10;  // unoptimised
#endif

double cpu_seconds() {
  timespec now{};
  ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) / 1e9;
}
std::uint64_t peak_memory() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  return static_cast<std::uint64_t>(usage.ru_maxrss) * 1024;
}

class Hostile : public ::testing::Test {
 protected:
  void SetUp() override { use("preallocation=metadata", kMiB); }
  void TearDown() override { remove_memory_disk("hostile"); }

  void use(std::string_view options, std::uint64_t size) {
    remove_memory_disk("hostile");
    disk_ = make_memory_disk("hostile", 0);
    Options parsed = *Options::parse_keyval(options);
    auto plan = plan_create(parsed, size);
    ASSERT_OK(plan);
    header_ = plan->header;
    const NodePtr node = make_memory_node("image", disk_);
    ASSERT_OK(run([&] { return write_image(*node, *plan); }));
  }
  void put(std::uint64_t offset, std::span<const std::byte> bytes) {
    disk_->write(offset, IoVec::of_const(bytes));
  }
  void put64(std::uint64_t offset, std::uint64_t value) {
    std::byte bytes[8];
    store_be(bytes, value);
    put(offset, bytes);
  }
  void put32(std::uint64_t offset, std::uint32_t value) {
    std::byte bytes[4];
    store_be(bytes, value);
    put(offset, bytes);
  }
  void put16(std::uint64_t offset, unsigned value) {
    std::byte bytes[2];
    store_be(bytes, static_cast<std::uint16_t>(value));
    put(offset, bytes);
  }
  void put_header() { put(0, *encode_header(header_)); }

  // Everything that users do with an image that they were given. All errors and findings, one line
  // each.
  static Task<std::string> look(Edge& edge) {
    std::string said;
    BlockNode& node = *edge;
    CheckRequest request;
    request.report = [&said](std::string_view line) {
      if (said.size() < 100000) said += "check: " + std::string(line) + "\n";
    };
    auto checked = co_await node.driver().checker()->check(request);
    if (!checked) said += "check: " + checked.error().message() + "\n";
    const FormatInfo info = node.driver().info();
    static_cast<void>(info);
    std::uint64_t offset = 0;
    for (unsigned pieces = 0; offset < node.size() && pieces < 1000; ++pieces) {
      auto extent = co_await chain_extent(node, nullptr, offset, node.size() - offset);
      if (!extent) {
        said += "map: " + extent.error().message() + "\n";
        break;
      }
      offset += extent->length;
    }
    Buffer buffer(64 << 10);
    for (offset = 0; offset < std::min<std::uint64_t>(node.size(), 4 * kMiB);) {
      const std::uint64_t n = std::min<std::uint64_t>(buffer.size(), node.size() - offset);
      const IoVec iov(buffer.span(0, n));
      auto read = co_await node.read(offset, iov);
      if (!read) said += "read: " + read.error().message() + "\n";
      offset += n;
    }
    co_return said;
  }
  static Task<std::string> open_and_look() {
    OpenRequest request;
    request.filename = "memory:hostile";
    request.format = "qcow2";
    request.flags.no_backing = true;
    auto edge = co_await open_node(std::move(request));
    if (!edge) co_return "open: " + edge.error().message() + "\n";
    std::string said = co_await look(*edge);
    auto closed = co_await edge->detach();
    if (!closed) said += "close: " + closed.error().message() + "\n";
    co_return said;
  }

  // What was said, with the bounds asserted.
  std::string outcome() {
    const double start = cpu_seconds();
    const std::uint64_t memory = peak_memory();
    const std::string said = run([] { return open_and_look(); });
    EXPECT_LT(cpu_seconds() - start, kSeconds);
    if (!kSanitized) {
      EXPECT_LT(peak_memory() - memory, 64 * kMiB + disk_->allocated());
    }
    return said;
  }

  std::shared_ptr<MemoryDisk> disk_;
  Header header_;
};

TEST_F(Hostile, AnHonestImageIsQuiet) { EXPECT_EQ(outcome(), ""); }

TEST_F(Hostile, I1HeaderLength) {
  put32(100, 0xfffffff8);
  EXPECT_THAT(outcome(), HasSubstr("header_length is 4294967288"));
  put32(100, 105);
  EXPECT_THAT(outcome(), HasSubstr("header_length 105"));
}

TEST_F(Hostile, I2Extensions) {
  put32(116, 0xffffffff);
  EXPECT_THAT(outcome(), HasSubstr("Header extension too large"));
  header_.backing_file = "b";
  header_.extensions.unknown = {{0x11111111, std::vector<std::byte>(16)}};
  put_header();
  put32(112 + 8 + 8 * 48 + 4, 64);
  EXPECT_THAT(outcome(), HasSubstr("Header extension too large: type 0x11111111"));
}

TEST_F(Hostile, I3RefcountTable) {
  put32(56, 0x7fffffff);
  EXPECT_THAT(outcome(), HasSubstr("Reference count table too large"));
  put32(56, 0);
  EXPECT_THAT(outcome(), HasSubstr("does not contain a reference count table"));
  put32(56, 1);
  put64(48, 0xffffffffffff0000);
  EXPECT_THAT(outcome(), HasSubstr("Reference count table offset invalid"));
  put64(48, 0x10200);
  EXPECT_THAT(outcome(), HasSubstr("Reference count table offset invalid: 0x10200"));
}

TEST_F(Hostile, I4Snapshots) {
  put64(64, 0x50000);
  put32(60, 0xffffffff);
  EXPECT_THAT(outcome(), HasSubstr("Snapshot table too large: nb_snapshots is 4294967295"));
  put32(60, 65536);
  EXPECT_THAT(outcome(), HasSubstr("Snapshot table lies beyond the end of the file"));
  put32(60, 1);
  put64(64, 0x50001);
  EXPECT_THAT(outcome(), HasSubstr("Snapshot table offset invalid: 0x50001"));
  put64(64, 0xfffffffffff00000);
  EXPECT_THAT(outcome(), HasSubstr("Snapshot table offset invalid"));
  put64(64, 0x50000);
  put32(0x50000 + 36, 1025);
  EXPECT_THAT(outcome(), HasSubstr("Too much extra metadata in snapshot table entry 0"));
  put32(0x50000 + 36, 16);
  put64(64, 0x140000);
  put32(0x140000 + 12, 0xffffffff);
  EXPECT_THAT(outcome(), HasSubstr("Snapshot table entry 0 lies beyond the end of the file"));
}

TEST_F(Hostile, I5L1Tables) {
  put32(36, 0);
  EXPECT_THAT(outcome(), HasSubstr("L1 table is too small: l1_size is 0"));
  put32(36, 0xffffffff);
  EXPECT_THAT(outcome(), HasSubstr("Active L1 table too large"));
  put32(36, 1);
  put64(40, 0x30008);
  EXPECT_THAT(outcome(), HasSubstr("Active L1 table offset invalid: 0x30008"));
  put64(40, 0xffffffffffff0000);
  EXPECT_THAT(outcome(), HasSubstr("Active L1 table offset invalid"));
}

TEST_F(Hostile, I6BackingName) {
  put64(8, 0x1000);
  put32(16, 1024);
  EXPECT_THAT(outcome(), HasSubstr("backing_file_size is 1024"));
  put32(16, 10);
  put64(8, 0x10000 - 5);
  EXPECT_THAT(outcome(), HasSubstr("backing_file_size is 10, at most 5"));
  put64(8, 8);
  EXPECT_THAT(outcome(), HasSubstr("Invalid backing file offset 8"));
}

TEST_F(Hostile, I7EntriesFarAway) {
  put64(kL2, kCopied | (std::uint64_t{1} << 55));
  const std::string said = outcome();
  EXPECT_THAT(said, HasSubstr("offset 0x80000000000000 size 0x10000"));
  put64(kL1, kCopied | (std::uint64_t{1} << 55));
  EXPECT_THAT(outcome(), HasSubstr("offset 0x80000000000000 size 0x10000"));
}

TEST_F(Hostile, I8FieldValues) {
  put32(20, 31);
  EXPECT_THAT(outcome(), HasSubstr("2^31"));
  put32(20, 16);
  put32(96, 63);
  EXPECT_THAT(outcome(), HasSubstr("refcount_order is 63"));
  put32(96, 4);
  put32(32, 9);
  EXPECT_THAT(outcome(), HasSubstr("Unsupported encryption method 9"));
  put32(32, 0);
  put64(72, std::uint64_t{1} << 63);
  EXPECT_THAT(outcome(), HasSubstr("Unsupported qcow2 feature(s): Unknown incompatible feature"));
  put64(72, 8);
  put32(104, 0xff000000);
  EXPECT_THAT(outcome(), HasSubstr("unknown compression type: 255"));
  put32(4, 4);
  EXPECT_THAT(outcome(), HasSubstr("Unsupported qcow2 version 4"));
}

TEST_F(Hostile, I9L1IsL2) {
  put64(kL1, kCopied | kL1);
  EXPECT_THAT(outcome(), HasSubstr("ERROR cluster 3 refcount=1 reference="));
}
TEST_F(Hostile, I9L2IsData) {
  put64(kL2, kCopied | kL2);
  EXPECT_THAT(outcome(), HasSubstr("ERROR cluster 4 refcount=1 reference=2"));
}
TEST_F(Hostile, I9RefcountBlockIsL1) {
  put64(kRefcountTable, kL1);
  EXPECT_THAT(outcome(), HasSubstr("ERROR refcount block 0 refcount=2"));
}
TEST_F(Hostile, I9RefcountBlockIsTheHeader) {
  put64(kRefcountTable + 8, 0x200);
  EXPECT_THAT(outcome(), HasSubstr("refcount block 1 is not cluster aligned"));
}
TEST_F(Hostile, I9UnalignedL2) {
  put64(kL1, kCopied | (kL2 + 0x200));
  EXPECT_THAT(outcome(), HasSubstr("l2_offset=40200: Table is not cluster aligned"));
}
TEST_F(Hostile, I9TwoL1EntriesWithOneL2) {
  use("preallocation=metadata,cluster_size=512", kMiB);
  put64(header_.l1_table_offset + 8, kCopied | (header_.l1_table_offset + 32 * 8 / 512 * 512 + 512));
  EXPECT_THAT(outcome(), HasSubstr("ERROR cluster"));
}

TEST_F(Hostile, I10CompressedGarbage) {
  const std::vector<std::byte> garbage(4096, std::byte{0xff});
  put(kData, garbage);
  put64(kL2, compressed_entry(header_.geometry(), kData, 4096));
  EXPECT_THAT(outcome(), HasSubstr("read: "));
}
TEST_F(Hostile, I10CompressedBeyondTheEnd) {
  put64(kL2, compressed_entry(header_.geometry(), std::uint64_t{1} << 40, 4096));
  EXPECT_THAT(outcome(), HasSubstr("exceeding the end of the file"));
}
TEST_F(Hostile, I10CompressedBomb) {
  const std::vector<std::byte> zeroes(2 << 20);
  std::vector<std::byte> packed(65536);
  auto size = deflate_cluster(CompressionType::kZlib, zeroes, packed);
  ASSERT_OK(size);
  put(kData, packed);
  put64(kL2, compressed_entry(header_.geometry(), kData, *size));
  EXPECT_THAT(outcome(), HasSubstr("read: "));
}

TEST_F(Hostile, I11Bitmaps) {
  header_.autoclear_features = autoclear::kBitmaps;
  const auto with = [&](BitmapsExtension extension) {
    header_.extensions.bitmaps = extension;
    put_header();
    return outcome();
  };
  EXPECT_THAT(with({65536, 64, kData}), HasSubstr("65536 bitmaps"));
  EXPECT_THAT(with({1, std::uint64_t{1} << 62, kData}), HasSubstr("directory size"));
  EXPECT_THAT(with({1, 64, kData + 1}), HasSubstr("invalid bitmap directory offset"));
  EXPECT_THAT(with({1, 64, std::uint64_t{1} << 50}), HasSubstr("exceeding the end of the file"));
  EXPECT_THAT(with({1, 64, kData}), HasSubstr("bitmap directory entry 0"));
}

// The directory of one enabled bitmap at kDirectory, its table behind it; each lie is told by what
// opens the image for writing, or uses the bitmap's contents.
TEST_F(Hostile, I11BitmapFields) {
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
  EXPECT_THAT(with([](BitmapEntry& e) { e.table_size = 33; }), HasSubstr("bitmap_table_size is 33"));
  EXPECT_THAT(with([](BitmapEntry& e) { e.table_size = 0x8000000; }), HasSubstr("table entries make"));
  EXPECT_THAT(with([](BitmapEntry& e) { e.flags = 8; }), HasSubstr("reserved flags"));
  EXPECT_THAT(with([](BitmapEntry& e) { e.granularity_bits = 8; }), HasSubstr("granularity_bits"));
  EXPECT_THAT(with([](BitmapEntry& e) { e.granularity_bits = 200; }), HasSubstr("granularity_bits"));
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
TEST_F(Hostile, X6BitmapsOfOnes) {
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

TEST_F(Hostile, I12Refcounts) {
  put16(kRefcountBlock, 0);
  EXPECT_THAT(outcome(), HasSubstr("ERROR cluster 0 refcount=0 reference=1"));
  put16(kRefcountBlock, 0xffff);
  EXPECT_THAT(outcome(), HasSubstr("Leaked cluster 0 refcount=65535 reference=1"));
}

TEST_F(Hostile, X4LargestL1AllAtOneTable) {
  use("cluster_size=2M", std::uint64_t{1} << 61);
  const std::uint64_t l2 = header_.l1_table_offset + header_.l1_table_bytes();
  std::vector<std::byte> l1(header_.l1_table_bytes());
  for (std::size_t i = 0; i < l1.size(); i += 8) store_be(l1.data() + i, l2);
  put(header_.l1_table_offset, l1);
  std::vector<std::byte> table(2 << 20);
  for (std::size_t i = 0; i < table.size(); i += 8) store_be(table.data() + i, l2);
  put(l2, table);
  EXPECT_THAT(outcome(), HasSubstr("ERROR"));
}

TEST_F(Hostile, X5SnapshotsWithMuchExtraData) {
  Snapshot s;
  s.id = "1";
  s.name = "s";
  s.unknown_extra.resize(1000);
  s.l1_table_offset = kL1;
  s.l1_size = 1;
  const auto entry = *encode_snapshot_table({s});
  std::vector<std::byte> table;
  for (unsigned i = 0; i < 61000; ++i) table.insert(table.end(), entry.begin(), entry.end());
  put(0x200000, table);
  put32(60, 61000);
  put64(64, 0x200000);
  EXPECT_THAT(outcome(), HasSubstr("L1 table overlaps other metadata"));
  put32(60, 65536);
  EXPECT_THAT(outcome(), HasSubstr("Snapshot table"));
}

TEST_F(Hostile, X6ManyBitmaps) {
  std::vector<BitmapEntry> entries(65535);
  for (std::size_t i = 0; i < entries.size(); ++i) {
    entries[i].table_offset = kL1;
    entries[i].table_size = 1;
    entries[i].name = std::to_string(i);
  }
  const auto bytes = encode_bitmap_directory(entries);
  put(0x200000, bytes);
  header_.autoclear_features = autoclear::kBitmaps;
  header_.extensions.bitmaps = BitmapsExtension{65535, bytes.size(), 0x200000};
  put_header();
  EXPECT_THAT(outcome(), HasSubstr("ERROR"));
}

TEST_F(Hostile, X8RefcountTableAllAtOneBlock) {
  std::vector<std::byte> table(8 << 20);
  for (std::size_t i = 0; i < table.size(); i += 8) store_be(table.data() + i, kRefcountBlock);
  put(0x200000, table);
  put64(48, 0x200000);
  put32(56, 128);
  EXPECT_THAT(outcome(), HasSubstr("ERROR refcount block 1 refcount=2"));
}

TEST_F(Hostile, X9EveryClusterAtTheSamePackedBytes) {
  use("preallocation=metadata", 64 * kMiB);
  std::vector<std::byte> packed(65536);
  const std::vector<std::byte> zeroes(65536);
  auto size = deflate_cluster(CompressionType::kZlib, zeroes, packed);
  ASSERT_OK(size);
  put(kData, packed);
  for (unsigned i = 0; i < 1024; ++i) {
    put64(kL2 + 8 * i, compressed_entry(header_.geometry(), kData, *size));
  }
  EXPECT_THAT(outcome(), HasSubstr("refcount=1 reference=1024"));
}

}  // namespace
}  // namespace platter::qcow2
