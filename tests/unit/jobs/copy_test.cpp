#include "block/jobs/copy.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "block/exec/executor.h"
#include "block/exec/timer.h"
#include "block/node/registry.h"

namespace platter {
namespace {

constexpr std::uint64_t kPage = 4096;

// A disk in memory that notes what is done to it, and can refuse.
class NotingDisk : public Driver {
 public:
  explicit NotingDisk(std::uint64_t size, Limits limits = {}) : bytes(size), limits_(limits) {}

  std::uint64_t size() const override { return bytes.size(); }
  Limits limits() const override { return limits_; }
  Task<Result<void>> do_read(std::uint64_t offset, IoVec iov, ReadFlags) override {
    read += iov.size();
    if (slow) co_await sleep_for(std::chrono::microseconds((offset / kPage) % 3 * 100));
    if (bad_offset && offset <= *bad_offset && *bad_offset < offset + iov.size()) {
      co_return fail(EIO, "bad sector");
    }
    iov.copy_from(bytes.data() + offset);
    co_return {};
  }
  Task<Result<void>> do_write(std::uint64_t offset, IoVec iov, WriteFlags flags) override {
    if (refuse_writes) co_return fail(ENOSPC, "no room");
    starts.push_back(offset);
    written += iov.size();
    if (flags.compressed) packed.push_back(iov.size());
    iov.copy_to(bytes.data() + offset);
    co_return {};
  }
  Task<Result<void>> do_write_zeroes(std::uint64_t offset, std::uint64_t length,
                                     ZeroFlags) override {
    zeroed += length;
    std::fill_n(bytes.begin() + static_cast<std::ptrdiff_t>(offset), length, std::byte{0});
    co_return {};
  }
  Task<Result<void>> do_flush() override { co_return {}; }
  // Pages of zeroes are known to be zero, or (with `sparse`) are nobody's.
  Task<Result<Extent>> do_extent(std::uint64_t offset, std::uint64_t length) override {
    if (bad_status && offset >= *bad_status) {
      co_await sleep_for(std::chrono::microseconds(100));  // others wait for the answer meanwhile
      co_return fail(EIO, "bad table");
    }
    const auto zero = [&](std::uint64_t at) {
      const std::uint64_t page = at / kPage * kPage;
      return is_zero(std::span(bytes).subspan(page, std::min(kPage, bytes.size() - page)));
    };
    Extent extent{.offset = offset, .length = 0, .kind = ExtentKind::kData};
    if (known_holes && zero(offset))
      extent.kind = sparse ? ExtentKind::kUnallocated : ExtentKind::kZero;
    std::uint64_t end = offset;
    while (end < offset + length && (!known_holes || zero(end) == zero(offset)))
      end = (end / kPage + 1) * kPage;
    extent.length = std::min(end - offset, length);
    if (self && extent.kind == ExtentKind::kData) {
      extent.node = self;
      extent.host_offset = offset;
    }
    co_return extent;
  }
  Task<Result<void>> do_copy_from(BlockNode& source, std::uint64_t from, std::uint64_t offset,
                                  std::uint64_t length, CopyFlags) override {
    if (!can_copy) co_return fail_errno(ENOTSUP);
    copied += length;
    const NotingDisk& other = static_cast<NotingDisk&>(source.driver());
    std::memcpy(&bytes[offset], &other.bytes[from], length);
    co_return {};
  }

  std::vector<std::byte> bytes;
  bool known_holes = true, sparse = false, slow = false, can_copy = false, refuse_writes = false;
  std::optional<std::uint64_t> bad_offset, bad_status;
  BlockNode* self = nullptr;  // to tell where stored data lies
  std::uint64_t read = 0, written = 0, zeroed = 0, copied = 0;
  std::vector<std::uint64_t> starts;
  std::vector<std::size_t> packed;

