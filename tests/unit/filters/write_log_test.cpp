// The write log, and the states that a power cut may leave.
#include "block/filters/write_log.h"

#include "block/adapters/memory.h"
#include "block/filters/fault.h"
#include "unit/node/support.h"

namespace platter {
namespace {

using namespace testing;

constexpr auto kNone = [](const WriteLog::Entry&, std::uint64_t) { return false; };
constexpr auto kAll = [](const WriteLog::Entry&, std::uint64_t) { return true; };

template <class Keep>
std::vector<std::byte> after_cut(const WriteLog& log, std::size_t cut, Keep&& keep,
                                 std::size_t size) {
  MemoryDisk disk(size);
  replay(log, cut, keep, disk);
  std::vector<std::byte> bytes(size);
  disk.read(0, IoVec(std::span(bytes)));
  return bytes;
}

class WriteLogTest : public ::testing::Test {
 protected:
  void SetUp() override {
    log_ = std::make_shared<WriteLog>();
    fault_ = *run([&] { return make_fault_node("fault", make_memory_node("disk", 8192)); });
    node_ = *run([&] { return make_write_log_node("log", fault_, log_); });
  }
  std::shared_ptr<WriteLog> log_;
  NodePtr fault_;
  NodePtr node_;
};

TEST_F(WriteLogTest, OnlyWhatWasFlushedIsSure) {
  ASSERT_OK(write_bytes(*node_, 0, filled(512, 1)));
  ASSERT_OK(run([&] { return node_->flush(); }));
  const std::size_t flushed = log_->moments();
  ASSERT_OK(write_bytes(*node_, 512, filled(512, 2)));
  const std::size_t end = log_->moments();

  auto expected = filled(1024, 0);
  EXPECT_EQ(after_cut(*log_, flushed - 1, kNone, 1024), expected);  // the flush had not ended
  std::fill_n(expected.begin(), 512, std::byte{1});
  EXPECT_EQ(after_cut(*log_, flushed, kNone, 1024), expected);
  EXPECT_EQ(after_cut(*log_, end, kNone, 1024), expected);
  std::fill_n(expected.begin() + 512, 512, std::byte{2});
  EXPECT_EQ(after_cut(*log_, end, kAll, 1024), expected);
}

TEST_F(WriteLogTest, AWriteInFlightDuringAFlushIsNotSure) {
  FaultPoints& points = *fault_points_of(*fault_);
  run([&]() -> Task<void> {
    const auto data = filled(512, 1);
    points.suspend_operation("w", fault_op::kWrite);
    auto write = node_->write(0, IoVec::of_const(data));
    auto flushed = co_await node_->flush();
    EXPECT_OK(flushed);
    EXPECT_OK(points.resume("w"));
    auto written = co_await write;
    EXPECT_OK(written);
  });
  EXPECT_EQ(after_cut(*log_, log_->moments(), kNone, 512), filled(512, 0));
  EXPECT_EQ(after_cut(*log_, log_->moments(), kAll, 512), filled(512, 1));
}

TEST_F(WriteLogTest, WritesTearAtSectors) {
  ASSERT_OK(write_bytes(*node_, 256, filled(1536, 3)));
  const auto odd = [](const WriteLog::Entry&, std::uint64_t sector) { return sector % 2 == 1; };
  auto expected = filled(2048, 0);
  std::fill_n(expected.begin() + 512, 512, std::byte{3});
  std::fill_n(expected.begin() + 1536, 256, std::byte{3});
  EXPECT_EQ(after_cut(*log_, log_->moments(), odd, 2048), expected);
}

TEST_F(WriteLogTest, FuaZeroesDiscardsAndFailures) {
  ASSERT_OK(write_bytes(*node_, 0, filled(1024, 4), {.fua = true}));
  ASSERT_OK(run([&] { return node_->write_zeroes(0, 512, {}); }));
  ASSERT_OK(run([&] { return node_->discard(512, 512); }));
  EXPECT_EQ(after_cut(*log_, log_->moments(), kNone, 1024), filled(1024, 4));
  EXPECT_EQ(after_cut(*log_, log_->moments(), kAll, 1024), filled(1024, 0));
  fault_points_of(*fault_)->add({.operations = fault_op::kFlush, .count = 1});
  EXPECT_FALSE(run([&] { return node_->flush(); }));
  EXPECT_EQ(after_cut(*log_, log_->moments(), kNone, 1024), filled(1024, 4));
  EXPECT_EQ(log_->durable_from()[1], WriteLog::kNever);
  log_->mark("told");
  EXPECT_EQ(log_->entries().back().text, "told");
  ASSERT_OK(run([&] { return node_->flush(); }));
  EXPECT_EQ(after_cut(*log_, log_->moments(), kNone, 1024), filled(1024, 0));
  const std::vector<std::size_t> from = log_->durable_from();
  EXPECT_EQ(from[0], 2u);
  EXPECT_EQ(from[1], log_->moments());
}

TEST_F(WriteLogTest, AFlushIsOneDisks) {
  const NodePtr other = *run(
      [&] { return make_write_log_node("other", make_memory_node("other-disk", 4096), log_, 1); });
  ASSERT_OK(write_bytes(*node_, 0, filled(512, 4)));
  ASSERT_OK(write_bytes(*other, 0, filled(512, 4)));
  ASSERT_OK(run([&] { return other->flush(); }));
  const std::vector<std::size_t> from = log_->durable_from();
  EXPECT_EQ(from[0], WriteLog::kNever);
  EXPECT_EQ(from[1], log_->moments());
  EXPECT_FALSE(log_->durable(log_->entries()[0], log_->moments()));
}

}  // namespace
}  // namespace platter
