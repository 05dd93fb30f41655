// The fault filter: rules by event, state and range, breakpoints, actions, options.
#include "block/filters/fault.h"

#include <unistd.h>

#include <cstdlib>
#include <fstream>

#include "block/adapters/memory.h"
#include "unit/node/support.h"
#include "unit/scratch_dir.h"

namespace platter {
namespace {

using namespace testing;

class Fault : public ::testing::Test {
 protected:
  void SetUp() override {
    disk_ = std::make_shared<MemoryDisk>(64 << 10);
    auto node = run([&] { return make_fault_node("fault", make_memory_node("disk", disk_)); });
    ASSERT_OK(node);
    node_ = *node;
    points_ = fault_points_of(*node_);
    ASSERT_TRUE(points_);
  }
  void announce(FaultEvent event) {
    run([&] { return node_->announce(event); });
  }
  int write_code(std::uint64_t offset = 0) {
    const Result<void> r = write_bytes(*node_, offset, filled(512, 1));
    return r ? 0 : r.error().code();
  }

  std::shared_ptr<MemoryDisk> disk_;
  NodePtr node_;
  FaultPoints* points_ = nullptr;
};

TEST_F(Fault, WithoutRulesAllPasses) {
  EXPECT_EQ(write_code(), 0);
  EXPECT_EQ(read_bytes(*node_, 0, 512), filled(512, 1));
  EXPECT_OK(run([&] { return node_->flush(); }));
  EXPECT_EQ(points_->acted(), 0U);
  EXPECT_EQ(points_->requests(fault_op::kWrite), 1U);
}

TEST_F(Fault, RulesMatchOperationRangeSkipAndCount) {
  points_->add({.operations = fault_op::kWrite,
                .offset = 4096,
                .length = 512,
                .skip = 1,
                .count = 2,
                .error = ENOSPC});
  EXPECT_EQ(write_code(0), 0);
  EXPECT_EQ(write_code(4608), 0);
  EXPECT_EQ(write_code(4096), 0);  // skipped
  EXPECT_EQ(write_code(4096), ENOSPC);
  EXPECT_EQ(write_code(4000), ENOSPC);  // overlaps
  EXPECT_EQ(write_code(4096), 0);
  EXPECT_EQ(read_bytes(*node_, 4096, 1).size(), 1U);
  EXPECT_EQ(points_->acted(), 2U);
}

TEST_F(Fault, WhatHasNoRangeMatchesOnlyRulesWithoutOne) {
  points_->add({.operations = fault_op::kFlush | fault_op::kWrite, .offset = 4096, .length = 512});
  EXPECT_OK(run([&] { return node_->flush(); }));
  EXPECT_EQ(write_code(4096), EIO);
  EXPECT_EQ(points_->acted(), 1U);
  points_->clear_rules();
  points_->add({.operations = fault_op::kFlush});
  EXPECT_FALSE(run([&] { return node_->flush(); }));
}

// The example of docs/devel/blkdebug.txt: the second write_aio fails, not the first.
TEST_F(Fault, StatesTellTheSecondEventFromTheFirst) {
  points_->add_transition(FaultEvent::kWriteAio, 1, 2);
  points_->add({.event = FaultEvent::kWriteAio, .state = 2, .error = EIO});
  announce(FaultEvent::kWriteAio);
  EXPECT_EQ(write_code(), 0);
  announce(FaultEvent::kFlushToDisk);
  EXPECT_EQ(write_code(), 0);
  announce(FaultEvent::kWriteAio);
  EXPECT_EQ(write_code(), EIO);
  EXPECT_EQ(write_code(), EIO);  // armed until another event arms others
}

TEST_F(Fault, WritesAndZeroesAnnounceThemselves) {
  points_->add({.event = FaultEvent::kPwritev, .count = 1, .error = EIO});
  EXPECT_EQ(write_code(), EIO);
  EXPECT_EQ(write_code(), 0);
  EXPECT_EQ(points_->announced(FaultEvent::kPwritev), 2U);
  EXPECT_EQ(points_->announced(FaultEvent::kPwritevDone), 2U);
  points_->add({.event = FaultEvent::kPwritevZero, .count = 1, .error = ENOSPC});
  const auto zero = [&] {
    const Result<void> zeroed = run([&] { return node_->write_zeroes(0, 4096); });
    return zeroed ? 0 : zeroed.error().code();
  };
  EXPECT_EQ(zero(), ENOSPC);
  EXPECT_EQ(zero(), 0);
  EXPECT_EQ(points_->announced(FaultEvent::kPwritevZero), 2U);
  EXPECT_EQ(points_->announced(FaultEvent::kPwritevDone), 4U);
}

TEST_F(Fault, AnArmedEventGivesWayToAnother) {
  points_->add({.event = FaultEvent::kL2Load, .count = 0, .error = EIO});
  points_->add({.event = FaultEvent::kL2Update, .count = 1, .error = ENOSPC});
  EXPECT_EQ(write_code(), 0);
  announce(FaultEvent::kL2Load);
  EXPECT_EQ(write_code(), EIO);
  announce(FaultEvent::kL2Update);
  EXPECT_EQ(write_code(), ENOSPC);
  EXPECT_EQ(write_code(), 0);  // once
}

TEST_F(Fault, ActionsShortAndCorrupt) {
  ASSERT_OK(write_bytes(*node_, 0, filled(4096, 9)));
  points_->add({.operations = fault_op::kWrite,
                .count = 1,
                .error = EIO,
                .action = FaultRule::Action::kShort});
  EXPECT_FALSE(write_bytes(*node_, 0, filled(4096, 1)));
  auto expected = filled(4096, 9);
  std::fill_n(expected.begin(), 2048, std::byte{1});
  EXPECT_EQ(read_bytes(*node_, 0, 4096), expected);
  points_->add({.operations = fault_op::kWrite, .count = 1, .action = FaultRule::Action::kFlip});
  const auto data = filled(4096, 1);
  EXPECT_OK(write_bytes(*node_, 0, data));
  EXPECT_EQ(data, filled(4096, 1));  // the caller's buffer is not touched
  expected = filled(4096, 1);
  expected[0] = ~expected[0];
  EXPECT_EQ(read_bytes(*node_, 0, 4096), expected);
  points_->add({.operations = fault_op::kRead,
                .count = 1,
                .action = FaultRule::Action::kDelay,
                .delay_ns = 1000});
  EXPECT_EQ(read_bytes(*node_, 0, 4096), expected);
  EXPECT_EQ(points_->acted(), 3U);
}

TEST_F(Fault, ARequestHaltsUntilResumed) {
  auto executor = Executor::create();
  (*executor)->block_on([&]() -> Task<void> {
    const auto data = filled(512, 5);
    points_->suspend_operation("A", fault_op::kWrite, 512, 512);
    auto held = node_->write(512, IoVec::of_const(data));
    auto passes = co_await node_->write(0, IoVec::of_const(data));
    EXPECT_OK(passes);
    co_await points_->wait_suspended("A");
    EXPECT_TRUE(points_->is_suspended("A"));
    EXPECT_FALSE(held.done());
    auto second = co_await node_->write(512, IoVec::of_const(data));  // a breakpoint holds one
    EXPECT_OK(second);
    EXPECT_FALSE(points_->resume("B"));
    EXPECT_OK(points_->resume("A"));
    auto written = co_await held;
    EXPECT_OK(written);
    EXPECT_FALSE(points_->is_suspended("A"));

    points_->suspend("E", FaultEvent::kClusterAlloc);
    auto announced = node_->announce(FaultEvent::kClusterAlloc);
    EXPECT_TRUE(points_->is_suspended("E"));
    EXPECT_OK(points_->remove_break("E"));
    co_await announced;
    EXPECT_EQ(points_->announced(FaultEvent::kClusterAlloc), 1U);

    points_->suspend("never", FaultEvent::kL2Load);
    EXPECT_OK(points_->remove_break("never"));
    EXPECT_FALSE(points_->remove_break("never"));
    co_await node_->announce(FaultEvent::kL2Load);
  });
}

TEST(FaultOptions, OpenAsBlkdebug) {
  make_memory_disk("bd", 64 << 10);
  OpenRequest request;
  request.options = *Options::parse_keyval(
      "driver=raw,read-only=off,file.driver=blkdebug,file.image.driver=memory,file.image.name=bd,"
      "file.align=512,"
      "file.max-transfer=4096,file.set-state.0.event=write_aio,file.set-state.0.state=1,file.set-"
      "state.0.new_state=2,"
      "file.inject-error.0.event=write_aio,file.inject-error.0.state=2,file.inject-error.0.errno="
      "28,"
      "file.inject-error.0.once=on,file.inject-error.1.event=none,file.inject-error.1.iotype=read,"
      "file.inject-error.1.sector=3");
  request.permissions = Permissions::writer();
  auto edge = run([&] { return open_node(request); });
  ASSERT_OK(edge);
  // raw announces write_aio and read_aio itself.
  EXPECT_OK(write_bytes(**edge, 0, filled(512, 1)));
  EXPECT_EQ(write_bytes(**edge, 0, filled(512, 1)).error().code(), ENOSPC);
  EXPECT_OK(write_bytes(**edge, 0, filled(512, 1)));
  std::vector<std::byte> buffer(512);
  EXPECT_EQ(run([&] { return (*edge)->read(1536, IoVec(std::span(buffer))); }).error().code(), EIO);
  EXPECT_EQ(read_bytes(**edge, 1024, 512), filled(512, 0));
  // Unaligned and long requests reach the image padded and split.
  EXPECT_OK(write_bytes(**edge, 10001, filled(9000, 3)));
  EXPECT_EQ(read_bytes(**edge, 10001, 9000), filled(9000, 3));
  EXPECT_OK(run([&] { return edge->detach(); }));
  remove_memory_disk("bd");
}

TEST(FaultOptions, FilenameAndConfigurationFile) {
  const ScratchDir dir;
  const std::string config = dir / "c";
  // (A rule may have an id.)
  std::ofstream(config)
      << "# comment\n[inject-error \"one\"]\nevent = \"read_aio\"\nerrno = \"28\"\n";
  make_memory_disk("bd", 4096);
  OpenRequest request;
  request.filename = "blkdebug:" + config + ":memory:bd";
  request.format = "raw";
  auto edge = run([&] { return open_node(request); });
  ASSERT_OK(edge);
  std::vector<std::byte> buffer(512);
  EXPECT_EQ(run([&] { return (*edge)->read(0, IoVec(std::span(buffer))); }).error().code(), ENOSPC);
  EXPECT_OK(run([&] { return edge->detach(); }));
  remove_memory_disk("bd");
}

TEST(FaultOptions, MistakesAreNamed) {
  const auto config = [](std::string_view text) {
    FaultPoints points;
    return message_of(add_rules_from_config(text, points));
  };
  EXPECT_EQ(config("[inject-error]\nevent = \"nope\"\n"), "invalid parameter value: nope");
  EXPECT_EQ(config("[inject-error]\nerrno = \"5\"\n"), "Missing event name for rule");
  EXPECT_EQ(config("[other]\nx = \"5\"\n"), "There is no option group 'other'");
  EXPECT_EQ(config("[inject-error x]\n"), "There is no option group 'inject-error x'");
  EXPECT_EQ(config("x = \"5\"\n"), "no group defined");
  EXPECT_EQ(config("[inject-error]\nevent = l2_load\n"), "line 2: parse error");
  EXPECT_EQ(config("[inject-error]\nevent = \"l2_load\"\nbogus = \"1\"\n"),
            "[inject-error] section doesn't support the option 'bogus'");
  EXPECT_EQ(config("[inject-error]\nevent = \"l2_load\"\nonce = \"1\"\n"),
            "Parameter 'once' expects 'on' or 'off'");
}

TEST(FaultEvents, EveryEventHasItsName) {
  for (unsigned i = 0; i < static_cast<unsigned>(FaultEvent::kCount); ++i) {
    const auto event = static_cast<FaultEvent>(i);
    EXPECT_EQ(parse_fault_event(fault_event_name(event)), event);
  }
  EXPECT_EQ(fault_event_name(FaultEvent::kClusterAllocSpace), "cluster_alloc_space");
  EXPECT_FALSE(parse_fault_event("bogus"));
}

}  // namespace
}  // namespace platter
