// C11, C12, C13, C14: lying refcounts and overlaps, zeroes over everything, handing over, and two
// users of one image.
#include <fmt/format.h>
#include <gmock/gmock.h>

#include "block/base/bytes.h"
#include "formats/qcow2/driver.h"
#include "unit/qcow2/engine_support.h"

namespace platter::qcow2::scenarios {
namespace {

using namespace qcow2::testing;  // NOLINT: helpers of these tests

constexpr std::uint64_t kScenarioCluster = 4096;

Task<std::vector<std::byte>> get(BlockNode& node, std::uint64_t offset, std::size_t size) {
  std::vector<std::byte> data(size);
  auto read = co_await node.read(offset, iov(data));
  EXPECT_TRUE(read) << (read ? "" : read.error().message());
  co_return data;
}

std::uint64_t stored_word(const MemoryDisk& disk, std::uint64_t at) {
  std::byte word[8];
  disk.read(at, IoVec(std::span(word)));
  return load_be<std::uint64_t>(word);
}

bool dirty_on(const MemoryDisk& disk) {
  return (stored_word(disk, 72) & incompatible::kDirty) != 0;
}

// C11 --------------------------------------------------------------------------------------------

// The places of an image's structures, by name.
std::vector<std::pair<std::string, std::uint64_t>> structures(const MemoryDisk& disk) {
  const std::uint64_t refcount_table = stored_word(disk, 48);
  const std::uint64_t l1 = stored_word(disk, 40);
  return {{"header", 0},
          {"refcount table", refcount_table},
          {"refcount block", stored_word(disk, refcount_table)},
          {"L1 table", l1},
          {"L2 table", l1_offset(stored_word(disk, l1))}};
}

Task<void> fill_first(const MemoryImage& image) {
  auto edge = co_await image.open();
  CO_OK(edge);
  auto written = co_await fill(**edge, 0, 16 * kScenarioCluster, 1);
  CO_OK(written);
  auto closed = co_await edge->detach();
  CO_OK(closed);
}

// As much as there are free clusters, and more.
Task<void> write_on(const MemoryImage& image, std::vector<std::uint64_t>& acknowledged) {
  auto edge = co_await image.open();
  if (!edge) co_return;
  for (std::uint64_t i = 32; i < 96; ++i) {
    auto written = co_await fill(**edge, i * kScenarioCluster, kScenarioCluster, 2);
    if (written) acknowledged.push_back(i);
  }
  auto closed = co_await edge->detach();
  static_cast<void>(closed);
}

Task<void> expect_kept(const MemoryImage& image, std::vector<std::uint64_t> acknowledged) {
  auto edge = co_await image.open(false);
  CO_OK(edge);
  auto first = co_await get(**edge, 0, 16 * kScenarioCluster);
  EXPECT_EQ(first, filled(16 * kScenarioCluster, 1));
  for (const std::uint64_t i : acknowledged) {
    auto data = co_await get(**edge, i * kScenarioCluster, kScenarioCluster);
    EXPECT_EQ(data, filled(kScenarioCluster, 2)) << i;
  }
  auto closed = co_await edge->detach();
  CO_OK(closed);
}

TEST(C11, AStructureWithRefcountZeroIsNeverHandedOut) {
  for (std::size_t which = 0; which < 5; ++which) {
    MemoryImage image("c11", 1 << 20, "cluster_size=4k");
    run([&] { return fill_first(image); });
    MemoryDisk& disk = image.disk();
    const auto [name, place] = structures(disk)[which];
    SCOPED_TRACE(name);
    const std::uint64_t block = structures(disk)[2].second;
    std::byte zero[2] = {};
    disk.write(block + place / kScenarioCluster * 2, IoVec(std::span(zero)));
    std::vector<std::uint64_t> acknowledged;
    run([&] { return write_on(image, acknowledged); });
    run([&] { return expect_kept(image, acknowledged); });
  }
}

TEST(C11, DataThatOverlapsAStructureIsNotWrittenThere) {
  for (std::size_t which = 0; which < 5; ++which) {
    MemoryImage image("c11", 1 << 20, "cluster_size=4k");
    run([&] { return fill_first(image); });
    MemoryDisk& disk = image.disk();
    const auto all = structures(disk);
    const auto [name, place] = all[which];
    SCOPED_TRACE(name);
    std::byte entry[8];
    store_be(entry, place | kCopied | (place == 0 ? kZeroBit : 0));
    disk.write(all[4].second, IoVec(std::span(entry)));
    const auto before = [&] {
      std::vector<std::byte> bytes(kScenarioCluster);
      disk.read(place, IoVec(std::span(bytes)));
      return bytes;
    };
    // (The header's corrupt bit may be set.)
    const auto untouched = before();
    run([&]() -> Task<void> {
      auto edge = co_await image.open();
      CO_OK(edge);
      auto written = co_await fill(**edge, 0, kScenarioCluster, 2);
      EXPECT_EQ(written.has_value(), place == 0) << "an entry that names no cluster gets one";
      if (!written) {
        // "active L1 table", "refcount block", ...
        EXPECT_THAT(written.error().message(), ::testing::HasSubstr("(overlaps with "));
        EXPECT_THAT(written.error().message(), ::testing::EndsWith(std::string(name) + ")"));
      }
      auto closed = co_await edge->detach();
      static_cast<void>(closed);
    });
    if (place != 0 && which != 4) {
      EXPECT_EQ(before(), untouched);
    }
  }
}

// C12 --------------------------------------------------------------------------------------------

enum class Below { kBacking, kPacked, kPreallocatedZero, kData };

// The disk's state before: the backing file's bytes are 0xbb, the overlay's own 0x11 or 0.
Task<Result<int>> lay(BlockNode& node, Below below, std::uint64_t cluster) {
  if (below == Below::kBacking) co_return 0xbb;
  if (below == Below::kPreallocatedZero) {
    auto done = co_await fill(node, 0, 4 * cluster, 0x11);
    if (done) done = co_await node.write_zeroes(0, 4 * cluster, ZeroFlags{});
    PLATTER_CO_TRY(done);
    co_return 0;
  }
  auto data = filled(4 * cluster, 0x11);
  const WriteFlags flags{.compressed = below == Below::kPacked};
  auto done = co_await node.write(0, iov(data), flags);
  PLATTER_CO_TRY(done);
  co_return 0x11;
}

// Whole clusters with parts before and behind; or a few subclusters' worth amid one.
struct Stretch {
  std::uint64_t offset = 0;
  std::uint64_t length = 0;
};

Task<void> zero_over(const MemoryImage& image, Below below, std::uint64_t cluster, Stretch stretch,
                     bool discard, bool unmap) {
  auto edge = co_await image.open(true, "discard=unmap");
  CO_OK(edge);
  BlockNode& node = **edge;
  auto value = co_await lay(node, below, cluster);
  CO_OK(value);
  Result<void> done;
  if (discard) {
    done = co_await node.discard(stretch.offset, stretch.length);
  } else {
    const ZeroFlags flags{.may_unmap = unmap};
    done = co_await node.write_zeroes(stretch.offset, stretch.length, flags);
  }
  CO_OK(done);
  auto bytes = co_await get(node, 0, 4 * cluster);
  const auto old = static_cast<std::byte>(*value);
  for (std::uint64_t i = 0; i < bytes.size(); ++i) {
    const bool inside = i >= stretch.offset && i < stretch.offset + stretch.length;
    const bool zero = bytes[i] == std::byte{0};
    // What a discard leaves out keeps its bytes. Never does anything show that was not the disk's.
    const bool right = !inside ? bytes[i] == old : discard ? zero || bytes[i] == old : zero;
    if (right) continue;
    ADD_FAILURE() << fmt::format("byte {:#x} is {:#x}", i, static_cast<int>(bytes[i]));
    break;
  }
  auto closed = co_await edge->detach();
  CO_OK(closed);
  auto again = co_await image.open(false);
  CO_OK(again);
  auto later = co_await get(**again, 0, 4 * cluster);
  EXPECT_EQ(later, bytes) << "it reads otherwise when it is opened anew";
  auto checking = expect_clean(**again);
  co_await checking;
  closed = co_await again->detach();
  CO_OK(closed);
}

class C12 : public ::testing::TestWithParam<const char*> {};

TEST_P(C12, ZeroesReadAsZeroesOverEverything) {
  const bool subclusters = std::string_view(GetParam()).contains("extended");
  const std::uint64_t cluster = subclusters ? 16384 : 4096;
  const Stretch stretches[] = {{0, 4 * cluster},
                               {cluster, cluster},
                               {cluster / 2, 2 * cluster},
                               {cluster + 512, 1024},
                               {cluster - 512, cluster + 1024}};
  make_memory_disk("c12-base", 0);
  const auto base = filled(8 * cluster, 0xbb);
  find_memory_disk("c12-base")->write(0, IoVec::of_const(base));
  for (const Below below :
       {Below::kBacking, Below::kPacked, Below::kPreallocatedZero, Below::kData}) {
    for (const Stretch& stretch : stretches) {
      for (const int how : {0, 1, 2}) {
        SCOPED_TRACE(fmt::format("{} at {:#x}, {:#x} bytes, over {}",
                                 how == 0 ? "discard" : "zeroes", stretch.offset, stretch.length,
                                 static_cast<int>(below)));
        MemoryImage image(
            "c12", 8 * cluster,
            std::string(GetParam()) + ",backing_file=memory:c12-base,backing_fmt=raw");
        run([&] { return zero_over(image, below, cluster, stretch, how == 0, how == 2); });
      }
    }
  }
  remove_memory_disk("c12-base");
}

INSTANTIATE_TEST_SUITE_P(All, C12,
                         ::testing::Values("cluster_size=4k,compat=0.10", "cluster_size=4k",
                                           "cluster_size=16k,extended_l2=on"),
                         [](const auto& one) {
                           return std::string(one.index == 0   ? "Version2"
                                              : one.index == 1 ? "Version3"
                                                               : "Subclusters");
                         });

// C13 --------------------------------------------------------------------------------------------

Task<void> hand_over(const MemoryImage& image, const MemoryImage& copy) {
  auto edge = co_await image.open();
  CO_OK(edge);
  BlockNode& node = **edge;
  for (std::uint64_t i = 0; i < 20; ++i) {
    auto written = co_await fill(node, i * 3 * kScenarioCluster, kScenarioCluster / 2, 1);
    CO_OK(written);
  }
  // A pause: what is written is flushed, and nothing runs.
  auto flushed = co_await node.flush();
  CO_OK(flushed);
  auto draining = node.drain();
  co_await draining;
  std::vector<std::byte> file(image.disk().size());
  image.disk().read(0, iov(file));
  copy.disk().resize(file.size());
  copy.disk().write(0, iov(file));
  node.undrain();
  EXPECT_EQ(dirty_on(copy.disk()), static_cast<Qcow2Driver&>(node.driver()).core().header.dirty());
  // The original goes on; the copy is what it was.
  auto written = co_await fill(node, 0, kScenarioCluster, 2);
  CO_OK(written);

  auto second = co_await copy.open();
  CO_OK(second);
  for (std::uint64_t i = 0; i < 20; ++i) {
    auto data = co_await get(**second, i * 3 * kScenarioCluster, kScenarioCluster / 2);
    EXPECT_EQ(data, filled(kScenarioCluster / 2, 1)) << i;
  }
  auto checking = expect_clean(**second);
  co_await checking;
  auto closed = co_await second->detach();
  CO_OK(closed);
  EXPECT_FALSE(dirty_on(copy.disk()));
  closed = co_await edge->detach();
  CO_OK(closed);
}

TEST(C13, ACopyMadeInAPauseHoldsEveryCompletedWrite) {
  for (const char* options : {"cluster_size=4k", "cluster_size=4k,lazy_refcounts=on"}) {
    SCOPED_TRACE(options);
    MemoryImage image("c13-original", 1 << 20, options);
    MemoryImage copy("c13-copy", 1 << 20, options);
    run([&] { return hand_over(image, copy); });
  }
}

// C14 --------------------------------------------------------------------------------------------

Task<void> close_first_of_two(const MemoryImage& image) {
  auto first = co_await image.open();
  CO_OK(first);
  const Permissions rights{.need = Permissions::writer().need, .shared = perm::kAll};
  auto shared = co_await first->set_permissions(rights);
  CO_OK(shared);
  auto second = co_await Edge::attach(first->node(), "another user", rights);
  CO_OK(second);
  auto written = co_await fill(**second, 0, kScenarioCluster, 1);
  CO_OK(written);
  auto flushed = co_await (*second)->flush();
  CO_OK(flushed);
  EXPECT_TRUE(dirty_on(image.disk())) << "counts are lazy: this test needs the bit";
  auto closed = co_await first->detach();
  CO_OK(closed);
  EXPECT_TRUE(dirty_on(image.disk())) << "the other user still writes";
  written = co_await fill(**second, kScenarioCluster, kScenarioCluster, 2);
  CO_OK(written);
  flushed = co_await (*second)->flush();
  CO_OK(flushed);
  EXPECT_TRUE(dirty_on(image.disk()));
  closed = co_await second->detach();
  CO_OK(closed);
  EXPECT_FALSE(dirty_on(image.disk()));
  auto again = co_await image.open(false);
  CO_OK(again);
  auto checking = expect_clean(**again);
  co_await checking;
  auto data = co_await get(**again, kScenarioCluster, kScenarioCluster);
  EXPECT_EQ(data, filled(kScenarioCluster, 2));
  closed = co_await again->detach();
  CO_OK(closed);
}

TEST(C14, TheDirtyBitStaysUntilTheLastUserCloses) {
  MemoryImage image("c14", 1 << 20, "cluster_size=4k,lazy_refcounts=on");
  run([&] { return close_first_of_two(image); });
}

}  // namespace
}  // namespace platter::qcow2::scenarios
