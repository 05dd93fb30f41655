// InFlight: which data requests are running, so that nothing they may still touch is given away.
//
// A request counts itself in before it looks up a mapping and out when its I/O has ended. Whoever
// has taken a mapping away asks for a barrier; the barrier has passed once every request that may
// have seen the old mapping has ended. Later requests do not delay it, however many there are.
//
// Each executor has its own pair of counters on its own cache line, so counting costs no shared
// write. Which of the pair a request uses follows a phase that flips at each barrier: the counter
// that new requests no longer use runs empty, then the other one. A barrier has passed when each
// counter of each executor was seen at zero at some time after the barrier was asked for.
//
// All accesses to counters, to the flag `running_` and (by the users of this class) to mappings are
// sequentially consistent: either the request sees the new mapping, or the barrier sees its count.
//
// Threads: a Ticket lives on one executor; everything else from any thread.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <utility>

#include "block/base/mutex.h"
#include "block/exec/executor.h"
#include "block/exec/sync.h"

namespace platter {

class InFlight {
 public:
  InFlight() = default;
  InFlight(const InFlight&) = delete;
  InFlight& operator=(const InFlight&) = delete;

  // One running request; its owner is a coroutine, which stays on one executor.
  class [[nodiscard]] Ticket {
   public:
    Ticket() = default;
    explicit Ticket(InFlight& owner) : owner_(&owner), counter_(&owner.count_in()) {}
    Ticket(Ticket&& other) noexcept
        : owner_(std::exchange(other.owner_, nullptr)), counter_(other.counter_) {}
    Ticket& operator=(Ticket&& other) noexcept {
      release();
      owner_ = std::exchange(other.owner_, nullptr);
      counter_ = other.counter_;
      return *this;
    }
    ~Ticket() { release(); }
    void release() {
      if (!owner_) return;
      counter_->fetch_sub(1);
      if (owner_->running_.load()) [[unlikely]]
        owner_->advance();
      owner_ = nullptr;
    }

   private:
    InFlight* owner_ = nullptr;
    std::atomic<std::uint64_t>* counter_ = nullptr;
  };

  // Number of a barrier behind all requests that run now. Numbers grow.
  std::uint64_t barrier();
  bool passed(std::uint64_t barrier) const { return passed_.load() >= barrier; }
  // Looks again; cheap when no barrier is waiting.
  void poll() {
    if (running_.load()) advance();
  }
  // Waits until all requests that run now have ended. Not to be called while holding a Ticket.
  Task<void> wait();

 private:
  struct alignas(64) Slot {
    std::array<std::atomic<std::uint64_t>, 2> count{};
  };

  std::atomic<std::uint64_t>& count_in() {
    Slot& slot = slots_[Executor::current().index()];
    std::atomic<std::uint64_t>& counter = slot.count[phase_.load(std::memory_order_relaxed) & 1];
    counter.fetch_add(1);
    return counter;
  }
  void advance();
  void start() PLATTER_REQUIRES(mutex_);
  bool scan() PLATTER_REQUIRES(mutex_);

  std::array<Slot, Executor::kMaxExecutors> slots_{};
  std::atomic<unsigned> phase_{0};
  std::atomic<bool> running_{false};  // a barrier is waiting
  std::atomic<std::uint64_t> passed_{0};

  Mutex mutex_;
  std::uint64_t wanted_ PLATTER_GUARDED_BY(mutex_) = 0;  // the highest number given out
  std::array<std::uint64_t, 2> unseen_ PLATTER_GUARDED_BY(mutex_){};  // slots not yet seen at zero
  ConditionQueue waiters_ PLATTER_GUARDED_BY(mutex_);
};

}  // namespace platter
