// C10: random operations are recorded below the image; then the image is opened in states that a
// power cut at any moment could have left: what was flushed is there, everything else is there,
// absent or torn at sector borders. Each state must open, have no error but leaks, hold all that
// the guest had flushed, and never show one range's bytes in another.
#include <fmt/format.h>

#include "block/filters/write_log.h"
#include "block/node/open_state.h"
#include "unit/qcow2/engine_support.h"

namespace platter::qcow2 {
namespace {

using namespace testing;  // NOLINT: helpers of these tests

constexpr std::uint64_t kSize = 1 << 20;
constexpr std::uint64_t kSector = WriteLog::kSector;

// What the guest may read from a sector.
struct Value {
  std::size_t begin = 0;  // moments
  std::size_t end = 0;
  std::byte byte{0};
  bool advice = false;  // a discard: what was there before may stay
};
struct Flush {
  std::size_t begin = 0;
  std::size_t end = 0;
};

class Recording {
 public:
  Recording(std::string create, std::string open, unsigned seed, int steps)
      : create_(std::move(create)), open_(std::move(open)), random_(seed), steps_(steps) {}

  Task<void> record() {
    MemoryImage image("powercut", kSize, create_);
    {
      auto opened = co_await image.open();
      EXPECT_TRUE(opened);
      Edge node = std::move(*opened);
      for (std::uint64_t at = 0; at < kSize / 2; at += 3 * kCluster) {
        auto data = std::vector<std::byte>(kCluster, std::byte{1});
        auto written = co_await node->write(at, iov(data));
        EXPECT_TRUE(written);
        note(at, kCluster, std::byte{1}, 0, false);
      }
      auto closed = co_await node.detach();
      EXPECT_TRUE(closed);
    }
    base_.resize(image.disk().size());
    image.disk().read(0, iov(base_));

    auto logging = co_await make_write_log_node(
        "powercut-log", make_memory_node("powercut-disk", find_memory_disk("powercut")), log_);
    EXPECT_TRUE(logging);
    detail::remember_node(*logging);
    OpenRequest request;
    request.options =
        options("driver=qcow2,file=powercut-log" + (open_.empty() ? "" : "," + open_));
    request.flags.read_only = false;
    request.permissions = Permissions::writer();
    auto opened = co_await open_node(std::move(request));
    EXPECT_TRUE(opened) << (opened ? "" : opened.error().message());
    if (!opened) co_return;
    Edge node = std::move(*opened);
    for (int i = 0; i < steps_; ++i) {
      auto one = step(*node, static_cast<std::byte>(2 + i % 250));
      co_await one;
    }
    auto closed = co_await node.detach();
    EXPECT_TRUE(closed);
  }

  // Opens the image as it may be after a cut.
  Task<void> judge(std::size_t cut, unsigned seed) {
    auto disk = make_memory_disk("powercut-after", base_.size());
    disk->write(0, iov(base_));
    std::mt19937 coin(seed);
    const unsigned odds = coin() % 4;  // from nearly nothing to everything
    const auto keep = [&](const WriteLog::Entry&, std::uint64_t) {
      return odds == 3 || coin() % 4 <= odds;
    };
    replay(*log_, cut, keep, *disk);
    OpenRequest request;
    request.filename = "memory:powercut-after";
    request.format = "qcow2";
    request.flags.read_only = false;
    request.permissions = Permissions::writer();
    auto opened = co_await open_node(std::move(request));
    EXPECT_TRUE(opened) << (opened ? "" : opened.error().message());
    if (!opened) co_return;
    Edge node = std::move(*opened);
    CheckRequest check;
    std::string lines;
    check.report = [&](std::string_view line) { lines += std::string(line) + "\n"; };
    auto checked = co_await node->driver().checker()->check(check);
    EXPECT_TRUE(checked) << (checked ? "" : checked.error().message());
    if (checked) {
      EXPECT_EQ(checked->corruptions, 0u) << lines;
      EXPECT_EQ(checked->check_errors, 0u) << lines;
    }
    std::vector<std::byte> now(kSize);
    auto got = co_await node->read(0, iov(now));
    EXPECT_TRUE(got) << (got ? "" : got.error().message());
    Flush last;
    for (const Flush& flush : flushes_) {
      if (flush.end <= cut) last = flush;
    }
    for (std::uint64_t sector = 0; sector < kSize / kSector; ++sector) {
      const std::span<const std::byte> bytes(now.data() + sector * kSector, kSector);
      if (!allowed(sector, bytes, cut, last)) {
        ADD_FAILURE() << "sector " << sector << " holds " << std::to_integer<int>(bytes[0])
                      << " .. " << std::to_integer<int>(bytes[kSector - 1]);
        break;
      }
    }
    auto closed = co_await node.detach();
    EXPECT_TRUE(closed);
    remove_memory_disk("powercut-after");
  }

  std::size_t moments() const { return log_->moments(); }

 private:
  static constexpr std::uint64_t kCluster = 4096;

  void note(std::uint64_t offset, std::uint64_t length, std::byte byte, std::size_t begin,
            bool advice) {
    for (std::uint64_t s = offset / kSector; s < (offset + length) / kSector; ++s) {
      history_[s].push_back({begin, log_->moments(), byte, advice});
    }
  }

