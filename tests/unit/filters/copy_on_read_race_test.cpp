// The copy-on-read filter with several executors: two read the same clusters, which only the slow
// backing disk has, while a third writes to them.
#include <algorithm>
#include <array>
#include <atomic>
#include <memory>
#include <random>
#include <thread>

#include "block/adapters/memory.h"
#include "block/exec/executor_thread.h"
#include "block/filters/fault.h"
#include "unit/node/support.h"

namespace platter {
namespace {

using namespace platter::testing;

constexpr std::uint64_t kPiece = 4096;  // a cluster
constexpr std::uint64_t kPieces = 128;
constexpr std::uint64_t kWhole = kPiece * kPieces;

class CopyOnReadRace : public ::testing::Test {
 protected:
  void SetUp() override {
    make_memory_disk("cor_race_base", kWhole);
    make_memory_disk("cor_race_top", 0);
    base_ = bytes_of(kWhole, 1);
    find_memory_disk("cor_race_base")->write(0, IoVec::of_const(base_));
    Options options;
    options.set("cluster_size", "4096");
    options.set("backing_file", "blkdebug::memory:cor_race_base");
    options.set("backing_fmt", "raw");
    ASSERT_OK(run([&] { return create_image("qcow2", "memory:cor_race_top", kWhole, options); }));
    for (auto& thread : threads_) {
      auto started = ExecutorThread::start();
      ASSERT_OK(started);
      thread = std::move(*started);
    }
    OpenRequest request;
    request.options = *Options::parse_keyval(
        "driver=copy-on-read,file.driver=blkdebug,file.image.driver=qcow2,"
        "file.image.file.filename=memory:cor_race_top");
    request.flags.read_only = false;
    request.permissions = Permissions::writer();
    auto opening = [&] { return open_node(request); };
    auto edge = run_blocking(executor(0), opening);
    ASSERT_OK(edge);
    edge_ = std::move(*edge);
    backing_ = fault_points_of(*edge_->skip_filters().backing());
    image_ = fault_points_of(*edge_);
    ASSERT_TRUE(backing_ && image_);
  }

  void TearDown() override {
    if (edge_) {
      auto closing = [&] { return edge_.detach(); };
      EXPECT_OK(run_blocking(executor(0), closing));
    }
    for (auto& thread : threads_) thread.reset();
    remove_memory_disk("cor_race_base");
    remove_memory_disk("cor_race_top");
  }

  Executor& executor(unsigned index) { return threads_[index]->executor(); }

  std::vector<std::byte> read(unsigned index, std::uint64_t offset, std::uint64_t length) {
    std::vector<std::byte> bytes(length);
    auto reading = [&] { return edge_->read(offset, IoVec(std::span(bytes))); };
    EXPECT_OK(run_blocking(executor(index), reading));
    return bytes;
  }
  void write(unsigned index, std::uint64_t offset, const std::vector<std::byte>& bytes) {
    auto writing = [&] { return edge_->write(offset, IoVec::of_const(bytes)); };
    EXPECT_OK(run_blocking(executor(index), writing));
  }
  std::vector<std::byte> base_at(std::uint64_t offset, std::uint64_t length) const {
    const auto from = base_.begin() + static_cast<std::ptrdiff_t>(offset);
    return {from, from + static_cast<std::ptrdiff_t>(length)};
  }

  std::vector<std::byte> base_;
  std::array<std::unique_ptr<ExecutorThread>, 3> threads_;
  Edge edge_;
  FaultPoints* image_ = nullptr;  // between the filter and the image
  FaultPoints* backing_ = nullptr;
};

Task<void> wait_for_halt(FaultPoints* points) {
  auto halted = points->wait_suspended("copy");
  co_await halted;
}

// A write that begins while its cluster is being copied is not lost under the copy.
TEST_F(CopyOnReadRace, AWriteDuringACopyStays) {
  image_->suspend("copy", FaultEvent::kCorWrite);  // the cluster has been found not allocated
  std::vector<std::byte> first;
  std::vector<std::byte> second;
  const std::vector<std::byte> mine = filled(kPiece, 7);
  std::thread one([&] { first = read(0, kPiece, kPiece); });
  auto waiting = [&] { return wait_for_halt(image_); };
  run_blocking(executor(1), waiting);
  std::thread two([&] { second = read(1, kPiece, kPiece); });
  std::atomic<bool> begun{false};
  std::thread three([&] {
    auto writing = [&] {
      auto task = edge_->write(kPiece, IoVec::of_const(mine));
      begun.store(true);
      begun.notify_all();
      return task;
    };
    EXPECT_OK(run_blocking(executor(2), writing));
  });
  begun.wait(false);
  EXPECT_OK(image_->resume("copy"));
  for (std::thread* thread : {&one, &two, &three}) thread->join();
  EXPECT_TRUE(first == base_at(kPiece, kPiece));
  EXPECT_TRUE(second == base_at(kPiece, kPiece) || second == mine);
  EXPECT_TRUE(read(0, kPiece, kPiece) == mine);
}

// Every sector that a reader sees is the backing disk's or the writer's, and in the end all that
// was read is kept, and all that was written.
TEST_F(CopyOnReadRace, QueuesReadTheSameClustersWhileOneIsWritten) {
  backing_->add(
      {.operations = fault_op::kRead, .action = FaultRule::Action::kDelay, .delay_ns = 20'000});
  std::vector<std::uint64_t> order(kPieces);
  for (std::uint64_t i = 0; i < kPieces; ++i) order[i] = i;
  std::mt19937 random(20250601);
  std::shuffle(order.begin(), order.end(), random);
  constexpr std::uint64_t kSector = 512;
  const auto written = [](std::uint64_t piece) { return filled(kSector, 1 + int(piece) % 255); };
  const auto place = [](std::uint64_t piece) { return piece * kPiece + piece % 8 * kSector; };

  std::vector<std::thread> queues;
  for (unsigned queue = 0; queue < 2; ++queue) {
    queues.emplace_back([&, queue] {
      for (const std::uint64_t piece : order) {
        const std::vector<std::byte> got = read(queue, piece * kPiece, kPiece);
        for (std::uint64_t at = 0; at < kPiece; at += kSector) {
          const std::vector<std::byte> sector(
              got.begin() + static_cast<std::ptrdiff_t>(at),
              got.begin() + static_cast<std::ptrdiff_t>(at + kSector));
          const std::uint64_t offset = piece * kPiece + at;
          EXPECT_TRUE(sector == base_at(offset, kSector) ||
                      (offset == place(piece) && sector == written(piece)))
              << "sector at " << offset;
        }
      }
    });
  }
  queues.emplace_back([&] {
    for (const std::uint64_t piece : order) write(2, place(piece), written(piece));
  });
  for (std::thread& queue : queues) queue.join();

  // What was kept does not depend on the backing disk any more.
  find_memory_disk("cor_race_base")->zero(0, kWhole);
  std::vector<std::byte> expected = base_;
  for (std::uint64_t piece = 0; piece < kPieces; ++piece) {
    const std::vector<std::byte> sector = written(piece);
    std::copy(sector.begin(), sector.end(),
              expected.begin() + static_cast<std::ptrdiff_t>(place(piece)));
  }
  EXPECT_TRUE(read(0, 0, kWhole) == expected);
  CheckRequest request;
  auto checking = [&] { return edge_->skip_filters().driver().checker()->check(request); };
  auto checked = run_blocking(executor(0), checking);
  ASSERT_OK(checked);
  EXPECT_EQ(checked->corruptions + checked->leaks + checked->check_errors, 0U);
}

}  // namespace
}  // namespace platter
