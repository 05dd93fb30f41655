// C9 and C16: several executors on one image, with a model in memory. Each executor owns stripes of
// the disk that do not end at cluster borders, so that all share clusters and tables.
#include <fmt/format.h>

#include "block/exec/executor_thread.h"
#include "block/jobs/stream.h"
#include "race/race_support.h"

namespace platter::qcow2 {
namespace {

using namespace testing;  // NOLINT: helpers of these tests

constexpr std::uint64_t kStripe = 14848;  // 3.6 clusters of 4 KiB
constexpr std::uint64_t kSize = std::uint64_t{4} << 20;

class Queue {
 public:
  Queue(BlockNode& node, unsigned index, unsigned queues, unsigned seed, unsigned steps,
        const std::vector<std::byte>& before)
      : node_(node),
        index_(index),
        queues_(queues),
        random_(seed * 31 + index),
        steps_(steps),
        model_(before) {}

  Task<void> play() {
    for (unsigned i = 0; i < steps_ && !::testing::Test::HasFailure(); ++i) {
      auto one = step();
      co_await one;
    }
    auto same = verify_all();
    co_await same;
  }

  Task<void> verify_all() {
    for (std::uint64_t s = index_; s < stripes() && !::testing::Test::HasFailure(); s += queues_) {
      auto same = verify(s * kStripe, std::min(kStripe, kSize - s * kStripe));
      co_await same;
    }
  }

 private:
  static std::uint64_t stripes() { return (kSize + kStripe - 1) / kStripe; }
  std::uint64_t below(std::uint64_t n) { return random_() % n; }

  Task<void> verify(std::uint64_t offset, std::uint64_t length) {
    std::vector<std::byte> now(length);
    auto got = co_await node_.read(offset, iov(now));
    EXPECT_TRUE(got) << (got ? "" : got.error().message());
    EXPECT_TRUE(
        std::equal(now.begin(), now.end(), model_.begin() + static_cast<std::ptrdiff_t>(offset)))
        << "queue " << index_ << " at " << offset << "+" << length;
  }

  Task<void> step() {
    const std::uint64_t stripe =
        index_ + queues_ * below((stripes() - index_ + queues_ - 1) / queues_);
    const std::uint64_t start = stripe * kStripe;
    const std::uint64_t room = std::min(kStripe, kSize - start);
    const std::uint64_t offset = start + below(room) / 512 * 512;
    const std::uint64_t length = std::min((below(room) / 512 + 1) * 512, start + room - offset);
    const auto at = model_.begin() + static_cast<std::ptrdiff_t>(offset);
    Result<void> done;
    switch (below(10)) {
      case 0:
      case 1:
      case 2:
      case 3: {
        auto data = pattern(length, static_cast<unsigned>(random_()));
        done = co_await node_.write(offset, iov(data));
        std::copy(data.begin(), data.end(), at);
        break;
      }
      case 4: {
        ZeroFlags flags{.may_unmap = below(2) == 0};
        done = co_await node_.write_zeroes(offset, length, flags);
        std::fill_n(at, length, std::byte{0});
        break;
      }
      case 5: {
        done = co_await node_.discard(offset, length);
        std::vector<std::byte> now(length);
        auto got = co_await node_.read(offset, iov(now));
        EXPECT_TRUE(got);
        for (std::uint64_t i = 0; i < length; ++i) {
          const bool fair = now[i] == std::byte{0} || now[i] == model_[offset + i];
          if (!fair)
            ADD_FAILURE() << "queue " << index_ << ": discarded " << offset + i
                          << " reads as another's byte";
          if (!fair) co_return;
        }
        std::copy(now.begin(), now.end(), at);
        break;
      }
      case 6:
        done = co_await node_.flush();
        break;
      default: {
        auto same = verify(offset, length);
        co_await same;
        break;
      }
    }
    EXPECT_TRUE(done) << (done ? "" : done.error().message());
  }