 private:
  const Limits limits_;
};

const DriverType kType{.name = "noting", .protocol = true};

// A node with its disk, held for writing.
struct Disk {
  explicit Disk(std::uint64_t size, Limits limits = {}) {
    auto driver = std::make_unique<NotingDisk>(size, limits);
    disk = driver.get();
    OpenFlags flags;
    flags.read_only = false;
    node = BlockNode::create(kType, std::move(driver), "", "noting", flags);
  }
  void fill(std::uint64_t offset, std::uint64_t length, int value) {
    std::fill_n(disk->bytes.begin() + static_cast<std::ptrdiff_t>(offset), length,
                static_cast<std::byte>(value));
  }
  NotingDisk* disk;
  NodePtr node;
};

Task<Result<void>> copy_held(std::vector<CopySource> sources, NodePtr target, CopyOptions options) {
  auto hold = co_await Edge::attach(target, "test", Permissions::writer());
  PLATTER_CO_TRY(hold);
  Result<void> result = co_await copy(sources, *target, options);
  const Result<void> detached = co_await hold->detach();
  if (!detached) co_return detached;
  co_return result;
}

Result<void> run_copy(const std::vector<CopySource>& sources, const Disk& target,
                      const CopyOptions& options) {
  auto executor = Executor::create();
  return (*executor)->block_on([&] { return copy_held(sources, target.node, options); });
}
Result<void> run_copy(const Disk& source, const Disk& target, const CopyOptions& options) {
  return run_copy({{.node = source.node.get(), .length = source.disk->size()}}, target, options);
}

constexpr std::uint64_t kSize = 8 << 20;

TEST(Copy, ReadsOnlyWhatIsStoredAndWritesOnlyWhatIsNotZero) {
  Disk source(kSize);
  Disk target(kSize);
  source.fill(kPage, kPage, 1);
  source.fill(5 << 20, 3 * kPage, 2);
  CopyOptions options;
  options.target_is_zero = true;
  ASSERT_TRUE(run_copy(source, target, options));
  EXPECT_EQ(target.disk->bytes, source.disk->bytes);
  EXPECT_EQ(source.disk->read, 4 * kPage);
  EXPECT_EQ(target.disk->written, 4 * kPage);
  EXPECT_EQ(target.disk->zeroed, 0U);
}

TEST(Copy, FindsZeroesInStoredData) {
  Disk source(kSize);
  Disk target(kSize);
  source.disk->known_holes = false;
  source.fill(3 * kPage, 1, 1);
  CopyOptions options;
  options.target_is_zero = true;
  ASSERT_TRUE(run_copy(source, target, options));
  EXPECT_EQ(target.disk->bytes, source.disk->bytes);
  EXPECT_EQ(target.disk->written, kPage);
}

TEST(Copy, WritesZeroesWhereTheTargetMayHoldSomething) {
  Disk source(kSize);
  Disk target(kSize);
  target.fill(0, kSize, 9);
  source.fill(kPage, kPage, 1);
  ASSERT_TRUE(run_copy(source, target, {}));
  EXPECT_EQ(target.disk->bytes, source.disk->bytes);
  EXPECT_EQ(target.disk->zeroed, kSize - kPage);
}

TEST(Copy, SparseZeroWritesEverything) {
  Disk source(kSize);
  Disk target(kSize);
  CopyOptions options;
  options.sparse = 0;
  ASSERT_TRUE(run_copy(source, target, options));
  EXPECT_EQ(target.disk->written, kSize);
  EXPECT_EQ(target.disk->zeroed, 0U);
}

TEST(Copy, ZeroesSmallerThanTheTargetsUnitAreData) {
  Disk source(kSize);
  Disk target(kSize, {.zeroes_alignment = 65536});
  source.disk->known_holes = false;
  source.fill(65536 + kPage, kPage, 1);
  CopyOptions options;
  options.target_is_zero = true;
  ASSERT_TRUE(run_copy(source, target, options));
  EXPECT_EQ(target.disk->written, 65536U);
  EXPECT_EQ(target.disk->starts, std::vector<std::uint64_t>{65536});
}

TEST(Copy, WritesStartInOrderThoughReadsEndInAnyOrder) {
  Disk source(kSize);
  Disk target(kSize);
  source.fill(0, kSize, 7);
  source.disk->slow = true;
  ASSERT_TRUE(run_copy(source, target, {}));
  EXPECT_TRUE(std::ranges::is_sorted(target.disk->starts));
  EXPECT_EQ(target.disk->bytes, source.disk->bytes);
}

TEST(Copy, OutOfOrderCopiesTheSame) {
  Disk source(kSize);
  Disk target(kSize);
  source.fill(0, kSize, 7);
  source.disk->slow = true;
  CopyOptions options;
  options.in_order = false;
  options.in_flight = 16;
  ASSERT_TRUE(run_copy(source, target, options));
  EXPECT_EQ(target.disk->bytes, source.disk->bytes);
}

TEST(Copy, SourcesAreLaidEndToEndAndPaddedWithZeroes) {
  Disk first(1000);
  Disk second(kPage);
  Disk target(1024 + kPage);
  target.fill(0, 1024 + kPage, 9);
  first.fill(0, 1000, 1);
  second.fill(0, kPage, 2);
  ASSERT_TRUE(run_copy({{.node = first.node.get(), .target_offset = 0, .length = 1024},
                        {.node = second.node.get(), .target_offset = 1024, .length = kPage}},
                       target, {}));
  const auto all = [&](std::size_t from, std::size_t to, int value) {
    return std::all_of(target.disk->bytes.begin() + static_cast<std::ptrdiff_t>(from),
                       target.disk->bytes.begin() + static_cast<std::ptrdiff_t>(to),
                       [&](std::byte b) { return b == static_cast<std::byte>(value); });
  };
  EXPECT_TRUE(all(0, 1000, 1));
  EXPECT_TRUE(all(1000, 1024, 0));
  EXPECT_TRUE(all(1024, 1024 + kPage, 2));
}

TEST(Copy, ASourceMayStartAnywhere) {
  for (const bool offload : {false, true}) {
    Disk source(3 * kPage);
    Disk target(3 * kPage);
    target.disk->can_copy = offload;
    source.fill(kPage, kPage, 1);
    source.fill(2 * kPage, kPage, 2);
    CopyOptions options;
    options.offload = offload;
    const CopySource part{.node = source.node.get(), .length = 3 * kPage, .offset = kPage + 512};
    ASSERT_TRUE(run_copy({part}, target, options));
    std::vector<std::byte> expected(source.disk->bytes.begin() + kPage + 512,
                                    source.disk->bytes.end());
    expected.resize(3 * kPage);
    EXPECT_EQ(target.disk->bytes, expected);
  }
}

TEST(Copy, CompressedWritesAreWholeUnits) {
  Disk source(kSize);
  Disk target(kSize);
  source.fill(3 * 65536 + kPage, 2 * kPage, 1);
  source.fill(9 * 65536 - kPage, 2 * kPage, 2);  // across two units
  CopyOptions options;
  options.target_is_zero = true;
  options.compressed_unit = 65536;
  ASSERT_TRUE(run_copy(source, target, options));
  EXPECT_EQ(target.disk->bytes, source.disk->bytes);
  EXPECT_EQ(target.disk->packed, (std::vector<std::size_t>{65536, 65536, 65536}));
}

TEST(Copy, UnallocatedRangesAreLeftAloneUpToALimit) {
  // (How large the base is; where there is none, or it has ended, nothing shows through.)
  for (const std::uint64_t base_size : {kSize, kSize / 4, std::uint64_t{0}}) {
    Disk source(kSize);
    Disk target(kSize);
    const Disk base(base_size);
    source.disk->sparse = true;
    target.fill(0, kSize, 9);
    source.fill(kPage, kPage, 1);
    CopyOptions options;
    options.keep_unallocated = true;
    options.keep_until = kSize / 2;
    const CopySource whole{.node = source.node.get(),
                           .length = kSize,
                           .base = base_size != 0 ? base.node.get() : nullptr};
    ASSERT_TRUE(run_copy({whole}, target, options));
    const std::vector<std::byte>& bytes = target.disk->bytes;
    const std::uint64_t kept = std::min(base_size, kSize / 2);
    EXPECT_EQ(bytes[0], kept != 0 ? std::byte{9} : std::byte{0});
    EXPECT_EQ(bytes[kPage], std::byte{1});
    EXPECT_EQ(std::count(bytes.begin(), bytes.end(), std::byte{9}), kept != 0 ? kept - kPage : 0);
    EXPECT_EQ(bytes[kept], std::byte{0});
  }
}

TEST(Copy, OffloadsAndFallsBack) {
  for (const bool possible : {true, false}) {
    Disk source(kSize);
    Disk target(kSize);
    source.fill(0, kSize, 3);
    target.disk->can_copy = possible;
    CopyOptions options;
    options.offload = true;
    ASSERT_TRUE(run_copy(source, target, options));
    EXPECT_EQ(target.disk->bytes, source.disk->bytes);
    EXPECT_EQ(target.disk->copied, possible ? kSize : 0U);
  }
}

TEST(Copy, AReadErrorNamesItsPlaceAndEndsTheCopy) {
  Disk source(kSize);
  Disk target(kSize);
  source.fill(0, kSize, 3);
  source.disk->bad_offset = (1 << 20) + 700;
  const Result<void> result = run_copy(source, target, {});
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().message(), "noting: error while reading at byte 1048576: bad sector");
  EXPECT_EQ(result.error().code(), EIO);
}

TEST(Copy, WhatIsNotKnownIsNotTakenForZeroes) {
  for (const bool in_order : {true, false}) {
    Disk source(2 << 20);
    Disk target(2 << 20);
    source.fill(0, kPage, 5);
    target.fill(0, 2 << 20, 6);
    source.disk->bad_status = kPage;
    CopyOptions options;
    options.in_order = in_order;
    const Result<void> copied = run_copy(source, target, options);
    ASSERT_FALSE(copied);
    EXPECT_EQ(copied.error().message(),
              "noting: error while reading block status at offset 4096: bad table");
    EXPECT_EQ(target.disk->zeroed, 0U);
    EXPECT_EQ(target.disk->bytes[kPage], std::byte{6});
  }
}

TEST(Copy, BeginsNothingNewOnceItIsCancelled) {
  std::atomic<bool> cancelled{false};
  CopyOptions options;
  options.in_flight = 2;
  options.cancelled = &cancelled;
  // Gives how much has been written.
  const auto cancel_copy = [&] {
    Disk source(kSize);
    Disk target(kSize);
    source.fill(0, kSize, 5);
    const Result<void> copied = run_copy(source, target, options);
    EXPECT_FALSE(copied);
    EXPECT_EQ(copied ? "" : copied.error().message(), "cancelled");
    EXPECT_EQ(copied ? 0 : copied.error().code(), ECANCELED);
    return target.disk->written;
  };
  cancelled = true;
  EXPECT_EQ(cancel_copy(), 0U);

  cancelled = false;
  options.progress = [&](std::uint64_t) { cancelled = true; };
  const std::uint64_t written = cancel_copy();
  EXPECT_GT(written, 0U);
  EXPECT_LE(written, 3U << 19) << "more than what was under way";

  // However slow it is to be.
  cancelled = false;
  options.bytes_per_second = 1;
  EXPECT_LE(cancel_copy(), 3U << 19);
}

TEST(Copy, SalvagingPutsZeroesForTheBadSector) {
  Disk source(kSize);
  Disk target(kSize);
  source.fill(0, kSize, 3);
  source.disk->bad_offset = (1 << 20) + 700;
  CopyOptions options;
  options.salvage = true;
  std::vector<std::uint64_t> told;
  options.on_unreadable = [&](std::uint64_t offset, const Error&) { told.push_back(offset); };
  ASSERT_TRUE(run_copy(source, target, options));
  EXPECT_EQ(told, std::vector<std::uint64_t>{(1 << 20) + 512});
  std::vector<std::byte> expected = source.disk->bytes;
  std::fill_n(expected.begin() + (1 << 20) + 512, 512, std::byte{0});
  EXPECT_EQ(target.disk->bytes, expected);
}

TEST(Copy, SalvagingGoesOnWhereNobodyKnowsWhatThereIs) {
  Disk source(kSize);
  Disk target(kSize);
  source.fill(0, kSize, 3);
  source.fill(kSize - 2 * kPage, kPage, 0);  // where an extent ends
  source.disk->bad_status = kSize - kPage;
  ASSERT_FALSE(run_copy(source, target, {}));
  source.disk->bad_offset = kSize - kPage + 512;
  CopyOptions options;
  options.salvage = true;
  std::vector<std::uint64_t> told;
  options.on_unreadable = [&](std::uint64_t offset, const Error&) { told.push_back(offset); };
  Disk second(kSize);
  ASSERT_TRUE(run_copy(source, second, options));
  EXPECT_EQ(told, std::vector<std::uint64_t>{kSize - kPage + 512});
  std::vector<std::byte> expected = source.disk->bytes;
  std::fill_n(expected.end() - kPage + 512, 512, std::byte{0});
  EXPECT_EQ(second.disk->bytes, expected);
}

TEST(Copy, AWriteErrorNamesItsPlace) {
  Disk source(kSize);
  Disk target(kSize);
  source.fill(kPage, kSize - kPage, 3);
  target.disk->refuse_writes = true;
  const Result<void> result = run_copy(source, target, {});
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().message(), "noting: error while writing at byte 4096: no room");
}