  // All of one value that may be there: the last durable one, or a later one that had begun.
  bool allowed(std::uint64_t sector, std::span<const std::byte> bytes, std::size_t cut,
               const Flush& last) const {
    const std::byte byte = bytes[0];
    if (std::any_of(bytes.begin(), bytes.end(), [&](std::byte b) { return b != byte; }))
      return false;
    bool durable_found = false;
    const std::vector<Value>& values = history_[sector];
    for (auto value = values.rbegin(); value != values.rend(); ++value) {
      if (value->begin > cut) continue;
      if (value->byte == byte) return true;
      if (!value->advice && value->end <= last.begin && last.end != 0) {
        durable_found = true;
        break;
      }
      // Before the first flush: what the image began with was durable.
      if (!value->advice && value->begin == 0 && value->end == 0) {
        durable_found = true;
        break;
      }
    }
    return !durable_found && byte == std::byte{0};
  }

  Task<void> step(BlockNode& node, std::byte byte) {
    const std::uint64_t offset = random_() % (kSize / kSector) * kSector;
    const std::uint64_t length =
        std::min<std::uint64_t>((1 + random_() % 40) * kSector, kSize - offset);
    const std::size_t begin = log_->moments();
    Result<void> done;
    switch (random_() % 12) {
      case 0:
      case 1:
      case 2:
      case 3:
      case 4: {
        auto data = std::vector<std::byte>(length, byte);
        done = co_await node.write(offset, iov(data));
        note(offset, length, byte, begin, false);
        break;
      }
      case 5: {
        const std::uint64_t start = offset / kCluster * kCluster;
        auto data = std::vector<std::byte>(2 * kCluster, byte);
        WriteFlags packed{.compressed = true};
        if (start + data.size() > kSize) break;
        done = co_await node.write(start, iov(data), packed);
        note(start, data.size(), byte, begin, false);
        break;
      }
      case 6: {
        done = co_await node.discard(offset, length);
        note(offset, length, std::byte{0}, begin, true);
        break;
      }
      case 7: {
        ZeroFlags flags{.may_unmap = (random_() & 1) != 0};
        done = co_await node.write_zeroes(offset, length, flags);
        note(offset, length, std::byte{0}, begin, false);
        break;
      }
      case 8: {
        if (random_() % 2 == 0) break;
        SnapshotAbility& snapshots = *node.driver().snapshots();
        if (taken_) {
          done = co_await snapshots.remove("s");
        } else {
          done = co_await snapshots.create("s", 1, 0);
        }
        taken_ = !taken_;
        // Either makes everything before durable.
        flushes_.push_back({begin, log_->moments()});
        break;
      }
      default: {
        done = co_await node.flush();
        flushes_.push_back({begin, log_->moments()});
        break;
      }
    }
    EXPECT_TRUE(done) << (done ? "" : done.error().message());
  }

  const std::string create_;
  const std::string open_;
  std::mt19937 random_;
  const int steps_;
  std::shared_ptr<WriteLog> log_ = std::make_shared<WriteLog>();
  std::vector<std::byte> base_;
  std::vector<std::vector<Value>> history_ = std::vector<std::vector<Value>>(kSize / kSector);
  std::vector<Flush> flushes_;
  bool taken_ = false;
};

std::uint64_t number(const char* name, std::uint64_t otherwise) {
  const char* given = std::getenv(name);
  return given ? std::strtoull(given, nullptr, 10) : otherwise;
}

class PowerCut : public ::testing::TestWithParam<std::pair<const char*, const char*>> {};

TEST_P(PowerCut, EveryStateOpensAndKeepsWhatWasFlushed) {
  const auto seed = static_cast<unsigned>(number("PLATTER_SEED", 20250601));
  // As many as a short run has time for; PLATTER_STATES=200000 is a long one.
  const std::uint64_t most = number("PLATTER_STATES", 200);
  Recording recording(GetParam().first, GetParam().second, seed,
                      static_cast<int>(number("PLATTER_STEPS", 60)));
  run([&] { return recording.record(); });
  std::mt19937 random(seed);
  std::uint64_t states = 0;
  for (; states < most && !HasFailure(); ++states) {
    const std::size_t cut = random() % (recording.moments() + 1);
    const unsigned fate = static_cast<unsigned>(random());
    SCOPED_TRACE(
        fmt::format("seed {}, cut at moment {} of {}", seed, cut, recording.moments()));
    run([&] { return recording.judge(cut, fate); });
  }
  std::printf("%llu states of a power cut\n", static_cast<unsigned long long>(states));
}

INSTANTIATE_TEST_SUITE_P(Shapes, PowerCut,
                         ::testing::Values(std::pair{"cluster_size=4k", "discard=unmap"},
                                           std::pair{"cluster_size=4k,refcount_bits=64",
                                                     "l2-cache-size=1024,l2-cache-entry-size=512"},
                                           std::pair{"cluster_size=512", "discard=unmap"},
                                           std::pair{"cluster_size=4k,lazy_refcounts=on", ""}));

}  // namespace
}  // namespace platter::qcow2
