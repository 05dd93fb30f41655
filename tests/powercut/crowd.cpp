// What the crowd does: its lanes' requests, and the operations beside them.
#include "powercut/crowd.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <random>

#include "block/jobs/stream.h"
#include "block/node/options.h"

namespace platter::powercut::crowd {

bool failed() { return ::testing::Test::HasFailure(); }

// Whether it was done; it has to be, unless there are faults.
bool done_well(Scene& scene, const Result<void>& done, std::string_view what) {
  if (!done && scene.setting.faults) {
    scene.refused.fetch_add(1);
  } else {
    EXPECT_TRUE(done) << what << ": " << (done ? "" : done.error().message());
  }
  return done.has_value();
}

namespace {

constexpr std::uint64_t kBlock = 4;  // sectors that belong to one lane
constexpr unsigned kSteps = 24;      // of each lane

// One request after the other, on blocks of its own.
class Lane {
 public:
  Lane(Scene& scene, unsigned index)
      : scene_(scene), index_(index), random_(scene.seed * 131 + index) {}

  Task<void> play() {
    for (unsigned i = 0; i < kSteps && !failed(); ++i) {
      auto one = step();
      co_await one;
    }
    scene_.playing.fetch_sub(1);
  }

 private:
  std::uint64_t below(std::uint64_t n) { return random_() % n; }

  Task<void> step() {
    const std::uint64_t lane_blocks = (kSectors / kBlock - index_ + kLanes - 1) / kLanes;
    // Few clusters, so that lanes meet in them.
    const std::uint64_t block = below(std::min<std::uint64_t>(lane_blocks, 6)) * kLanes + index_;
    const bool whole = below(3) == 0;
    const std::uint64_t in = whole ? 0 : below(kBlock);
    const std::uint64_t sectors = whole ? kBlock : 1 + below(kBlock - in);
    const std::uint64_t first = block * kBlock + in;
    const std::uint64_t kind = below(20);
    if (scene_.setting.faults && below(12) == 0) add_fault();
    if (kind > 15) {
      auto reading = read(first, sectors);
      co_await reading;
    } else if (kind < 3) {
      auto flushing = flush();
      co_await flushing;
    } else if (kind == 3) {
      auto discarding = discard(first, sectors);
      co_await discarding;
    } else if (kind == 4) {
      begin(first, sectors, 0);
      const ZeroFlags flags{.may_unmap = below(2) == 0};
      auto done = co_await scene_.node.write_zeroes(first * kSector, sectors * kSector, flags);
      if (done_well(scene_, done, "zeroes")) end(first, sectors);
    } else {
      std::vector<std::byte> data(sectors * kSector);
      const Stamp stamp = ++stamp_;
      for (std::uint64_t i = 0; i < sectors; ++i)
        put_stamp(std::span(data).subspan(i * kSector, kSector), stamp, first + i);
      begin(first, sectors, stamp);
      const WriteFlags flags{.fua = kind == 5};
      auto done = co_await scene_.node.write(first * kSector, IoVec(std::span(data)), flags);
      if (!done_well(scene_, done, "write")) co_return;
      if (flags.fua) {
        const std::size_t now = scene_.log.moments();
        for (std::uint64_t s = first; s < first + sectors; ++s) {
          scene_.changes[s].back().done = now;
          scene_.changes[s].back().durable = now;
        }
      } else {
        end(first, sectors);
      }
    }
  }

  void begin(std::uint64_t first, std::uint64_t sectors, Stamp stamp) {
    const std::size_t now = scene_.log.moments();
    for (std::uint64_t s = first; s < first + sectors; ++s)
      scene_.changes[s].push_back({.stamp = stamp, .begun = now});
  }
  void end(std::uint64_t first, std::uint64_t sectors) {
    const std::size_t now = scene_.log.moments();
    for (std::uint64_t s = first; s < first + sectors; ++s) {
      scene_.changes[s].back().done = now;
      unflushed_.emplace_back(s, scene_.changes[s].size() - 1);
    }
  }

  // Once, for one of the next requests of a kind.
  void add_fault() {
    constexpr std::uint32_t kKinds[] = {
        fault_op::kRead,    fault_op::kWrite, fault_op::kWrite,  fault_op::kWriteZeroes,
        fault_op::kDiscard, fault_op::kFlush, fault_op::kResize, fault_op::kUsual};
    FaultRule rule{.operations = kKinds[below(std::size(kKinds))],
                   .skip = below(30),
                   .count = 1,
                   .error = below(2) == 0 ? EIO : ENOSPC};
    if (rule.operations == fault_op::kWrite && below(3) == 0)
      rule.action = FaultRule::Action::kShort;
    scene_.points[below(scene_.points.size())]->add(rule);
  }

