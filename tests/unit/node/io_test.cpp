// The request path: ranges, padding, bounce buffers, splitting, zeroes, discards, flushes.
#include <atomic>
#include <random>
#include <thread>

#include "block/adapters/memory.h"
#include "block/base/checked.h"
#include "block/exec/buffer.h"
#include "block/node/registry.h"
#include "unit/node/support.h"

namespace platter {
namespace {

using namespace testing;

// A memory disk of fixed size which counts and can lack abilities; every request it may not see
// fails the test through MemoryDriver's own check.
class CountingDriver : public MemoryDriver {
 public:
  CountingDriver(std::uint64_t size, Limits limits)
      : MemoryDriver(std::make_shared<MemoryDisk>(size), limits) {}
  bool can_grow() const override { return grows; }
  Task<Result<void>> do_read(std::uint64_t offset, IoVec iov, ReadFlags flags) override {
    ++reads;
    return MemoryDriver::do_read(offset, iov, flags);
  }
  Task<Result<void>> do_write(std::uint64_t offset, IoVec iov, WriteFlags flags) override {
    ++writes;
    fua_writes += flags.fua ? 1 : 0;
    return MemoryDriver::do_write(offset, iov, flags);
  }
  Task<Result<void>> do_write_zeroes(std::uint64_t offset, std::uint64_t length,
                                     ZeroFlags flags) override {
    if (!zeroes) return Driver::do_write_zeroes(offset, length, flags);
    ++zero_requests;
    unmaps += flags.may_unmap ? 1 : 0;
    return MemoryDriver::do_write_zeroes(offset, length, flags);
  }
  Task<Result<void>> do_discard(std::uint64_t offset, std::uint64_t length) override {
    ++discards;
    return MemoryDriver::do_discard(offset, length);
  }
  Task<Result<void>> do_flush() override {
    ++flushes;
    return MemoryDriver::do_flush();
  }

