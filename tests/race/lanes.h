// Several executors on one image, with a model in memory. Each queue has several requests in
// flight, and each of these owns stripes of the disk that do not end at cluster borders, so that
// all share clusters and tables.
#pragma once

#include <fmt/format.h>

#include <cstdlib>
#include <memory>
#include <thread>

#include "block/exec/executor_thread.h"
#include "race/race_support.h"

// How long the long runs take, in seconds: enough to see that they work, unless a build asks for
// more.
#ifndef PLATTER_STRESS_SECONDS_DEFAULT
#define PLATTER_STRESS_SECONDS_DEFAULT 4
#endif

namespace platter::qcow2::testing {

inline constexpr std::uint64_t kStripe = 14848;  // 3.6 clusters of 4 KiB
inline constexpr std::uint64_t kSize = std::uint64_t{4} << 20;

inline unsigned from_environment(const char* name, unsigned otherwise) {
  const char* const given = std::getenv(name);
  return given ? static_cast<unsigned>(std::atoi(given)) : otherwise;
}

inline unsigned stress_seconds() {
  return from_environment("PLATTER_STRESS_SECONDS", PLATTER_STRESS_SECONDS_DEFAULT);
}

// A sequence of requests, one after the other, on stripes of its own.
class Lane {
 public:
  // `before`: what the disk shows.
  Lane(BlockNode& node, unsigned index, unsigned lanes, unsigned seed, unsigned steps,
       const std::vector<std::byte>& before)
      : node_(node),
        index_(index),
        lanes_(lanes),
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
    for (std::uint64_t s = index_; s < stripes() && !::testing::Test::HasFailure(); s += lanes_) {
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
        << "lane " << index_ << " at " << offset << "+" << length;
  }

  Task<void> step() {
    const std::uint64_t stripe =
        index_ + lanes_ * below((stripes() - index_ + lanes_ - 1) / lanes_);
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
            ADD_FAILURE() << "lane " << index_ << ": discarded " << offset + i
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
  const unsigned lanes_;
  std::mt19937 random_;
  const unsigned steps_;
  std::vector<std::byte> model_;
};

inline constexpr unsigned kInFlight = 2;  // lanes of each queue

struct Play {
  unsigned queues = 4;
  unsigned steps = 250;  // of each lane
  unsigned seed = from_environment("PLATTER_SEED", 20250601);
  std::vector<std::byte> before = std::vector<std::byte>(kSize);  // what the disk shows
  Task<Result<void>> (*beside)(BlockNode& node) = nullptr;  // done while the queues are at work
};

// Opens the image, lets all lanes play at once, and checks what they and the image's checker find.
inline void play(const MemoryImage& image, std::string_view open_options, Play game = {}) {
  game.steps = from_environment("PLATTER_STEPS", game.steps);
  SCOPED_TRACE(fmt::format("PLATTER_SEED={}", game.seed));
  // One executor outlives all: the node is opened and closed there.
  auto main = ExecutorThread::start();
  ASSERT_TRUE(main);
  auto opening = [&] { return image.open(true, open_options); };
  auto opened = run_blocking((*main)->executor(), opening);
  ASSERT_TRUE(opened) << opened.error().message();
  {
    std::vector<std::unique_ptr<ExecutorThread>> threads;
    for (unsigned i = 0; i < game.queues; ++i) {
      auto thread = ExecutorThread::start();
      ASSERT_TRUE(thread);
      threads.push_back(std::move(*thread));
    }
    const unsigned count = game.queues * kInFlight;
    std::vector<std::unique_ptr<Lane>> lanes;
    for (unsigned i = 0; i < count; ++i)
      lanes.push_back(
          std::make_unique<Lane>(**opened, i, count, game.seed, game.steps, game.before));
    std::vector<std::thread> waiters;
    for (unsigned i = 0; i < count; ++i) {
      waiters.emplace_back([&, i] {
        auto playing = [&] { return lanes[i]->play(); };
        run_blocking(threads[i % game.queues]->executor(), playing);
      });
    }
    if (game.beside) {
      auto doing = [&] { return game.beside(**opened); };
      auto done = run_blocking((*main)->executor(), doing);
      EXPECT_TRUE(done) << (done ? "" : done.error().message());
    }
    for (std::thread& waiter : waiters) waiter.join();
    for (const auto& lane : lanes) {
      auto verifying = [&] { return lane->verify_all(); };
      run_blocking((*main)->executor(), verifying);
    }
  }
  auto checking = [&] { return leaks_of(**opened); };
  EXPECT_EQ(run_blocking((*main)->executor(), checking), 0u);
  auto closing = [&] { return opened->detach(); };
  auto closed = run_blocking((*main)->executor(), closing);
  EXPECT_TRUE(closed) << (closed ? "" : closed.error().message());
}

}  // namespace platter::qcow2::testing
