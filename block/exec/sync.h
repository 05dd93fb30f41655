// Waiting between coroutines, of one or of several executors.
//
// AsyncMutex, AsyncEvent, AsyncSemaphore: their state is guarded by a short plain mutex that is
// never held across a suspension; a waiter is resumed on the executor it suspended on, FIFO.
// RangeLock: shared or exclusive ownership of byte ranges, FIFO among overlapping requests.
// Gate: counts running work, refuses new work once closed, and lets a closer wait for zero.
// TaskScope: fire-and-forget tasks that someone waits for in the end.
//
// Threads: any executor, except TaskScope, which belongs to one.
#pragma once

#include <algorithm>
#include <atomic>
#include <coroutine>
#include <cstdint>
#include <list>
#include <utility>

#include "block/base/mutex.h"
#include "block/exec/executor.h"
#include "block/exec/task.h"

namespace platter {

// A suspended coroutine and where to resume it. Lives in the awaiting frame; linked FIFO.
struct Waiter {
  std::coroutine_handle<> handle;
  Executor* executor = nullptr;
  Waiter* next = nullptr;

  void capture(std::coroutine_handle<> h) {
    handle = h;
    executor = &Executor::current();
  }
  // After this call the Waiter may be gone.
  void resume();
};

class WaiterQueue {
 public:
  bool empty() const { return head_ == nullptr; }
  void push(Waiter& waiter);
  Waiter* pop();  // nullptr when empty
  // Takes the whole chain, linked by `next`.
  Waiter* take_all();

 private:
  Waiter* head_ = nullptr;
  Waiter* tail_ = nullptr;
};

// `auto guard = co_await mutex.lock();`
class AsyncMutex {
 public:
  class [[nodiscard]] Guard {
   public:
    Guard() = default;
    explicit Guard(AsyncMutex& mutex) : mutex_(&mutex) {}
    Guard(Guard&& other) noexcept : mutex_(std::exchange(other.mutex_, nullptr)) {}
    Guard& operator=(Guard&& other) noexcept {
      unlock();
      mutex_ = std::exchange(other.mutex_, nullptr);
      return *this;
    }
    ~Guard() { unlock(); }
    void unlock() {
      if (mutex_) std::exchange(mutex_, nullptr)->unlock();
    }

   private:
    AsyncMutex* mutex_ = nullptr;
  };

  struct LockAwaiter : Waiter {
    AsyncMutex& mutex;
    explicit LockAwaiter(AsyncMutex& m) : mutex(m) {}
    bool await_ready() noexcept { return mutex.try_acquire(); }
    bool await_suspend(std::coroutine_handle<> h) noexcept;
    Guard await_resume() noexcept { return Guard(mutex); }
  };
  LockAwaiter lock() { return LockAwaiter(*this); }

 private:
  friend class Guard;
  bool try_acquire() noexcept;
  void unlock() noexcept;

  Mutex mutex_;
  bool held_ PLATTER_GUARDED_BY(mutex_) = false;
  WaiterQueue waiters_ PLATTER_GUARDED_BY(mutex_);
};

// One-shot: wait() completes once set() has been called, at most once, from any thread. Who has
// come back from wait() may destroy the event; who has only seen is_set() may not.
class AsyncEvent {
 public:
  struct WaitAwaiter : Waiter {
    AsyncEvent& event;
    explicit WaitAwaiter(AsyncEvent& e) : event(e) {}
    bool await_ready() noexcept { return false; }
    bool await_suspend(std::coroutine_handle<> h) noexcept;
    void await_resume() noexcept {}
  };
  WaitAwaiter wait() { return WaitAwaiter(*this); }
  void set() noexcept;
  bool is_set() const noexcept { return set_.load(std::memory_order_acquire); }

 private:
  Mutex mutex_;
  std::atomic<bool> set_{false};
  WaiterQueue waiters_ PLATTER_GUARDED_BY(mutex_);
};

// A condition queue used with a caller's Mutex: `co_await queue.wait(lock)` enqueues, drops the
// lock, suspends; on return the lock is NOT held: take it again (lock.lock()) and look at the
// condition again.
class ConditionQueue {
 public:
  struct WaitAwaiter : Waiter {
    ConditionQueue& queue;
    UniqueMutexLock& lock;
    WaitAwaiter(ConditionQueue& q, UniqueMutexLock& l) : queue(q), lock(l) {}
    bool await_ready() noexcept { return false; }
    void await_suspend(std::coroutine_handle<> h) noexcept PLATTER_NO_THREAD_CHECK {
      capture(h);
      queue.waiters_.push(*this);
      // Once unlocked this frame may be resumed and gone: touch nothing afterwards.
      lock.unlock();
    }
    void await_resume() noexcept {}
  };
  // `lock` holds the mutex that guards this queue. To the caller it is given up here, although that
  // happens when the answer is awaited, which is the next thing to do.
  WaitAwaiter wait(UniqueMutexLock& lock) PLATTER_RELEASE_LOCK(lock) PLATTER_NO_THREAD_CHECK {
    return WaitAwaiter(*this, lock);
  }
  // Both require that the guarding mutex is held.
  void notify_all() noexcept;
  void notify_one() noexcept;
  bool empty() const { return waiters_.empty(); }

