// C10 with many at work: small writers in each cluster, on several executors over a real file,
// beside a stream, snapshots, resizes and changes of properties, until the power is cut at some
// moment. No two writers share a sector, so that of each it is known what a flush, whoever asked
// for it, has promised. In a second round requests to the file fail now and then.
//
// PLATTER_SEED, PLATTER_STATES: as for the operations one by one.
#include "powercut/crowd.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iostream>

#include "block/adapters/memory.h"
#include "block/exec/executor_thread.h"
#include "block/filters/fault.h"
#include "block/node/graph.h"
#include "block/node/open_state.h"
#include "powercut/rig.h"
#include "unit/scratch_dir.h"
#include "unit/side_threads.h"

namespace platter::powercut::crowd {
namespace {

// A file of the image's, as the rig's disk of that number: what fails and what reaches it.
Task<Result<Edge>> open_ground(const std::string& filename, std::shared_ptr<WriteLog> log,
                               unsigned disk) {
  OpenRequest request;
  auto parsed = Options::parse_keyval("driver=file,filename=" + filename);
  PLATTER_CO_TRY(parsed);
  request.options = std::move(*parsed);
  request.flags.read_only = false;
  request.flags.discard_unmap = true;
  request.permissions = {.need = 0, .shared = perm::kAll};
  auto below = co_await open_node(std::move(request));
  PLATTER_CO_TRY(below);
  auto logging = co_await make_write_log_node("", below->node(), std::move(log), disk);
  PLATTER_CO_TRY(logging);
  auto failing = co_await make_fault_node(ground_name(disk), std::move(*logging));
  PLATTER_CO_TRY(failing);
  detail::remember_node(*failing);
  const Permissions none{.need = 0, .shared = perm::kAll};
  auto held = co_await Edge::attach(std::move(*failing), "the power-cut rig", none);
  co_return std::move(held);
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
    make_secrets();
    std::vector<std::byte> bytes(kMost);
    for (std::uint64_t s = 0; s < kSectors; ++s)
      put_stamp(std::span(bytes).subspan(s * kSector, kSector), 1, s);
    backing_->write(0, IoVec(std::span(bytes)));
  }

  // The image's files as they are at first.
  void make_image() {
    const std::string image = dir_ / "image";
    std::string create =
        fmt::format("{},backing_file=memory:crowd-cut-backing,backing_fmt=raw", GetParam().create);
    files_ = {image};
    if (GetParam().data_file) {
      files_.push_back(dir_ / "data");
      create += ",data_file=" + files_.back();
    }
    auto made =
        run([&] { return create_image("qcow2", image, kDisk, *Options::parse_keyval(create)); });
    ASSERT_TRUE(made) << made.error().message();
    for (const std::string& file : files_) before_.push_back(contents_of(file));
  }

  // Records what the crowd does to the image's files.
  void play(unsigned seed) {
    make_image();
    if (failed()) return;
    auto main = ExecutorThread::start();
    ASSERT_TRUE(main);
    Executor& executor = (*main)->executor();
    std::vector<Edge> grounds;
    std::vector<FaultPoints*> points;
    for (const std::string& file : files_) {
      const auto disk = static_cast<unsigned>(grounds.size());
      auto making = [&] { return open_ground(file, log_, disk); };
      auto ground = run_blocking(executor, making);
      ASSERT_TRUE(ground) << ground.error().message();
      grounds.push_back(std::move(*ground));
      points.push_back(fault_points_of(*grounds.back().node()));
    }
    auto opening = [&] { return open_image(options_, true); };
    auto opened = run_blocking(executor, opening);
    ASSERT_TRUE(opened) << opened.error().message();
    Scene scene{.node = **opened,
                .setting = GetParam(),
                .log = *log_,
                .points = points,
                .changes = changes_,
                .snapshots = snapshots_,
                .seed = seed};
    {
      SideThreads side;
      for (unsigned i = 0; i < kQueues; ++i) side.start([&, i] { return play_lanes(scene, i); });
      side.start([&]() -> Task<void> {
        auto streaming = GetParam().streams ? stream_up(scene) : operate(scene);
        co_await streaming;
      });
    }
    for (FaultPoints* const one : points) {
      if (GetParam().faults) std::cout << one->acted() << " faults, " << scene.refused << " told\n";
      one->clear_rules();
    }
    for (int i = 0; GetParam().faults && i < 2; ++i) {
      // The first one may tell of what has failed before.
      auto flushing = [&] { return opened->node()->flush(); };
      if (run_blocking(executor, flushing)) all_durable(log_->moments());
    }
    auto closing = [&] { return opened->detach(); };
    auto closed = run_blocking(executor, closing);
    done_well(scene, closed, "close");
    for (Edge& ground : grounds) {
      auto leaving = [&] { return ground.detach(); };
      closed = run_blocking(executor, leaving);
      EXPECT_TRUE(closed);
    }
  }

