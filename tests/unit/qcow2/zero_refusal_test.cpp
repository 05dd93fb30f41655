// Zeroes that must not be written as data (no_fallback): who is refused finds everything as it was.
#include <cerrno>
#include <type_traits>

#include "formats/qcow2/driver.h"
#include "unit/qcow2/engine_support.h"

namespace platter::qcow2::zero_refusal {
namespace {

using namespace qcow2::testing;  // NOLINT: helpers of these tests

struct Range {
  std::uint64_t offset;
  std::uint64_t length;
};
static_assert(std::is_trivially_destructible_v<Range>);

std::vector<std::byte> file_of(const MemoryImage& image) {
  std::vector<std::byte> bytes(image.disk().size());
  image.disk().read(0, iov(bytes));
  return bytes;
}

Task<Result<std::vector<std::byte>>> all_of(BlockNode& node) {
  std::vector<std::byte> bytes(node.size());
  auto got = co_await node.read(0, iov(bytes));
  PLATTER_CO_TRY(got);
  co_return bytes;
}

// Whether it was done; false: refused, and nothing in the disk or in its file has changed.
Task<bool> try_to_zero(const MemoryImage& image, BlockNode& node, Range range, bool unmap) {
  const std::string what = fmt::format("{:#x}+{:#x}", range.offset, range.length);
  Result<void> flushed;
  // What one has found free to go, the next one writes.
  for (int i = 0; i < 3 && flushed; ++i) flushed = co_await node.flush();
  EXPECT_TRUE(flushed);
  auto before = co_await all_of(node);
  const std::vector<std::byte> file = file_of(image);
  const ZeroFlags flags{.may_unmap = unmap, .no_fallback = true};
  auto zeroed = co_await node.write_zeroes(range.offset, range.length, flags);
  auto after = co_await all_of(node);
  EXPECT_TRUE(before && after);
  if (!before || !after) co_return false;
  if (zeroed) {
    std::fill_n(before->begin() + static_cast<std::ptrdiff_t>(range.offset), range.length,
                std::byte{0});
  } else {
    EXPECT_EQ(zeroed.error().code(), ENOTSUP) << zeroed.error().message();
    flushed = co_await node.flush();
    EXPECT_TRUE(flushed);
    EXPECT_TRUE(file_of(image) == file) << what << ": refused, and the file has changed";
  }
  EXPECT_TRUE(*after == *before) << what << (zeroed ? ": done" : ": refused");
  co_return zeroed.has_value();
}

Task<void> refuse_at_either_end(const MemoryImage& image) {
  constexpr std::uint64_t kCluster = 4096;
  auto opened = co_await image.open();
  CO_OK(opened);
  BlockNode& node = **opened;
  auto data = pattern(8 * kCluster, 1);
  auto written = co_await node.write(0, iov(data));
  CO_OK(written);
  const Range refused[] = {
      {0, 2 * kCluster + 512},             // the tail
      {512, 2 * kCluster - 512},           // the head
      {512, 3 * kCluster},                 // both
      {512, 512},                          // a part of a cluster
      {kCluster - 512, 1024},              // of two
      {7 * kCluster + 512, 2 * kCluster},  // the head, before what reads as zeroes
      {6 * kCluster, 2 * kCluster - 512},  // a tail before it
  };
  for (const Range& range : refused) {
    bool done = co_await try_to_zero(image, node, range, false);
    EXPECT_FALSE(done) << range.offset;
    done = co_await try_to_zero(image, node, range, true);
    EXPECT_FALSE(done) << range.offset;
  }
  const Range allowed[] = {{6 * kCluster, 2 * kCluster + 512}, {0, kCluster}, {512, 512}};
  for (const Range& range : allowed) {
    bool done = co_await try_to_zero(image, node, range, false);
    EXPECT_TRUE(done) << range.offset;
  }
  auto closed = co_await opened->detach();
  CO_OK(closed);
}

TEST(ZeroRefusal, ComesBeforeAnythingIsZeroed) {
  for (const char* create : {"cluster_size=4k", "cluster_size=4k,compat=0.10"}) {
    const MemoryImage image("refusal", 16 * 4096, create);
    run([&] { return refuse_at_either_end(image); });
  }
}

// Version 2 over a backing file: the head reads as zeroes, the middle cannot.
Task<void> refuse_in_the_middle(const MemoryImage& image) {
  auto opened = co_await image.open();
  CO_OK(opened);
  BlockNode& node = **opened;
  std::vector<std::byte> zeroes(4096);
  auto written = co_await node.write(0, iov(zeroes));
  CO_OK(written);
  auto data = pattern(4096, 1);
  written = co_await node.write(4096, iov(data));
  CO_OK(written);
  bool done = co_await try_to_zero(image, node, Range{4096, 2 * 4096}, true);
  EXPECT_FALSE(done);
  done = co_await try_to_zero(image, node, Range{8 * 4096, 4 * 4096}, true);
  EXPECT_FALSE(done);
  auto closed = co_await opened->detach();
  CO_OK(closed);
}

TEST(ZeroRefusal, ComesBeforeTheStartOfAMiddleIsZeroed) {
  auto base = make_memory_disk("refusal-base", 0);
  auto shown = pattern(16 * 4096, 7);
  base->write(0, iov(shown));
  {
    const MemoryImage image(
        "refusal", 16 * 4096,
        "cluster_size=4k,compat=0.10,backing_file=memory:refusal-base,backing_fmt=raw");
    run([&] { return refuse_in_the_middle(image); });
  }
  remove_memory_disk("refusal-base");
}

struct Tally {
  unsigned done = 0;
  unsigned refused = 0;
};

// Clusters of all kinds side by side, and ranges anywhere.
Task<void> any_range(const MemoryImage& image, std::uint64_t cluster, unsigned seed, Tally& tally) {
  auto opened = co_await image.open();
  CO_OK(opened);
  BlockNode& node = **opened;
  std::mt19937 random(seed);
  const std::uint64_t size = node.size();
  for (std::uint64_t at = 0; at + cluster <= size; at += cluster) {
    auto data = pattern(cluster, static_cast<unsigned>(random()));
    std::ranges::fill(std::span(data).subspan(cluster / 2), std::byte{0});
    Result<void> done;
    switch (random() % 6) {
      case 0:
        done = co_await node.write(at, iov(data));
        break;
      case 1: {
        const WriteFlags packed{.compressed = true};
        done = co_await node.write(at, iov(data), packed);
        break;
      }
      case 2:
        done = co_await node.write_zeroes(at, cluster, ZeroFlags{});
        break;
      case 3:
        done = co_await node.write(at + cluster / 4, IoVec(std::span(data).first(512)));
        break;
      default:
        break;
    }
    CO_OK(done);
  }
  for (int i = 0; i < 60 && !::testing::Test::HasFailure(); ++i) {
    // Ends are often those of clusters, or of their parts.
    const std::uint64_t grain = std::uint64_t{512} << (random() % 5);
    const std::uint64_t offset = random() % size / grain * grain;
    const std::uint64_t length =
        std::min(size - offset, (random() % (4 * cluster) / grain + 1) * grain);
    bool done = co_await try_to_zero(image, node, Range{offset, length}, random() % 2 == 0);
    ++(done ? tally.done : tally.refused);
  }
  auto closed = co_await opened->detach();
  CO_OK(closed);
}

TEST(ZeroRefusal, ChangesNothingWhereverItIs) {
  struct Shape {
    std::string create;
    std::uint64_t cluster;
  };
  const Shape shapes[] = {{"cluster_size=4k", 4096},
                          {"cluster_size=4k,compat=0.10", 4096},
                          {"cluster_size=16k,extended_l2=on", 16384}};
  auto base = make_memory_disk("refusal-base", 0);
  auto shown = pattern(13 * 4096 + 512, 7);
  std::ranges::fill(std::span(shown).subspan(3 * 4096, 5000), std::byte{0});
  base->write(0, iov(shown));
  for (const Shape& shape : shapes) {
    for (const bool backed : {false, true}) {
      Tally tally;
      for (unsigned seed = 1; seed <= 4; ++seed) {
        SCOPED_TRACE(fmt::format("{}, {}, seed {}", shape.create, backed, seed));
        // (It ends in the middle of a cluster.)
        const MemoryImage image(
            "refusal", 24 * shape.cluster - 1024,
            shape.create +
                (backed ? ",backing_file=memory:refusal-base,backing_fmt=raw" : std::string()));
        run([&] { return any_range(image, shape.cluster, seed, tally); });
      }
      EXPECT_GT(tally.done, 10u) << shape.create;
      EXPECT_GT(tally.refused, 10u) << shape.create;
    }
  }
  remove_memory_disk("refusal-base");
}

}  // namespace
}  // namespace platter::qcow2::zero_refusal
