// Faults: every I/O that an operation does fails once, in turn, with EIO and with ENOSPC; and so do
// all of its kind from then on, until the operation has ended. The caller is told, now or by the
// next flush, unless a second try has found space; what was acknowledged stays; what comes next
// works; and a check finds at most leaks.
//
// PLATTER_FAULTS: one in so many of the I/Os is tried (1: all).
#include "block/filters/fault.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "block/adapters/memory.h"
#include "powercut/rig.h"

namespace platter::powercut {
namespace {

using Kind = Operation::Kind;

// What a failed request was to do. A read may be done again; space that cannot be given back is a
// leak and not an error. So these need not be told, but must harm nothing either.
struct IoKind {
  const char* name;
  std::uint32_t operations;
  bool told;
};
constexpr IoKind kIoKinds[] = {{"read", fault_op::kRead, false},
                               {"write", fault_op::kWrite | fault_op::kWriteZeroes, true},
                               {"flush", fault_op::kFlush, true},
                               {"discard", fault_op::kDiscard, false},
                               {"extent", fault_op::kExtent, false},
                               {"resize", fault_op::kResize, false}};

// What fails with what, and how long: once, or until the operation has ended.
struct Manner {
  const char* name;
  int error;
  std::uint64_t count;  // 0: until then
};
constexpr Manner kManners[] = {{"fails with EIO", EIO, 1},
                               {"fails with ENOSPC", ENOSPC, 1},
                               {"and what follows fail with EIO", EIO, 0},
                               {"and what follows fail with ENOSPC", ENOSPC, 0}};

using Disks = std::vector<std::shared_ptr<MemoryDisk>>;

Disks disks_of_bytes(const std::vector<std::vector<std::byte>>& bytes) {
  Disks disks;
  for (const std::vector<std::byte>& one : bytes) {
    disks.push_back(std::make_shared<MemoryDisk>(0));
    if (!one.empty()) disks.back()->write(0, IoVec::of_const(one));
  }
  return disks;
}

// What the disks hold while the image is open: what is left when the program ends there.
struct Crash {
  const char* when;
  std::size_t moment;
  std::vector<std::vector<std::byte>> bytes;  // by disk
};

class FaultLoop {
 public:
  FaultLoop(const Operation& operation, const Shape& shape, Prepared prepared)
      : operation_(operation), shape_(shape), prepared_(std::move(prepared)) {}

  // The `number`-th request of a kind fails. False: there is no such request.
  bool fail_one(const IoKind& kind, std::uint64_t number, const Manner& manner) {
    History history = prepared_.history;
    disks_ = disks_of_bytes(prepared_.bytes);
    make_grounds();
    rule_ = {.operations = kind.operations,
             .skip = number,
             .count = manner.count,
             .error = manner.error};
    wrong_.clear();
    if (operation_.act || operation_.repairs()) {
      run([&] { return by_a_guest(history, kind); });
    } else {
      by_itself(history, kind);
    }
    make_grounds();
    if (acted_ && wrong_.empty()) {
      wrong_ = judge(operation_, shape_, history, kNever, true, number);
      if (!wrong_.empty()) wrong_ = "afterwards: " + wrong_;
    }
    for (const Crash& crash : crashes_) {
      if (!acted_ || !wrong_.empty()) break;
      disks_ = disks_of_bytes(crash.bytes);
      make_grounds();
      wrong_ = judge(operation_, shape_, history, crash.moment, false, number);
      if (!wrong_.empty()) wrong_ = fmt::format("after a crash {}: {}", crash.when, wrong_);
    }
    crashes_.clear();
    grounds_.clear();
    if (!wrong_.empty()) {
      ADD_FAILURE() << fmt::format("{}: {} number {} {}: {}", shape_.name, kind.name, number,
                                   manner.name, wrong_);
    }
    return acted_;
  }

