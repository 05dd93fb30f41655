// C10 with many at work: small writers in each cluster, on several executors over a real file,
// beside a stream, snapshots, resizes and changes of properties, until the power is cut at some
// moment. No two writers share a sector, so that of each it is known what a flush, whoever asked
// for it, has promised. In a second round requests to the file fail now and then.
//
// PLATTER_SEED, PLATTER_STATES: as for the operations one by one.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iostream>
#include <random>

#include "block/adapters/memory.h"
#include "block/exec/executor_thread.h"
#include "block/filters/fault.h"
#include "block/jobs/stream.h"
#include "block/node/graph.h"
#include "block/node/open_state.h"
#include "powercut/rig.h"
#include "unit/scratch_dir.h"
#include "unit/side_threads.h"

namespace platter::powercut::crowd {
namespace {

constexpr std::uint64_t kDisk = 1 << 20;
constexpr std::uint64_t kMost = kDisk + kDisk / 2;  // as far as the disk grows
constexpr std::uint64_t kSectors = kDisk / kSector;
constexpr std::uint64_t kBlock = 4;  // sectors that belong to one lane
constexpr unsigned kLanes = 24;
constexpr unsigned kQueues = 3;
constexpr unsigned kSteps = 24;  // of each lane
constexpr const char* kGround = "powercut-0";

struct Setting {
  const char* create;
  bool streams = false;
  bool faults = false;  // requests to the image's file fail now and then
  const char* open = "";
};

// What a lane has done to a sector. Each sector's changes are its lane's alone.
struct Change {
  Stamp stamp = 0;
  std::size_t begun = 0;         // moment
  bool done = false;             // acknowledged
  std::size_t durable = kNever;  // moment
};
using Changes = std::vector<std::vector<Change>>;  // by sector

struct Scene {
  BlockNode& node;
  const Setting& setting;
  WriteLog& log;
  FaultPoints& points;
  Changes& changes;
  unsigned seed;
  std::atomic<unsigned> playing{kLanes};
  std::atomic<unsigned> refused{0};
};

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

// What is wrong with what a sector shows, if it may show any change from `from` on.
std::string find_wrong(std::span<const std::byte> shown, std::uint64_t sector,
                       const std::vector<Change>& changes, std::size_t from, std::size_t cut) {
  const auto stamp = get_stamp(shown, sector);
  for (std::size_t i = from; i < changes.size(); ++i)
    if ((i == from || changes[i].begun < cut) && stamp == changes[i].stamp) return {};
  return fmt::format("sector {} of {} shows {}, at least {} was promised\n", sector, kSectors,
                     stamp ? fmt::format("{}", *stamp) : "what nobody wrote to it",
                     changes[from].stamp);
}

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
          scene_.changes[s].back().done = true;
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
    for (std::uint64_t s = first; s < first + sectors; ++s) {
      scene_.changes[s].back().done = true;
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
    scene_.points.add(rule);
  }