 private:
  WaiterQueue waiters_;
};

// Counts permits. `co_await semaphore.acquire()` takes one; release() gives one back.
class AsyncSemaphore {
 public:
  explicit AsyncSemaphore(std::uint64_t permits) : permits_(permits) {}
  struct AcquireAwaiter : Waiter {
    AsyncSemaphore& semaphore;
    explicit AcquireAwaiter(AsyncSemaphore& s) : semaphore(s) {}
    bool await_ready() noexcept { return false; }
    bool await_suspend(std::coroutine_handle<> h) noexcept;
    void await_resume() noexcept {}
  };
  AcquireAwaiter acquire() { return AcquireAwaiter(*this); }
  void release() noexcept;

 private:
  Mutex mutex_;
  std::uint64_t permits_ PLATTER_GUARDED_BY(mutex_);
  WaiterQueue waiters_ PLATTER_GUARDED_BY(mutex_);
};

// Ownership of byte ranges. A shared holder excludes exclusive ones that overlap it and conversely;
// requests that overlap and conflict are served in the order they came.
//
//   RangeLock::Hold hold(ranges, offset, length, RangeLock::Mode::kExclusive);
//   co_await hold.acquire();   // held until `hold` is destroyed
class RangeLock {
 public:
  enum class Mode : std::uint8_t { kShared, kExclusive };

  // A claim, in its owner's frame: neither copied nor moved.
  class [[nodiscard]] Hold {
   public:
    // Ranges in bytes; offset + length does not wrap.
    Hold(RangeLock& ranges, std::uint64_t offset, std::uint64_t length, Mode mode)
        : ranges_(ranges), offset_(offset), end_(offset + length), mode_(mode) {}
    ~Hold() {
      if (queued_) ranges_.release(*this);
    }
    Hold(const Hold&) = delete;
    Hold& operator=(const Hold&) = delete;

    struct Awaiter {
      Hold& hold;
      bool await_ready() noexcept { return hold.ranges_.enqueue(hold); }
      bool await_suspend(std::coroutine_handle<> h) noexcept {
        return hold.ranges_.suspend(hold, h);
      }
      void await_resume() noexcept {}
    };
    Awaiter acquire() { return Awaiter{*this}; }

   private:
    friend class RangeLock;
    RangeLock& ranges_;
    std::uint64_t offset_;
    std::uint64_t end_;
    Mode mode_;
    bool queued_ = false;
    bool granted_ = false;
    Waiter waiter_;
    Hold* previous_ = nullptr;
    Hold* next_ = nullptr;
  };

 private:
  // An empty range conflicts with nothing.
  static bool conflict(const Hold& a, const Hold& b) {
    return (a.mode_ == Mode::kExclusive || b.mode_ == Mode::kExclusive) &&
           std::max(a.offset_, b.offset_) < std::min(a.end_, b.end_);
  }
  // Whether no claim before `hold` conflicts with it.
  static bool grantable(const Hold& hold);
  bool enqueue(Hold& hold) noexcept;
  bool suspend(Hold& hold, std::coroutine_handle<> handle) noexcept;
  void release(Hold& hold) noexcept;

  Mutex mutex_;
  // Claims in order of arrival.
  Hold* head_ PLATTER_GUARDED_BY(mutex_) = nullptr;
  Hold* tail_ PLATTER_GUARDED_BY(mutex_) = nullptr;
};

// Counts running work. `if (!gate.enter()) return closed;` ... `gate.leave();`, best as
// `Gate::Ticket ticket(gate); if (!ticket) ...`. After close() nothing new enters, and the closer
// waits until all that had entered have left.
class Gate {
 public:
  Gate() = default;
  ~Gate();  // aborts when work is still inside
  Gate(const Gate&) = delete;
  Gate& operator=(const Gate&) = delete;

  class [[nodiscard]] Ticket {
   public:
    explicit Ticket(Gate& gate) : gate_(gate.enter() ? &gate : nullptr) {}
    ~Ticket() {
      if (gate_) gate_->leave();
    }
    Ticket(const Ticket&) = delete;
    Ticket& operator=(const Ticket&) = delete;
    explicit operator bool() const { return gate_ != nullptr; }

   private:
    Gate* gate_;
  };

  bool enter() noexcept;
  void leave() noexcept;
  Task<void> close();
  // Lets new work in again after a close() that has completed.
  void reopen() noexcept;
  std::uint64_t inside() const noexcept { return state_.load(std::memory_order_relaxed) >> 1; }

 private:
  struct EmptyAwaiter;
  // Bit 0: closed. Above: number inside.
  std::atomic<std::uint64_t> state_{0};
  Mutex mutex_;
  WaiterQueue waiters_ PLATTER_GUARDED_BY(mutex_);
};

// Fire-and-forget tasks of one executor; join(), by one coroutine at a time, waits for all that
// were spawned, also while it waits.
class TaskScope {
 public:
  TaskScope() = default;
  ~TaskScope();  // aborts when tasks are still running
  TaskScope(const TaskScope&) = delete;
  TaskScope& operator=(const TaskScope&) = delete;
  void spawn(Task<void> task);
  Task<void> join();
  std::size_t running() const { return running_; }

 private:
  std::size_t running_ = 0;
  std::coroutine_handle<> joiner_;
  friend struct ScopeRunner;
};

}  // namespace platter
