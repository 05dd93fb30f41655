#include "powercut/meanwhile.h"

#include <fmt/format.h>

#include "block/exec/timer.h"
#include "block/filters/fault.h"

namespace platter::powercut {
namespace {

using Done = Task<Result<void>>;

// One thing that the guest does while something else is under way; no two touch the same sector.
Done meanwhile(Guest& g, std::uint64_t number) {
  const std::uint64_t c = g.cluster();
  const std::uint64_t round = number / 6;
  switch (number % 6) {
    case 0:  // to what is shared, first of all
      return g.write((round < 3 ? 20 + round : 40 + round) * c, kSector);
    case 1:
      return g.flush();
    case 2:
      return g.write((30 + round) * c, kSector);
    case 3:
      return round < 3 ? g.discard((1 + round) * c, c) : g.flush();
    case 4:
      return g.write_compressed((55 + round) * c, c);
    default:
      return round < 2 ? g.write_zeroes((7 + round) * c, c, true) : g.flush();
  }
}

// At every write and flush that `task` does, the guest does something first.
Done interleave(Guest& g, Done task) {
  FaultPoints* const points = fault_points_of(g.node());
  std::vector<Done> others;
  std::string tag = "start";
  for (std::uint64_t number = 0; points && number < 50; ++number) {
    while (!task.done() && !points->is_suspended(tag))
      co_await sleep_for(std::chrono::nanoseconds(0));
    if (task.done()) break;
    others.push_back(meanwhile(g, number));
    const std::string next = fmt::format("halt {}", number);
    points->suspend_operation(next, fault_op::kWrite | fault_op::kWriteZeroes | fault_op::kFlush);
    auto resumed = points->resume(tag);
    static_cast<void>(resumed);
    tag = next;
  }
  if (points) {
    auto gone = points->remove_break(tag);
    static_cast<void>(gone);
  }
  auto done = co_await task;
  for (Done& other : others) {
    auto one = co_await other;
    if (done) done = std::move(one);
  }
  co_return done;
}

Done end_of_both(Guest& g, Done both) {
  auto done = co_await both;
  PLATTER_CO_TRY(done);
  done = co_await g.write(9 * g.cluster(), kSector);
  if (done) done = co_await g.flush();
  co_return done;
}

}  // namespace

Done snapshot_while_writing(Guest& g) {
  // What the snapshot shows is certain once the L1 table has changed for it.
  if (FaultPoints* const points = fault_points_of(g.node()))
    points->suspend("start", FaultEvent::kL1Update);
  return end_of_both(g, interleave(g, g.snapshot("second")));
}
Done remove_while_writing(Guest& g) {
  if (FaultPoints* const points = fault_points_of(g.node()))
    points->suspend_operation("start", fault_op::kWrite | fault_op::kFlush);
  return end_of_both(g, interleave(g, g.remove("first")));
}

}  // namespace platter::powercut
