// Requests of several executors on one sector, and the guard on a probed image's start.
#include <random>

#include "block/adapters/memory.h"
#include "block/exec/executor_thread.h"
#include "block/filters/fault.h"
#include "block/node/nesting.h"
#include "block/node/registry.h"
#include "unit/node/overlay_driver.h"
#include "unit/node/support.h"

namespace platter {
namespace {

using namespace testing;

// A memory disk whose requests take a turn of the executor, so that they overlap.
class YieldingDriver : public MemoryDriver {
 public:
  using MemoryDriver::MemoryDriver;
  Task<Result<void>> do_read(std::uint64_t offset, IoVec iov, ReadFlags flags) override {
    co_await detail::YieldIf{true};
    auto read = co_await MemoryDriver::do_read(offset, iov, flags);
    co_await detail::YieldIf{true};
    co_return read;
  }
  Task<Result<void>> do_write(std::uint64_t offset, IoVec iov, WriteFlags flags) override {
    co_await detail::YieldIf{true};
    auto written = co_await MemoryDriver::do_write(offset, iov, flags);
    co_return written;
  }
};

const DriverType kYielding{.name = "yielding"};

NodePtr yielding_node(std::uint64_t size, std::uint32_t alignment) {
  Limits limits;
  limits.request_alignment = alignment;
  auto driver = std::make_unique<YieldingDriver>(std::make_shared<MemoryDisk>(size), limits);
  return BlockNode::create(kYielding, std::move(driver), "yielding", "",
                           OpenFlags{.read_only = false});
}

// Each executor owns every third piece of 100 bytes and writes nothing else.
Task<void> write_lane(BlockNode& node, unsigned lane, std::vector<std::byte>& model,
                      std::uint32_t seed) {
  constexpr std::uint64_t kPiece = 100;
  std::mt19937 random(seed);
  const std::uint64_t pieces = node.size() / kPiece;
  for (int i = 0; i < 300; ++i) {
    // A few at once, so that requests of one executor overlap too.
    std::vector<std::vector<std::byte>> data;
    std::vector<Task<Result<void>>> writes;
    data.reserve(4);
    for (unsigned k = 0; k < 4; ++k) {
      const std::uint64_t offset = ((random() % (pieces / 12)) * 12 + k * 3 + lane) * kPiece;
      data.push_back(bytes_of(kPiece, static_cast<int>(random())));
      std::ranges::copy(data.back(), model.begin() + static_cast<std::ptrdiff_t>(offset));
      writes.push_back(node.write(offset, IoVec::of_const(data.back())));
    }
    for (auto& write : writes) {
      auto written = co_await write;
      EXPECT_OK(written);
    }
  }
}

TEST(C16, UnalignedWritesOfSeveralExecutorsLoseNothing) {
  for (const std::uint32_t alignment : {512U, 4096U}) {
    constexpr unsigned kLanes = 3;
    NodePtr node = yielding_node(36000, alignment);
    std::vector<std::vector<std::byte>> models(kLanes, std::vector<std::byte>(36000));
    std::vector<std::unique_ptr<ExecutorThread>> threads;
    for (unsigned i = 0; i < kLanes; ++i) {
      auto started = ExecutorThread::start();
      ASSERT_OK(started);
      threads.push_back(std::move(*started));
    }
    run([&]() -> Task<void> {
      std::vector<std::function<Task<void>()>> work;
      for (unsigned i = 0; i < kLanes; ++i) {
        work.emplace_back([&, i] { return write_lane(*node, i, models[i], 100 + i); });
      }
      std::vector<Task<void>> running;
      const auto start = [](Executor& on, std::function<Task<void>()>& what) -> Task<void> {
        co_await run_on_executor(on, what);
      };
      for (unsigned i = 0; i < kLanes; ++i)
        running.push_back(start(threads[i]->executor(), work[i]));
      for (auto& task : running) co_await task;
    });
    const auto disk = read_bytes(*node, 0, 36000);
    for (std::size_t i = 0; i < disk.size(); ++i) {
      ASSERT_EQ(disk[i], models[i / 100 % kLanes][i]) << "alignment " << alignment << " byte " << i;
    }
  }
}

// The schedule itself: an aligned write comes while an unaligned one has read its sector.
TEST(C16, AnAlignedWriteWaitsForAPaddedOne) {
  auto disk = std::make_shared<MemoryDisk>(4096);
  auto executor = Executor::create();
  (*executor)->block_on([&]() -> Task<void> {
    auto fault = co_await make_fault_node("fault", make_memory_node("disk", disk));
    FaultPoints& points = *fault_points_of(**fault);
    Limits limits;
    limits.request_alignment = 512;

    class Aligned : public Driver {
     public:
      Aligned(NodePtr below, Limits l) : below_(std::move(below)), limits_(l) {}
      std::uint64_t size() const override { return below_->size(); }
      Limits limits() const override { return limits_; }
      Task<Result<void>> do_read(std::uint64_t offset, IoVec iov, ReadFlags flags) override {
        return below_->read(offset, iov, flags);
      }
      Task<Result<void>> do_write(std::uint64_t offset, IoVec iov, WriteFlags flags) override {
        return below_->write(offset, iov, flags);
      }
      Task<Result<void>> do_flush() override { return below_->flush(); }

     private:
      NodePtr below_;
      Limits limits_;
    };
    NodePtr node = BlockNode::create(kYielding, std::make_unique<Aligned>(*fault, limits), "n", "",
                                     OpenFlags{.read_only = false});

    const auto first = filled(10, 1);
    const auto whole = filled(512, 2);
    const auto last = filled(10, 3);
    points.suspend_operation("padding", fault_op::kRead);
    auto padded = node->write(100, IoVec::of_const(first));
    EXPECT_TRUE(points.is_suspended("padding"));
    auto aligned = node->write(0, IoVec::of_const(whole));
    auto later = node->write(200, IoVec::of_const(last));
    auto elsewhere = co_await node->write(512, IoVec::of_const(whole));
    EXPECT_OK(elsewhere);
    EXPECT_FALSE(aligned.done());
    EXPECT_EQ(points.requests(fault_op::kWrite), 1U);
    EXPECT_OK(points.resume("padding"));
    auto r = co_await padded;
    EXPECT_OK(r);
    r = co_await aligned;
    EXPECT_OK(r);
    r = co_await later;
    EXPECT_OK(r);
    auto expected = whole;
    std::fill_n(expected.begin() + 200, 10, std::byte{3});
    std::vector<std::byte> now(512);
    r = co_await node->read(0, IoVec(std::span(now)));
    EXPECT_EQ(now, expected);
  });
}

class C18 : public ::testing::Test {
 protected:
  static Edge open(std::string_view options) {
    OpenRequest request;
    request.options = *Options::parse_keyval(options);
    request.permissions = Permissions::writer();
    auto edge = run([&] { return open_node(request); });
    EXPECT_OK(edge);
    return std::move(*edge);
  }
  static void close(Edge& edge) {
    EXPECT_OK(run([&] { return edge.detach(); }));
  }
  static std::span<const std::byte> text(std::string_view t) { return std::as_bytes(std::span(t)); }