  BlockNode& node_;
  const unsigned index_;
  const unsigned queues_;
  std::mt19937 random_;
  const unsigned steps_;
  std::vector<std::byte> model_;
};

// `before` is what the disk shows; `beside` is done while the queues are at work.
void play(const MemoryImage& image, std::string_view open_options, unsigned queues, unsigned steps,
          const std::vector<std::byte>& before = std::vector<std::byte>(kSize),
          Task<Result<void>> (*beside)(BlockNode& node) = nullptr) {
  unsigned seed = 20250601;
  if (const char* given = std::getenv("PLATTER_SEED"))
    seed = static_cast<unsigned>(std::atoi(given));
  if (const char* given = std::getenv("PLATTER_STEPS"))
    steps = static_cast<unsigned>(std::atoi(given));
  SCOPED_TRACE(fmt::format("seed {}", seed));
  // One executor outlives all: the node is opened and closed there.
  auto main = ExecutorThread::start();
  ASSERT_TRUE(main);
  auto opening = [&] { return image.open(true, open_options); };
  auto opened = run_blocking((*main)->executor(), opening);
  ASSERT_TRUE(opened) << opened.error().message();
  {
    std::vector<std::unique_ptr<ExecutorThread>> threads;
    std::vector<std::unique_ptr<Queue>> players;
    for (unsigned i = 0; i < queues; ++i) {
      auto thread = ExecutorThread::start();
      ASSERT_TRUE(thread);
      threads.push_back(std::move(*thread));
      players.push_back(std::make_unique<Queue>(**opened, i, queues, seed, steps, before));
    }
    std::vector<std::thread> waiters;
    for (unsigned i = 0; i < queues; ++i) {
      waiters.emplace_back([&, i] {
        auto playing = [&] { return players[i]->play(); };
        run_blocking(threads[i]->executor(), playing);
      });
    }
    if (beside) {
      auto doing = [&] { return beside(**opened); };
      auto done = run_blocking((*main)->executor(), doing);
      EXPECT_TRUE(done) << (done ? "" : done.error().message());
    }
    for (std::thread& waiter : waiters) waiter.join();
    for (const auto& player : players) {
      auto verifying = [&] { return player->verify_all(); };
      run_blocking((*main)->executor(), verifying);
    }
  }
  auto checking = [&] { return leaks_of(**opened); };
  EXPECT_EQ(run_blocking((*main)->executor(), checking), 0u);
  auto closing = [&] { return opened->detach(); };
  auto closed = run_blocking((*main)->executor(), closing);
  EXPECT_TRUE(closed) << (closed ? "" : closed.error().message());
}

TEST(C9, FourQueuesOnTinyCaches) {
  MemoryImage image("c9", kSize, "cluster_size=4k");
  play(image, "discard=unmap,l2-cache-size=1024,l2-cache-entry-size=512,refcount-cache-size=1024",
       4, 250);
}

TEST(C9, FourQueuesOverABackingFile) {
  auto backing = make_memory_disk("c9-backing", kSize);
  MemoryImage image("c9b", kSize, "cluster_size=4k,backing_file=memory:c9-backing,backing_fmt=raw");
  play(image, "discard=unmap", 4, 250);
  remove_memory_disk("c9-backing");
}

TEST(C9, FourQueuesOnSubclusters) {
  auto backing = make_memory_disk("c9-backing", kSize);
  MemoryImage image("c9s", kSize,
                    "cluster_size=16k,extended_l2=on,backing_file=memory:c9-backing,backing_fmt=raw");
  play(image, "discard=unmap,l2-cache-size=1024,l2-cache-entry-size=512,refcount-cache-size=1024",
       4, 250);
  remove_memory_disk("c9-backing");
}

TEST(C9, FourQueuesOnAnExternalDataFile) {
  MemoryImage image("c9d", kSize, "cluster_size=4k,data_file=memory:c9-data,data_file_raw=on");
  play(image, "discard=unmap", 4, 250);
  remove_memory_disk("c9-data");
}

// Streaming ------------------------------------------------------------------------------------

Task<Result<void>> stream_whole(BlockNode& node) {
  StreamOptions options;
  options.in_flight = 4;
  auto streamed = co_await stream(node, options);
  PLATTER_CO_TRY(streamed);
  EXPECT_EQ(node.backing(), nullptr);
  co_return {};
}

Task<Result<void>> stream_to_bottom(BlockNode& node) {
  StreamOptions options;
  options.in_flight = 4;
  options.base = node.backing()->backing();
  auto streamed = co_await stream(node, options);
  PLATTER_CO_TRY(streamed);
  EXPECT_EQ(node.backing(), options.base);
  co_return {};
}

// Data with holes of some clusters, so that zeroes are met as well.
std::vector<std::byte> holey(unsigned seed) {
  auto data = pattern(kSize, seed);
  for (std::uint64_t at = 3 * kStripe; at < kSize; at += 7 * kStripe)
    std::fill_n(data.begin() + static_cast<std::ptrdiff_t>(at), std::min(2 * kStripe, kSize - at),
                std::byte{0});
  return data;
}

Task<void> fill_with(const MemoryImage& image, std::vector<std::byte>& data) {
  auto opened = co_await image.open();
  CO_OK(opened);
  auto written = co_await (*opened)->write(0, iov(data));
  CO_OK(written);
  ZeroFlags unmap{.may_unmap = true};
  for (std::uint64_t at = 3 * kStripe; at < kSize; at += 7 * kStripe) {
    auto zeroed = co_await (*opened)->write_zeroes(at, std::min(2 * kStripe, kSize - at), unmap);
    CO_OK(zeroed);
  }
  auto closed = co_await opened->detach();
  CO_OK(closed);
}

void stream_under_writers(const char* options) {
  SCOPED_TRACE(options);
  auto bottom = make_memory_disk("c9-bottom", kSize);
  auto hidden = pattern(kSize, 1);
  bottom->write(0, iov(hidden));
  const MemoryImage middle("c9-middle", kSize,
                           "cluster_size=4k,backing_file=memory:c9-bottom,backing_fmt=raw");
  auto shown = holey(2);
  run([&] { return fill_with(middle, shown); });
  for (const auto beside : {stream_whole, stream_to_bottom}) {
    const MemoryImage image(
        "c9t", kSize,
        std::string("backing_file=memory:c9-middle,backing_fmt=qcow2,") + options);
    play(image, "discard=unmap,l2-cache-size=1024,l2-cache-entry-size=512", 4, 250, shown, beside);
  }
  remove_memory_disk("c9-bottom");
}

TEST(C9, StreamUnderFourQueues) {
  stream_under_writers("cluster_size=4k");
  stream_under_writers("cluster_size=16k,extended_l2=on");
  stream_under_writers("cluster_size=4k,compat=0.10");
}

// Unaligned heads and tails beside aligned writes: the file below takes whole sectors of 4 KiB
// only.
TEST(C16, SectorsThatAreSharedByUnalignedWritesLoseNothing) {
  make_memory_disk("c16", 0);
  MemoryImage image("c16", kSize, "cluster_size=16k");
  play(image,
       "file.driver=memory,file.name=c16,file.request-alignment=4096,file.memory-alignment=512", 4,
       200);
}

}  // namespace
}  // namespace platter::qcow2