TEST(Copy, ProgressCountsToTheEndWithoutGoingBack) {
  Disk source(kSize);
  Disk target(kSize);
  source.fill(1 << 20, 1 << 20, 3);
  CopyOptions options;
  std::vector<std::uint64_t> seen;
  options.progress = [&](std::uint64_t bytes) { seen.push_back(bytes); };
  ASSERT_TRUE(run_copy(source, target, options));
  ASSERT_FALSE(seen.empty());
  EXPECT_TRUE(std::ranges::is_sorted(seen));
  EXPECT_EQ(seen.back(), kSize);
}

TEST(Copy, ARateHoldsItBack) {
  Disk source(kSize);
  Disk target(kSize);
  source.fill(0, 2 << 20, 3);
  CopyOptions options;
  options.bytes_per_second =
      40 << 20;  // 2 MiB in four pieces: the last starts 3/80 s after the first
  const auto before = std::chrono::steady_clock::now();
  ASSERT_TRUE(run_copy(source, target, options));
  EXPECT_GE(std::chrono::steady_clock::now() - before, std::chrono::milliseconds(37));
}

// A source that tells where its data lies, and a target with units that first bytes can vouch for.
struct Unseen {
  Unseen() {
    source.disk->known_holes = false;
    source.disk->self = source.node.get();
    target.disk->can_copy = true;
    source.fill(0, kSize, 7);
    options.target_is_zero = true;
    options.still_sources = true;
  }
  Disk source{kSize};
  Disk target{kSize, {.zeroes_alignment = 65536}};
  CopyOptions options;
};