 private:
  // As after a restart of the program.
  void make_grounds() {
    grounds_.clear();
    points_.clear();
    for (unsigned i = 0; i < disks_.size(); ++i) {
      auto node =
          run([&] { return make_fault_node(ground_name(i), make_memory_node("", disks_[i])); });
      points_.push_back(fault_points_of(**node));
      grounds_.add(std::move(*node));
    }
  }

  void note_crash(Guest& guest, const char* when) {
    Crash crash{.when = when, .moment = guest.moment(), .bytes = {}};
    for (const auto& disk : disks_) {
      std::vector<std::byte> bytes(disk->size());
      disk->read(0, IoVec(std::span(bytes)));
      crash.bytes.push_back(std::move(bytes));
    }
    crashes_.push_back(std::move(crash));
  }

  void arm() {
    for (FaultPoints* points : points_) points->add(rule_);
  }
  // The rule acts on each disk once: more than one fault, where there are two disks.
  void disarm() {
    acted_ = times_acted() != 0;
    for (FaultPoints* points : points_) points->clear_rules();
  }
  std::uint64_t times_acted() const {
    std::uint64_t times = 0;
    for (const FaultPoints* points : points_) times += points->acted();
    return times;
  }

  // Where there is space when a request looks again, it has nothing to tell.
  bool must_be_told(const IoKind& kind) const {
    const bool may_pass = rule_.error == ENOSPC && rule_.count != 0;
    return acted_ && kind.told && !may_pass;
  }

  // Making an image, or a command.
  void by_itself(History& history, const IoKind& kind) {
    ::testing::internal::CaptureStderr();
    arm();
    auto done = perform(operation_, shape_, history, nullptr, 1);
    disarm();
    const std::string said = ::testing::internal::GetCapturedStderr();
    if (done && must_be_told(kind)) wrong_ = "nobody is told";
    if (!done && !acted_) wrong_ = done.error().message();
    if (!done && !operation_.command.empty() && said.empty()) wrong_ = "it does not say why";
    if (done || !wrong_.empty()) return;
    make_grounds();
    // Looked at, and not written to.
    const std::string left = operation_.creates()
                                 ? std::string()
                                 : judge(operation_, shape_, history, kNever, true, kOnlyLook);
    make_grounds();
    if (!left.empty()) wrong_ = "before it is done again: " + left;
    done = perform(operation_, shape_, history, nullptr, 1);
    if (!done) wrong_ = "done again: " + done.error().message();
  }

  Task<void> by_a_guest(History& history, const IoKind& kind) {
    // Opening an image that was left open is part of what is tried.
    const bool from_the_start = operation_.kind == Kind::kDirty;
    if (from_the_start) arm();
    auto opened = co_await open_image(top_options(operation_), true, operation_.repairs());
    if (!opened) {
      disarm();
      if (!acted_) wrong_ = opened.error().message();
      co_return;
    }
    if (!from_the_start) arm();
    Guest guest(std::move(*opened), history, nullptr, shape_.cluster, 1);
    Result<void> done;
    if (operation_.repairs()) {
      const CheckRequest request{.fix_leaks = true, .fix_errors = true, .report = {}};
      auto checked = co_await guest.node().driver().checker()->check(request);
      if (!checked) done = forward_error(checked);
    } else {
      done = co_await operation_.act(guest);
    }
    note_crash(guest, "at once");
    if (rule_.count == 0) disarm();
    // What a failed operation has given back may be used before a flush has settled anything.
    if (!done && !operation_.repairs()) co_await reuse(guest);
    // Told at once or by the flush after it.
    auto flushed = co_await guest.flush();
    if (rule_.count != 0) disarm();
    if (!acted_ && !(done && flushed)) {
      wrong_ = "without a fault: " + (done ? flushed : done).error().message();
    }
    if (must_be_told(kind) && done && flushed) wrong_ = "nobody is told";
    if (!acted_ || !wrong_.empty() || given_up(flushed)) {
      auto closed = co_await guest.close();
      static_cast<void>(closed);
      co_return;
    }
    if (!operation_.repairs()) {
      wrong_ = co_await find_wrong(guest.node(), history, kNever, false);
      if (!wrong_.empty()) wrong_ = "at once: " + wrong_;
    }
    // What comes next works; a flush may have to say once more what was lost.
    if (wrong_.empty()) co_await next(guest);
    note_crash(guest, "later");
    auto closed = co_await guest.close();
    if (!closed && wrong_.empty()) wrong_ = "closing: " + closed.error().message();
  }