  // What was acknowledged is there, whatever has failed since.
  Task<void> read(std::uint64_t first, std::uint64_t sectors) {
    std::vector<std::byte> now(sectors * kSector);
    auto done = co_await scene_.node.read(first * kSector, IoVec(std::span(now)));
    if (!done_well(scene_, done, "read")) co_return;
    for (std::uint64_t i = 0; i < sectors; ++i) {
      const std::vector<Change>& changes = scene_.changes[first + i];
      std::size_t from = changes.size() - 1;
      while (!changes[from].done) --from;
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

Task<void> play_lanes(Scene& scene, unsigned queue) {
  std::vector<std::unique_ptr<Lane>> lanes;
  std::vector<Task<void>> playing;
  for (unsigned i = queue; i < kLanes; i += kQueues) {
    lanes.push_back(std::make_unique<Lane>(scene, i));
    playing.push_back(lanes.back()->play());
  }
  for (Task<void>& one : playing) co_await one;
}

// Beside them, in turns, on one executor.
Task<void> operate(Scene& scene) {
  Driver& driver = scene.node.driver();
  SnapshotAbility& snapshots = *driver.snapshots();
  std::mt19937 random(scene.seed);
  const std::function<void(std::uint64_t, std::uint64_t)> untold;
  for (unsigned i = 0; scene.playing.load() != 0 && !failed(); ++i) {
    const auto list = snapshots.list();
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
      default:
        if (list.size() < 3) {
          what = "snapshot";
          done = co_await snapshots.create(fmt::format("s{}", i), i, 0);
        } else {
          what = "removal";
          done = co_await snapshots.remove(list[random() % list.size()].name);
        }
        break;
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

Task<std::string> judge_task(const std::string& options, const Changes& changes, bool faults,
                             std::size_t cut, bool complete, std::uint64_t pick) {
  auto opened = co_await open_image(options, true);
  if (!opened) co_return opened.error().message();
  Edge node = std::move(*opened);
  std::string wrong = co_await check_wrong(*node, false, faults || !complete);
  if (!wrong.empty()) co_return std::move(wrong);
  std::vector<std::byte> now(kDisk);
  auto got = co_await node->read(0, IoVec(std::span(now)));
  if (!got) co_return got.error().message();
  for (std::uint64_t s = 0; s < kSectors; ++s) {
    std::size_t from = 0;
    for (std::size_t i = 0; i < changes[s].size(); ++i)
      if (changes[s][i].durable <= cut) from = i;
    wrong += find_wrong(std::span(now).subspan(s * kSector, kSector), s, changes[s], from, cut);
  }
  if (!wrong.empty()) co_return std::move(wrong);
  // The guest goes on.
  const std::uint64_t sector = pick % kSectors;
  std::vector<std::byte> data(kSector);
  put_stamp(data, 77, sector);
  auto done = co_await node->write(sector * kSector, IoVec(std::span(data)));
  if (done) done = co_await node->flush();
  if (!done) co_return done.error().message();
  wrong = co_await check_wrong(*node, false);
  if (!wrong.empty()) co_return "after a write: " + wrong;
  auto closed = co_await node.detach();
  if (!closed) co_return closed.error().message();
  co_return std::string();
}

Task<Result<Edge>> open_file(const std::string& filename) {
  OpenRequest request;
  auto parsed = Options::parse_keyval("driver=file,filename=" + filename);
  PLATTER_CO_TRY(parsed);
  request.options = std::move(*parsed);
  request.flags.read_only = false;
  request.flags.discard_unmap = true;
  request.permissions = {.need = 0, .shared = perm::kAll};
  auto opened = co_await open_node(std::move(request));
  co_return std::move(opened);
}

std::vector<std::byte> contents_of(const std::string& filename) {
  std::vector<std::byte> bytes(std::filesystem::file_size(filename));
  std::ifstream file(filename, std::ios::binary);
  file.read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  EXPECT_TRUE(file);
  return bytes;
}

std::uint64_t environment_number(const char* name, std::uint64_t otherwise) {
  const char* given = std::getenv(name);
  return given ? std::strtoull(given, nullptr, 10) : otherwise;
}

class CrowdCut : public ::testing::TestWithParam<Setting> {
 protected:
  CrowdCut() {
    std::vector<std::byte> bytes(kMost);
    for (std::uint64_t s = 0; s < kSectors; ++s)
      put_stamp(std::span(bytes).subspan(s * kSector, kSector), 1, s);
    backing_->write(0, IoVec(std::span(bytes)));
  }

  // Records what the crowd does to the image's file.
  void play(unsigned seed) {
    const std::string filename = dir_ / "image";
    std::filesystem::remove(filename);
    const std::string create =
        fmt::format("{},backing_file=memory:crowd-cut-backing,backing_fmt=raw", GetParam().create);
    auto made =
        run([&] { return create_image("qcow2", filename, kDisk, *Options::parse_keyval(create)); });
    ASSERT_TRUE(made) << made.error().message();
    before_ = {contents_of(filename)};
    auto main = ExecutorThread::start();
    ASSERT_TRUE(main);
    Executor& executor = (*main)->executor();
    auto file = [&]() -> Task<Result<Edge>> {
      auto below = co_await open_file(filename);
      PLATTER_CO_TRY(below);
      auto logging = co_await make_write_log_node("", below->node(), log_);
      PLATTER_CO_TRY(logging);
      auto failing = co_await make_fault_node(kGround, std::move(*logging));
      PLATTER_CO_TRY(failing);
      detail::remember_node(*failing);
      const Permissions none{.need = 0, .shared = perm::kAll};
      auto held = co_await Edge::attach(std::move(*failing), "the power-cut rig", none);
      co_return std::move(held);
    };
    auto ground = run_blocking(executor, file);
    ASSERT_TRUE(ground) << ground.error().message();
    auto opening = [&] { return open_image(options_, true); };
    auto opened = run_blocking(executor, opening);
    ASSERT_TRUE(opened) << opened.error().message();
    FaultPoints& points = *fault_points_of(*ground->node());
    Scene scene{.node = **opened,
                .setting = GetParam(),
                .log = *log_,
                .points = points,
                .changes = changes_,
                .seed = seed};
    {
      SideThreads side;
      for (unsigned i = 0; i < kQueues; ++i) side.start([&, i] { return play_lanes(scene, i); });
      side.start([&]() -> Task<void> {
        auto streaming = GetParam().streams ? stream_up(scene) : operate(scene);
        co_await streaming;
      });
    }
    if (GetParam().faults) std::cout << points.acted() << " faults, " << scene.refused << " told\n";
    points.clear_rules();
    for (int i = 0; GetParam().faults && i < 2; ++i) {
      // The first one may tell of what has failed before.
      auto flushing = [&] { return opened->node()->flush(); };
      if (run_blocking(executor, flushing)) all_durable(log_->moments());
    }
    auto closing = [&] { return opened->detach(); };
    auto closed = run_blocking(executor, closing);
    done_well(scene, closed, "close");
    auto leaving = [&] { return ground->detach(); };
    closed = run_blocking(executor, leaving);
    EXPECT_TRUE(closed);
  }

  void all_durable(std::size_t now) {
    for (auto& changes : changes_) {
      for (Change& change : changes)
        if (change.done) change.durable = std::min(change.durable, now);
    }
  }

  std::uint64_t try_cuts(unsigned seed, std::uint64_t states) {
    const Trial trial{.name = fmt::format("{}, seed {}", GetParam().create, seed),
                      .before = before_,
                      .log = *log_,
                      .judge = [&](std::size_t cut, bool complete, std::uint64_t pick) {
                        return run([&] {
                          return judge_task(options_, changes_, GetParam().faults, cut, complete,
                                            pick);
                        });
                      }};
    return try_states(trial, {.states = states, .seed = seed});
  }

  ScratchDir dir_;
  const std::shared_ptr<MemoryDisk> backing_ = make_memory_disk("crowd-cut-backing", kMost);
  const std::string options_ =
      fmt::format("driver=qcow2,file={},discard=unmap{}", kGround, GetParam().open);
  const std::shared_ptr<WriteLog> log_ = std::make_shared<WriteLog>();
  Changes changes_ =
      Changes(kSectors, {Change{.stamp = 1, .begun = 0, .done = true, .durable = 0}});
  std::vector<std::vector<std::byte>> before_;
};

TEST_P(CrowdCut, WhatWasFlushedIsThere) {
  const auto seed = static_cast<unsigned>(environment_number("PLATTER_SEED", 20261124));
  play(seed);
  if (failed()) return;
  const std::uint64_t states = try_cuts(seed, environment_number("PLATTER_STATES", 0));
  std::cout << states << " states of a power cut\n";
  EXPECT_GT(states, 0u);
}

constexpr Setting kSettings[] = {
    {.create = "cluster_size=4k"},
    {.create = "cluster_size=4k", .streams = true},
    {.create = "cluster_size=64k"},
    {.create = "cluster_size=512"},
    {.create = "cluster_size=512", .streams = true},
    {.create = "cluster_size=16k,extended_l2=on"},
    {.create = "cluster_size=16k,extended_l2=on", .streams = true},
    {.create = "cluster_size=4k,lazy_refcounts=on",
     .open = ",l2-cache-size=1024,l2-cache-entry-size=512,refcount-cache-size=1024"},
};

constexpr Setting kFaultySettings[] = {
    {.create = "cluster_size=4k", .faults = true},
    {.create = "cluster_size=4k", .streams = true, .faults = true},
    {.create = "cluster_size=64k", .faults = true},
    {.create = "cluster_size=512", .faults = true},
    {.create = "cluster_size=16k,extended_l2=on", .faults = true},
    {.create = "cluster_size=16k,extended_l2=on", .streams = true, .faults = true},
    {.create = "cluster_size=4k,lazy_refcounts=on",
     .faults = true,
     .open = ",l2-cache-size=1024,l2-cache-entry-size=512,refcount-cache-size=1024"},
};

INSTANTIATE_TEST_SUITE_P(Faulty, CrowdCut, ::testing::ValuesIn(kFaultySettings));
INSTANTIATE_TEST_SUITE_P(Settings, CrowdCut, ::testing::ValuesIn(kSettings));

}  // namespace
}  // namespace platter::powercut::crowd