  // What was acknowledged is there, whatever has failed since.
  Task<void> read(std::uint64_t first, std::uint64_t sectors) {
    std::vector<std::byte> now(sectors * kSector);
    auto done = co_await scene_.node.read(first * kSector, IoVec(std::span(now)));
    if (!done_well(scene_, done, "read")) co_return;
    for (std::uint64_t i = 0; i < sectors; ++i) {
      const std::vector<Change>& changes = scene_.changes[first + i];
      std::size_t from = changes.size() - 1;
      while (changes[from].done == kNever) --from;
      EXPECT_EQ(find_wrong(std::span(now).subspan(i * kSector, kSector), first + i, changes, from,
                           kNever),
                "");
    }
  }

  Task<void> flush() {
    auto done = co_await scene_.node.flush();
    if (!done_well(scene_, done, "flush")) co_return;
    const std::size_t now = scene_.log.moments();
    for (const auto& [sector, change] : unflushed_) scene_.changes[sector][change].durable = now;
    unflushed_.clear();
  }

  // What becomes of it is the format's choice.
  Task<void> discard(std::uint64_t first, std::uint64_t sectors) {
    begin(first, sectors, 0);
    auto done = co_await scene_.node.discard(first * kSector, sectors * kSector);
    if (!done_well(scene_, done, "discard")) co_return;
    std::vector<std::byte> now(sectors * kSector);
    done = co_await scene_.node.read(first * kSector, IoVec(std::span(now)));
    if (!done_well(scene_, done, "read")) co_return;
    for (std::uint64_t i = 0; i < sectors; ++i) {
      const auto shown = get_stamp(std::span(now).subspan(i * kSector, kSector), first + i);
      if (shown == Stamp{0}) {
        end(first + i, 1);
      } else {
        scene_.changes[first + i].pop_back();
      }
    }
  }

  Scene& scene_;
  const unsigned index_;
  std::mt19937 random_;
  Stamp stamp_ = 1;                                               // the backing image's
  std::vector<std::pair<std::uint64_t, std::size_t>> unflushed_;  // sector, change
};

}  // namespace

Task<void> play_lanes(Scene& scene, unsigned queue) {
  std::vector<std::unique_ptr<Lane>> lanes;
  std::vector<Task<void>> playing;
  for (unsigned i = queue; i < kLanes; i += kQueues) {
    lanes.push_back(std::make_unique<Lane>(scene, i));
    playing.push_back(lanes.back()->play());
  }
  for (Task<void>& one : playing) co_await one;
}

namespace {

// Takes one, or removes one once there are a few.
Task<Result<void>> change_snapshots(Scene& scene, unsigned number, std::uint64_t pick) {
  if (scene.setting.data_file) co_return Result<void>();  // keeps none
  SnapshotAbility& snapshots = *scene.node.driver().snapshots();
  const auto list = snapshots.list();
  if (list.size() < 3) {
    SnapshotRecord taken{
        .name = fmt::format("s{}", number), .created_begin = scene.log.moments(), .stamps = {}};
    scene.snapshots.push_back(taken);
    auto done = co_await snapshots.create(taken.name, number, 0);
    if (done) scene.snapshots.back().created_end = scene.log.moments();
    co_return done;
  }
  const std::string name = list[pick % list.size()].name;
  const auto known = std::ranges::find(scene.snapshots, name, &SnapshotRecord::name);
  known->removed_begin = std::min(known->removed_begin, scene.log.moments());
  auto done = co_await snapshots.remove(name);
  if (done) known->removed_end = scene.log.moments();
  co_return done;
}

}  // namespace

// In turns, on one executor.
Task<void> operate(Scene& scene) {
  Driver& driver = scene.node.driver();
  std::mt19937 random(scene.seed);
  const std::function<void(std::uint64_t, std::uint64_t)> untold;
  for (unsigned i = 0; scene.playing.load() != 0 && !failed(); ++i) {
    Result<void> done;
    std::string what;
    switch (random() % 6) {
      case 0: {
        what = "lazy refcounts";
        const auto change =
            Options::parse_keyval(random() % 2 == 0 ? "lazy_refcounts=on" : "lazy_refcounts=off");
        done = co_await driver.amender()->amend(*change, false, untold, nullptr);
        break;
      }
      case 1: {
        what = "resize";
        const ResizeRequest request{.size = kDisk + random() % ((kMost - kDisk) / 512) * 512};
        done = co_await scene.node.resize(request);
        break;
      }
      case 2: {
        what = "refcount width";
        const auto change =
            Options::parse_keyval(random() % 2 == 0 ? "refcount_bits=16" : "refcount_bits=64");
        done = co_await driver.amender()->amend(*change, false, untold, nullptr);
        break;
      }
      default: {
        what = "snapshots";
        auto changing = change_snapshots(scene, i, random());
        done = co_await changing;
        break;
      }
    }
    done_well(scene, done, what);
    // Others' requests come in between.
    done = co_await scene.node.flush();
    done_well(scene, done, "flush");
  }
}

Task<void> stream_up(Scene& scene) {
  StreamOptions options;
  options.in_flight = 4;
  auto done = co_await stream(scene.node, options);
  done_well(scene, done, "stream");
}

}  // namespace platter::powercut::crowd