  void all_durable(std::size_t now) {
    for (auto& changes : changes_) {
      for (Change& change : changes)
        if (change.done != kNever) change.durable = std::min(change.durable, now);
    }
  }

  std::uint64_t try_cuts(unsigned seed, std::uint64_t states) {
    const Trial trial{.name = fmt::format("{}, seed {}", GetParam().create, seed),
                      .before = before_,
                      .log = *log_,
                      .judge = [&](std::size_t cut, bool complete, std::uint64_t pick) {
                        const Evidence evidence{.options = options_,
                                                .changes = changes_,
                                                .snapshots = snapshots_,
                                                .leaks_allowed = GetParam().faults || !complete};
                        return run([&] { return judge(evidence, cut, pick); });
                      }};
    return try_states(trial, {.states = states, .seed = seed});
  }

  ScratchDir dir_;
  const std::shared_ptr<MemoryDisk> backing_ = make_memory_disk("crowd-cut-backing", kMost);
  const std::string options_ =
      fmt::format("driver=qcow2,file={},discard=unmap{}{}", ground_name(0),
                  GetParam().data_file ? ",data-file=" + ground_name(1) : "", GetParam().open);
  const std::shared_ptr<WriteLog> log_ = std::make_shared<WriteLog>();
  Changes changes_ = Changes(kSectors, {Change{.stamp = 1, .begun = 0, .done = 0, .durable = 0}});
  std::vector<SnapshotRecord> snapshots_;
  std::vector<std::string> files_;
  std::vector<std::vector<std::byte>> before_;  // by file
};

TEST_P(CrowdCut, WhatWasFlushedIsThere) {
  const auto seed = static_cast<unsigned>(environment_number("PLATTER_SEED", 20261124));
  play(seed);
  if (failed()) return;
  const std::uint64_t states = try_cuts(seed, environment_number("PLATTER_STATES", 0));
  std::cout << states << " states of a power cut\n";
  EXPECT_GT(states, 0u);
}

constexpr const char* kEncrypted =
    "cluster_size=4k,encrypt.format=luks,encrypt.key-secret=powercut-old,encrypt.iter-time=0,"
    "encrypt.cipher-alg=aes-128,encrypt.cipher-mode=cbc,encrypt.ivgen-alg=essiv";
constexpr const char* kKey = ",encrypt.key-secret=powercut-old";

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
    {.create = "cluster_size=4k", .data_file = true},
    {.create = "cluster_size=4k", .streams = true, .data_file = true},
    {.create = kEncrypted, .open = kKey},
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
    {.create = "cluster_size=4k", .faults = true, .data_file = true},
    {.create = "cluster_size=4k", .streams = true, .faults = true, .data_file = true},
    {.create = kEncrypted, .faults = true, .open = kKey},
};

INSTANTIATE_TEST_SUITE_P(Faulty, CrowdCut, ::testing::ValuesIn(kFaultySettings));
INSTANTIATE_TEST_SUITE_P(Settings, CrowdCut, ::testing::ValuesIn(kSettings));

}  // namespace
}  // namespace platter::powercut::crowd