TEST(Copy, DataOfAStillSourceIsCopiedUnseen) {
  Unseen copy;
  ASSERT_TRUE(run_copy(copy.source, copy.target, copy.options));
  EXPECT_EQ(copy.target.disk->bytes, copy.source.disk->bytes);
  EXPECT_EQ(copy.target.disk->copied, kSize);
  EXPECT_EQ(copy.target.disk->written, 0U);
  EXPECT_EQ(copy.source.disk->read, kSize / 65536 * 512);
}

TEST(Copy, AGrainThatBeginsWithZeroesIsLookedAt) {
  Unseen copy;
  copy.source.fill(2 * 65536, 65536, 0);         // all zeroes: left out
  copy.source.fill((1 << 20) + 65536, 4096, 0);  // some: data
  ASSERT_TRUE(run_copy(copy.source, copy.target, copy.options));
  EXPECT_EQ(copy.target.disk->bytes, copy.source.disk->bytes);
  EXPECT_EQ(copy.target.disk->written, (1 << 20) - 65536U);
  EXPECT_EQ(copy.target.disk->copied, kSize - (1 << 20));
}

TEST(Copy, NothingIsCopiedUnseenWhereItMayNotBe) {
  const auto expect_seen = [](Unseen& copy) {
    ASSERT_TRUE(run_copy(copy.source, copy.target, copy.options));
    EXPECT_EQ(copy.target.disk->bytes, copy.source.disk->bytes);
    EXPECT_EQ(copy.target.disk->copied, 0U);
  };
  Unseen written_to;
  written_to.options.still_sources = false;
  expect_seen(written_to);
  Unseen salvaged;
  salvaged.options.salvage = true;
  expect_seen(salvaged);
  Unseen packed;
  packed.options.compressed_unit = 65536;
  expect_seen(packed);
  Unseen not_in_memory;
  not_in_memory.source.disk->slow = true;
  expect_seen(not_in_memory);
  Unseen unable;
  unable.target.disk->can_copy = false;
  expect_seen(unable);
}

TEST(Copy, NothingToCopyIsDone) {
  Disk source(0);
  Disk target(0);
  EXPECT_TRUE(run_copy(source, target, {}));
  EXPECT_TRUE(run_copy(std::vector<CopySource>{}, target, {}));
}

}  // namespace
}  // namespace platter