  bool grows = false;
  bool zeroes = true;
  std::atomic<int> reads{0}, writes{0}, fua_writes{0}, zero_requests{0}, unmaps{0}, discards{0},
      flushes{0};
};

struct Counted {
  NodePtr node;
  CountingDriver* driver;
};

const DriverType kFormat{.name = "counting"};
const DriverType kProtocol{.name = "counting", .protocol = true};

Counted counted(std::uint64_t size, Limits limits = {}, OpenFlags flags = {.read_only = false},
                const DriverType& type = kFormat, bool zeroes = true, bool grows = false) {
  auto driver = std::make_unique<CountingDriver>(size, limits);
  driver->zeroes = zeroes;
  driver->grows = grows;
  CountingDriver* const raw = driver.get();
  return {BlockNode::create(type, std::move(driver), "counted", "", flags), raw};
}

Result<void> zero(BlockNode& node, std::uint64_t offset, std::uint64_t length,
                  ZeroFlags flags = {}) {
  return run([&] { return node.write_zeroes(offset, length, flags); });
}
Result<void> discard(BlockNode& node, std::uint64_t offset, std::uint64_t length) {
  return run([&] { return node.discard(offset, length); });
}
Result<void> flush(BlockNode& node) {
  return run([&] { return node.flush(); });
}

TEST(NodeIo, RangesBeyondTheEndAreRefused) {
  auto [node, driver] = counted(1000);
  std::vector<std::byte> buffer(600);
  EXPECT_EQ(run([&] { return node->read(500, IoVec(std::span(buffer))); }).error().code(), EINVAL);
  EXPECT_EQ(write_bytes(*node, 500, buffer).error().code(), EINVAL);
  EXPECT_EQ(write_bytes(*node, ~std::uint64_t{0} - 10, buffer).error().code(), EINVAL);
  EXPECT_EQ(zero(*node, 1000, 1).error().code(), EINVAL);
  EXPECT_EQ(discard(*node, 0, ~std::uint64_t{0}).error().code(), EINVAL);
  EXPECT_OK(write_bytes(*node, 400, buffer));
  EXPECT_OK(write_bytes(*node, 1000, {}));
  EXPECT_EQ(driver->writes, 1);
}

TEST(NodeIo, ReadOnlyNodesRefuseChanges) {
  auto [node, driver] = counted(4096, {}, OpenFlags{.read_only = true, .discard_unmap = true});
  EXPECT_EQ(write_bytes(*node, 0, filled(512, 1)).error().code(), EROFS);
  EXPECT_EQ(zero(*node, 0, 512).error().code(), EROFS);
  EXPECT_EQ(discard(*node, 0, 512).error().code(), EROFS);
  EXPECT_FALSE(run([&] { return node->resize(ResizeRequest{.size = 1}); }));
  EXPECT_OK(flush(*node));
  EXPECT_EQ(driver->flushes, 0);
}

TEST(NodeIo, WhatCanGrowIsReadBehindItsEndAndGrows) {
  auto [node, driver] = counted(100, {}, {.read_only = false}, kFormat, true, true);
  ASSERT_OK(write_bytes(*node, 0, filled(100, 1)));
  std::vector<std::byte> expected = filled(100, 1);
  expected.resize(200);
  EXPECT_EQ(read_bytes(*node, 0, 200), expected);
  EXPECT_EQ(read_bytes(*node, 5000, 8), filled(8, 0));
  ASSERT_OK(write_bytes(*node, 300, filled(10, 2)));
  EXPECT_EQ(node->size(), 310U);
  EXPECT_EQ(write_bytes(*node, static_cast<std::uint64_t>(INT64_MAX), filled(10, 2)).error().code(),
            EFBIG);
}

// The last block of a disk whose size is no multiple of its alignment.
TEST(NodeIo, TheTailOfAnUnalignedSizeIsReadAndWritten) {
  Limits limits;
  limits.request_alignment = 512;
  auto [node, driver] = counted(1000, limits);
  ASSERT_OK(write_bytes(*node, 0, bytes_of(1000, 3)));
  EXPECT_EQ(read_bytes(*node, 0, 1000), bytes_of(1000, 3));
  EXPECT_EQ(read_bytes(*node, 990, 10).back(), bytes_of(1000, 3).back());
}

TEST(NodeIo, LongRequestsAreSplit) {
  Limits limits;
  limits.request_alignment = 512;
  limits.max_transfer = 4096 + 100;  // not a multiple: rounded down
  limits.max_zeroes = 8192;
  limits.max_discard = 8192;
  auto [node, driver] = counted(1 << 20, limits, {.read_only = false, .discard_unmap = true});
  ASSERT_OK(write_bytes(*node, 0, bytes_of(20480, 4)));
  EXPECT_EQ(driver->writes, 5);
  EXPECT_EQ(read_bytes(*node, 0, 20480), bytes_of(20480, 4));
  EXPECT_EQ(driver->reads, 5);
  ASSERT_OK(zero(*node, 0, 20480));
  EXPECT_EQ(driver->zero_requests, 3);
  ASSERT_OK(discard(*node, 0, 20480));
  EXPECT_EQ(driver->discards, 3);
}

TEST(NodeIo, MisalignedMemoryGoesThroughABuffer) {
  Limits limits;
  limits.request_alignment = 512;
  limits.memory_alignment = 4096;
  auto [node, driver] = counted(4 << 20, limits);
  const auto data = bytes_of((2 << 20) + 512 + 1, 5);
  const std::span<const std::byte> odd = std::span(data).subspan(1);
  ASSERT_OK(write_bytes(*node, 512, odd));
  const auto back = read_bytes(*node, 512, odd.size());
  EXPECT_TRUE(std::ranges::equal(back, odd));
}

TEST(NodeIo, ZeroesFallBackToBuffers) {
  Limits limits;
  limits.request_alignment = 512;
  auto [node, driver] = counted(4 << 20, limits, {.read_only = false}, kFormat, false);
  ASSERT_OK(write_bytes(*node, 0, bytes_of(4 << 20, 6)));
  EXPECT_EQ(zero(*node, 512, 512, {.no_fallback = true}).error().code(), ENOTSUP);
  EXPECT_EQ(zero(*node, 1, 3, {.no_fallback = true}).error().code(), ENOTSUP);
  ASSERT_OK(zero(*node, 1001, (3 << 20) + 7));
  auto expected = bytes_of(4 << 20, 6);
  std::fill_n(expected.begin() + 1001, (3 << 20) + 7, std::byte{0});
  EXPECT_EQ(read_bytes(*node, 0, 4 << 20), expected);
}

TEST(NodeIo, ZeroesAreCutAtTheDriversUnit) {
  Limits limits;
  limits.zeroes_alignment = 65536;
  auto [node, driver] = counted(1 << 20, limits);
  ASSERT_OK(zero(*node, 1000, 200000));
  EXPECT_EQ(driver->zero_requests, 3);  // head, whole units, tail
}

TEST(NodeIo, DetectedZeroesAreNotWritten) {
  using enum OpenFlags::DetectZeroes;
  for (const auto mode : {kOn, kUnmap}) {
    auto [node, driver] =
        counted(1 << 20, {}, {.read_only = false, .discard_unmap = true, .detect_zeroes = mode});
    ASSERT_OK(write_bytes(*node, 0, filled(65536, 0)));
    ASSERT_OK(write_bytes(*node, 0, filled(65536, 1)));
    EXPECT_EQ(driver->zero_requests, 1);
    EXPECT_EQ(driver->unmaps, mode == kUnmap ? 1 : 0);
    EXPECT_EQ(driver->writes, 1);
  }
}

TEST(NodeIo, DiscardsReachTheDriverOnlyWhenAsked) {
  Limits limits;
  limits.request_alignment = 512;
  auto [ignoring, quiet] = counted(1 << 20, limits);
  ASSERT_OK(discard(*ignoring, 0, 4096));
  EXPECT_EQ(quiet->discards, 0);
  auto [node, driver] = counted(1 << 20, limits, {.read_only = false, .discard_unmap = true});
  ASSERT_OK(write_bytes(*node, 0, filled(4096, 1)));
  ASSERT_OK(discard(*node, 100, 1500));  // only the blocks that are wholly inside
  auto expected = filled(4096, 1);
  std::fill_n(expected.begin() + 512, 1024, std::byte{0});
  EXPECT_EQ(read_bytes(*node, 0, 4096), expected);
  ASSERT_OK(discard(*node, 1, 100));
  EXPECT_EQ(read_bytes(*node, 0, 4096), expected);
}

TEST(NodeIo, FuaIsAFlushWhereTheDriverLacksIt) {
  auto [node, driver] = counted(4096);
  ASSERT_OK(write_bytes(*node, 0, filled(512, 1), {.fua = true}));
  EXPECT_EQ(driver->flushes, 1);
  EXPECT_EQ(driver->fua_writes, 0);
  ASSERT_OK(zero(*node, 0, 512, {.fua = true}));
  EXPECT_EQ(driver->flushes, 2);

  Limits native;
  native.native_fua = true;
  auto [able, able_driver] = counted(4096, native);
  ASSERT_OK(write_bytes(*able, 0, filled(512, 1), {.fua = true}));
  EXPECT_EQ(able_driver->flushes, 0);
  EXPECT_EQ(able_driver->fua_writes, 1);

  auto [through, through_driver] = counted(4096, {}, {.read_only = false, .writethrough = true});
  ASSERT_OK(write_bytes(*through, 0, filled(512, 1)));
  EXPECT_EQ(through_driver->flushes, 1);
}

TEST(NodeIo, NoFlushSparesTheDiskButNotTheFormat) {
  const OpenFlags unsafe{.read_only = false, .no_flush = true};
  auto [disk, disk_driver] = counted(4096, {}, unsafe, kProtocol);
  ASSERT_OK(write_bytes(*disk, 0, filled(512, 1), {.fua = true}));
  ASSERT_OK(flush(*disk));
  EXPECT_EQ(disk_driver->flushes, 0);
  auto [format, format_driver] = counted(4096, {}, unsafe);
  ASSERT_OK(flush(*format));
  EXPECT_EQ(format_driver->flushes, 1);
}

// Closing makes durable what was written since the last flush, and costs nothing otherwise.
TEST(NodeIo, ClosingFlushesWhatWasWritten) {
  const auto close_after = [](bool write, bool flush_after) {
    auto [node, driver] = counted(4096);
    return run([&, node = node, driver = driver]() -> Task<int> {
      auto edge = co_await Edge::attach(node, "test", Permissions::writer());
      const auto data = filled(512, 1);
      if (write) {
        auto written = co_await node->write(0, IoVec::of_const(data));
        EXPECT_OK(written);
      }
      if (flush_after) {
        auto flushed = co_await node->flush();
        EXPECT_OK(flushed);
      }
      const int before = driver->flushes;
      auto closed = co_await edge->detach();
      EXPECT_OK(closed);
      auto late = co_await node->write(0, IoVec::of_const(data));
      EXPECT_EQ(late.error().code(), ESHUTDOWN);
      co_return driver->flushes - before;
    });
  };
  EXPECT_EQ(close_after(true, false), 1);
  EXPECT_EQ(close_after(true, true), 0);
  EXPECT_EQ(close_after(false, false), 0);
}

TEST(NodeIo, ADrainedNodeHoldsRequestsBack) {
  auto [node, driver] = counted(4096);
  run([&, node = node, driver = driver]() -> Task<void> {
    co_await node->drain();
    co_await node->drain();
    const auto data = filled(512, 1);
    auto write = node->write(0, IoVec::of_const(data));
    EXPECT_FALSE(write.done());
    node->undrain();
    EXPECT_FALSE(write.done());
    EXPECT_EQ(driver->writes, 0);
    node->undrain();
    auto written = co_await write;
    EXPECT_OK(written);
    EXPECT_EQ(driver->writes, 1);
  });
}

TEST(NodeIo, ResizeTellsItsListener) {
  auto [node, driver] = counted(4096);
  std::uint64_t told = 0;
  node->on_resize([&](std::uint64_t size) { told = size; });
  ASSERT_OK(run([&] { return node->resize(ResizeRequest{.size = 8192}); }));
  EXPECT_EQ(told, 8192U);
  EXPECT_EQ(
      run([&] { return node->resize(ResizeRequest{.size = ~std::uint64_t{0}}); }).error().code(),
      EFBIG);
}

// An aligned read that the driver answers at once costs no coroutine of the node's own.
TEST(NodeIo, APlainReadIsDoneAtOnce) {
  auto [node, driver] = counted(1 << 20);
  run([&, node = node]() -> Task<void> {
    std::vector<std::byte> buffer(4096);
    auto read = node->read(0, IoVec(std::span(buffer)));
    EXPECT_TRUE(read.done());
    auto done = co_await read;
    EXPECT_OK(done);
  });
}

// Random requests of any alignment against a byte array.
void compare_with_model(Limits limits, bool zeroes, std::uint32_t seed) {
  SCOPED_TRACE("seed " + std::to_string(seed));
  constexpr std::uint64_t kSize = 96 << 10;
  auto [node, driver] = counted(kSize, limits, {.read_only = false}, kFormat, zeroes);
  std::vector<std::byte> model(kSize);
  std::mt19937 random(seed);
  auto executor = Executor::create();
  (*executor)->block_on([&, node = node]() -> Task<void> {
    for (int i = 0; i < 600; ++i) {
      const std::uint64_t offset = random() % kSize;
      const std::uint64_t longest = random() % 4 == 0 ? kSize : 3000;
      const std::uint64_t length = std::min<std::uint64_t>(random() % longest, kSize - offset);
      const unsigned what = random() % 8;
      if (what < 4) {
        const auto data = bytes_of(length, i);
        // In two segments, cut anywhere.
        const std::size_t cut = length == 0 ? 0 : random() % length;
        const iovec segments[] = {{const_cast<std::byte*>(data.data()), cut},
                                  {const_cast<std::byte*>(data.data()) + cut, length - cut}};
        auto written = co_await node->write(offset, IoVec(std::span(segments)));
        EXPECT_OK(written);
        std::ranges::copy(data, model.begin() + static_cast<std::ptrdiff_t>(offset));
      } else if (what == 4) {
        auto zeroed = co_await node->write_zeroes(offset, length, ZeroFlags{});
        EXPECT_OK(zeroed);
        std::fill_n(model.begin() + static_cast<std::ptrdiff_t>(offset), length, std::byte{0});
      } else {
        std::vector<std::byte> data(length);
        auto read = co_await node->read(offset, IoVec(std::span(data)));
        EXPECT_OK(read);
        EXPECT_TRUE(std::equal(data.begin(), data.end(),
                               model.begin() + static_cast<std::ptrdiff_t>(offset)))
            << offset << "+" << length;
      }
    }
  });
  EXPECT_EQ(read_bytes(*node, 0, kSize), model);
}

TEST(NodeIo, AgreesWithAByteArray) {
  for (const std::uint32_t request : {1U, 512U, 4096U}) {
    for (const std::uint32_t memory : {1U, 512U}) {
      for (const bool zeroes : {true, false}) {
        Limits limits;
        limits.request_alignment = request;
        limits.memory_alignment = memory;
        limits.max_transfer = 16 << 10;
        limits.zeroes_alignment = 8192;
        compare_with_model(limits, zeroes, request + memory + (zeroes ? 1 : 0));
      }
    }
  }
}

}  // namespace
}  // namespace platter