  void SetUp() override { make_memory_disk("probed", 8192); }
};

TEST_F(C18, AProbedRawImageNeverBecomesAnotherFormat) {
  Edge edge = open("read-only=off,file.driver=memory,file.name=probed");
  ASSERT_TRUE(edge->probed());
  const auto refused = write_bytes(*edge, 0, text("TESTOVL\nand more"));
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code(), EPERM);
  EXPECT_NE(refused.error().message().find("specify the 'raw' format explicitly"),
            std::string::npos);
  // Nor piece by piece, in any order.
  EXPECT_OK(write_bytes(*edge, 0, text("TEST")));
  EXPECT_FALSE(write_bytes(*edge, 4, text("OVL\n")));
  EXPECT_OK(write_bytes(*edge, 0, text("xxxxOVL\n")));
  EXPECT_FALSE(write_bytes(*edge, 0, text("TEST")));
  EXPECT_OK(write_bytes(*edge, 1, text("harmless")));
  EXPECT_OK(write_bytes(*edge, 4096, text("TESTOVL\n")));
  EXPECT_OK(run([&] { return edge->write_zeroes(0, 4096, {}); }));
  // Nor at once, from two writes that are harmless alone.
  run([&]() -> Task<void> {
    auto a = edge->write(0, IoVec::of_const(text("TEST")));
    auto b = edge->write(4, IoVec::of_const(text("OVL\n")));
    auto ra = co_await a;
    auto rb = co_await b;
    EXPECT_NE(ra.has_value(), rb.has_value());
  });
  close(edge);
  Edge again = open("read-only=off,file.driver=memory,file.name=probed");
  EXPECT_EQ(again->driver_name(), "raw");
  close(again);
}

// The writer's buffer is a guest's memory, and the guest changes it once it was judged.
Task<void> write_and_change(BlockNode& node, FaultPoints& points, std::span<std::byte> buffer,
                            std::span<const std::byte> change) {
  points.suspend_operation("write", fault_op::kWrite);
  auto write = node.write(0, IoVec(buffer));
  co_await points.wait_suspended("write");
  std::ranges::copy(change, buffer.begin());
  EXPECT_OK(points.resume("write"));
  auto written = co_await write;
  EXPECT_OK(written);
}

TEST_F(C18, WhatIsWrittenIsWhatWasJudged) {
  Edge edge =
      open("read-only=off,file.driver=blkdebug,file.image.driver=memory,file.image.name=probed");
  ASSERT_TRUE(edge->probed());
  std::vector<std::byte> buffer(8192, std::byte{'x'});
  const auto change = text("TESTOVL\n");
  FaultPoints& points = *fault_points_of(*edge);
  run([&] { return write_and_change(*edge, points, buffer, change); });
  EXPECT_EQ(read_bytes(*edge, 0, 8192), std::vector<std::byte>(8192, std::byte{'x'}));
  close(edge);
}

TEST_F(C18, ANamedRawImageMayHoldAnything) {
  Edge edge = open("driver=raw,read-only=off,file.driver=memory,file.name=probed");
  EXPECT_OK(write_bytes(*edge, 0, text("TESTOVL\n")));
  close(edge);
}

TEST_F(C18, HoldsWithAlignedStorageToo) {
  Edge edge = open(
      "read-only=off,file.driver=memory,file.name=probed,file.request-alignment=512,file.memory-"
      "alignment=512");
  EXPECT_FALSE(write_bytes(*edge, 0, text("TESTOVL\n")));
  EXPECT_OK(write_bytes(*edge, 3, text("fine")));
  EXPECT_EQ(read_bytes(*edge, 3, 4),
            std::vector<std::byte>(text("fine").begin(), text("fine").end()));
  close(edge);
}

}  // namespace
}  // namespace platter