  // Cluster by cluster, so that every hole is filled; and in place, which shows at once.
  Task<void> reuse(Guest& guest) {
    for (const unsigned at : {81u, 83u, 85u, 87u, 89u, 2u}) {
      if (!wrong_.empty()) break;
      if ((at + 1) * shape_.cluster > guest.size()) continue;
      const std::uint64_t before = times_acted();
      auto written = co_await guest.write(at * shape_.cluster, shape_.cluster);
      // (The other disk's fault may be its.)
      if (!written && times_acted() == before && !given_up(written))
        wrong_ = "a write before the next flush: " + written.error().message();
    }
    note_crash(guest, "before the next flush");
  }

  // Without knowing what its tables are an image is only read, until it is opened anew.
  bool given_up(const Result<void>& done) const {
    return rule_.count == 0 && !done && done.error().kind() == ErrorKind::kGivenUp;
  }

  Task<void> next(Guest& guest) {
    const std::uint64_t c = guest.cluster();
    for (const std::uint64_t at : {80 * c, 2 * c, 40 * c}) {
      // Nobody writes to an image whose repair has failed.
      if (operation_.repairs()) break;
      if (at + c > guest.size()) continue;
      auto written = co_await guest.write(at, c);
      if (!written) wrong_ = "the next write: " + written.error().message();
    }
    note_crash(guest, "amid the next writes");
    Result<void> flushed = co_await guest.flush();
    for (int again = 0; again < 2 && !flushed; ++again) flushed = co_await guest.flush();
    if (!flushed) wrong_ = "the next flushes: " + flushed.error().message();
  }

  const Operation& operation_;
  const Shape& shape_;
  const Prepared prepared_;
  Disks disks_;
  std::vector<Crash> crashes_;
  Grounds grounds_;
  std::vector<FaultPoints*> points_;
  FaultRule rule_;
  bool acted_ = false;
  std::string wrong_;
};

std::uint64_t one_in() {
  const char* given = std::getenv("PLATTER_FAULTS");
  return given ? std::max<std::uint64_t>(std::strtoull(given, nullptr, 10), 1)
               : PLATTER_FAULTS_DEFAULT;
}

class Faults : public ::testing::TestWithParam<Operation> {};

TEST_P(Faults, AreToldAndHarmNothing) {
  const Operation& operation = GetParam();
  std::uint64_t count = 0;
  for (const Shape& shape : all_shapes()) {
    if (operation.fits && !operation.fits(shape)) continue;
    auto prepared = prepare(operation, shape, 1);
    ASSERT_TRUE(prepared) << prepared.error().message();
    FaultLoop loop(operation, shape, std::move(*prepared));
    for (const IoKind& kind : kIoKinds) {
      for (const Manner& manner : kManners) {
        for (std::uint64_t n = 0; loop.fail_one(kind, n, manner) && !HasFailure(); n += one_in())
          ++count;
      }
    }
    if (HasFailure()) break;
  }
  fmt::print("{}: {} faults\n", operation.name, count);
  std::fflush(stdout);
}

INSTANTIATE_TEST_SUITE_P(Operations, Faults,
                         ::testing::ValuesIn(all_operations().begin(), all_operations().end()),
                         [](const auto& one) { return one.param.name; });

}  // namespace
}  // namespace platter::powercut
