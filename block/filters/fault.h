// fault: a filter that makes requests fail, halt or go wrong where a test wants it.
//
// Rules match an event that the node above announces (fault_event.h) or an operation, by offset and
// by the engine's state number, as described in QEMU's docs/devel/blkdebug.txt: an error rule with
// an event is armed when that event is announced, and stays armed until another event arms others;
// one without an event is always armed. A breakpoint holds one request until resume(tag).
//
// As a driver ("blkdebug"): image=..., config=FILE, align, max-transfer, opt-write-zero,
// max-write-zero, opt-discard, max-discard, take-child-perms.N, unshare-child-perms.N,
// inject-error.N.{event,state,iotype,errno,sector,once,
// immediately,offset,length,skip,count,action,delay-ns}, set-state.N.{event,state,new_state};
// as a filename: "blkdebug:CONFIG:FILE" (CONFIG may be empty).
//
// Threads: FaultPoints: any. A halted coroutine goes on on its own executor.
// Ownership: the driver owns its FaultPoints; tests share it.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "block/base/mutex.h"
#include "block/exec/sync.h"
#include "block/node/driver.h"
#include "block/node/node.h"
#include "block/node/options.h"

namespace platter {

namespace fault_op {
inline constexpr std::uint32_t kRead = 1;
inline constexpr std::uint32_t kWrite = 2;
inline constexpr std::uint32_t kWriteZeroes = 4;
inline constexpr std::uint32_t kDiscard = 8;
inline constexpr std::uint32_t kFlush = 16;
inline constexpr std::uint32_t kExtent = 32;
inline constexpr std::uint32_t kResize = 64;
// All but kExtent and kResize.
inline constexpr std::uint32_t kUsual = 31;
}  // namespace fault_op

struct FaultRule {
  enum class Action : std::uint8_t {
    kFail,   // nothing is done; the error is reported
    kShort,  // the first half (whole sectors) is done, then the error is reported
    kDelay,  // done after delay_ns
    kFlip,   // done, but with the first byte of what is read or written inverted
  };
  FaultEvent event = FaultEvent::kNone;
  unsigned state = 0;  // 0: any
  std::uint32_t operations = fault_op::kUsual;
  std::uint64_t offset = 0;  // bytes; a request must overlap the range, so a flush never does
  std::uint64_t length = ~std::uint64_t{0};
  std::uint64_t skip = 0;   // matches to let pass first
  std::uint64_t count = 0;  // matches to act on; 0: all
  int error = EIO;
  bool immediately = false;  // fail without suspending first
  Action action = Action::kFail;
  std::uint64_t delay_ns = 0;
};

class FaultPoints {
 public:
  FaultPoints() = default;
  FaultPoints(const FaultPoints&) = delete;
  FaultPoints& operator=(const FaultPoints&) = delete;

  void add(FaultRule rule);
  // While in `state` (0: any), `event` changes the state to `new_state`. The first state is 1.
  void add_transition(FaultEvent event, unsigned state, unsigned new_state);
  void clear_rules();
  // Number of times a rule has acted.
  std::uint64_t acted() const;
  // Number of times `event` was announced, and of requests of the given operations.
  std::uint64_t announced(FaultEvent event) const;
  std::uint64_t requests(std::uint32_t operations) const;

  // Breakpoints: the next announcement of `event`, or the next request of one of `operations` that
  // overlaps the range, halts until resume(tag).
  void suspend(std::string tag, FaultEvent event);
  void suspend_operation(std::string tag, std::uint32_t operations, std::uint64_t offset = 0,
                         std::uint64_t length = ~std::uint64_t{0});
  bool is_suspended(std::string_view tag) const;
  Task<void> wait_suspended(std::string tag);
  // ENOENT when nothing halts under that tag.
  Result<void> resume(std::string_view tag);
  // Takes an unreached breakpoint out, and resumes what halts at it.
  Result<void> remove_break(std::string_view tag);

  // For the driver.
  Task<void> announce(FaultEvent event);
  Task<void> pass_breakpoints(std::uint32_t operation, std::uint64_t offset, std::uint64_t length);
  std::optional<FaultRule> match(std::uint32_t operation, std::uint64_t offset,
                                 std::uint64_t length);

 private:
  struct Armed {
    FaultRule rule;
    std::uint64_t matches = 0;
    bool armed = false;
  };
  struct Transition {
    FaultEvent event;
    unsigned state;
    unsigned new_state;
  };
  struct Break {
    std::string tag;
    FaultEvent event;
    std::uint32_t operations;
    std::uint64_t offset;
    std::uint64_t length;
  };
  struct Halted {
    std::string tag;
    bool released = false;
  };
  // Halts a request, which then awaits wait_released().
  std::shared_ptr<Halted> halt(std::string tag) PLATTER_REQUIRES(mutex_);
  Task<void> wait_released(std::shared_ptr<Halted> halted) PLATTER_EXCLUDES(mutex_);

  mutable Mutex mutex_;
  std::vector<Armed> rules_ PLATTER_GUARDED_BY(mutex_);
  std::vector<Transition> transitions_ PLATTER_GUARDED_BY(mutex_);
  std::vector<Break> breaks_ PLATTER_GUARDED_BY(mutex_);
  std::vector<std::shared_ptr<Halted>> halted_ PLATTER_GUARDED_BY(mutex_);
  // A request halted, or was released.
  ConditionQueue changed_ PLATTER_GUARDED_BY(mutex_);
  unsigned state_ PLATTER_GUARDED_BY(mutex_) = 1;
  std::uint64_t acted_ PLATTER_GUARDED_BY(mutex_) = 0;
  std::vector<std::uint64_t> announced_ PLATTER_GUARDED_BY(mutex_) =
      std::vector<std::uint64_t>(static_cast<std::size_t>(FaultEvent::kCount));
  std::vector<std::uint64_t> requests_ PLATTER_GUARDED_BY(mutex_) = std::vector<std::uint64_t>(8);
};

// The fault points of this node, or of the nearest one below it; nullptr: none.
FaultPoints* fault_points_of(BlockNode& node);

// A fault node over `below`, for tests.
Task<Result<NodePtr>> make_fault_node(std::string node_name, NodePtr below,
                                      OpenFlags flags = {.read_only = false});

// Rules from options "inject-error.N.*" and "set-state.N.*", which are taken out; and from the text
// of a configuration file.
Result<void> add_rules_from_options(Options& options, FaultPoints& points);
Result<void> add_rules_from_config(std::string_view text, FaultPoints& points);

}  // namespace platter
