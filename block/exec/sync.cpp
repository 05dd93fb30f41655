#include "block/exec/sync.h"

#include <cstdio>
#include <cstdlib>

namespace platter {

void Waiter::resume() {
  const std::coroutine_handle<> h = handle;
  Executor* const target = executor;
  if (target == Executor::current_or_null()) {
    target->post(h);
  } else {
    target->post_from_any_thread(h);
  }
}

void WaiterQueue::push(Waiter& waiter) {
  waiter.next = nullptr;
  if (tail_) {
    tail_->next = &waiter;
  } else {
    head_ = &waiter;
  }
  tail_ = &waiter;
}

Waiter* WaiterQueue::pop() {
  Waiter* waiter = head_;
  if (!waiter) return nullptr;
  head_ = waiter->next;
  if (!head_) tail_ = nullptr;
  return waiter;
}

Waiter* WaiterQueue::take_all() {
  Waiter* all = head_;
  head_ = tail_ = nullptr;
  return all;
}

namespace {
void resume_all(Waiter* waiter) {
  while (waiter) {
    Waiter* next = waiter->next;
    waiter->resume();
    waiter = next;
  }
}
}  // namespace

bool AsyncMutex::try_acquire() noexcept {
  MutexLock lock(mutex_);
  if (held_) return false;
  held_ = true;
  return true;
}

bool AsyncMutex::LockAwaiter::await_suspend(std::coroutine_handle<> h) noexcept {
  MutexLock lock(mutex.mutex_);
  if (!mutex.held_) {
    mutex.held_ = true;
    return false;
  }
  capture(h);
  mutex.waiters_.push(*this);
  return true;
}

// Here and below waiters are resumed after the plain mutex has been dropped: one of another
// executor runs at once and may destroy the object that it had waited for.
void AsyncMutex::unlock() noexcept {
  Waiter* next;
  {
    MutexLock lock(mutex_);
    // Ownership passes straight to the next waiter, so that nobody overtakes it.
    next = waiters_.pop();
    if (!next) held_ = false;
  }
  if (next) next->resume();
}

bool AsyncEvent::WaitAwaiter::await_suspend(std::coroutine_handle<> h) noexcept {
  // Always under the mutex: who has seen set_ may destroy the event, so set() must have left it.
  MutexLock lock(event.mutex_);
  if (event.is_set()) return false;
  capture(h);
  event.waiters_.push(*this);
  return true;
}

void AsyncEvent::set() noexcept {
  Waiter* all;
  {
    MutexLock lock(mutex_);
    set_.store(true, std::memory_order_release);
    all = waiters_.take_all();
  }
  resume_all(all);
}

void ConditionQueue::notify_all() noexcept { resume_all(waiters_.take_all()); }

void ConditionQueue::notify_one() noexcept {
  if (Waiter* waiter = waiters_.pop()) waiter->resume();
}

bool AsyncSemaphore::AcquireAwaiter::await_suspend(std::coroutine_handle<> h) noexcept {
  MutexLock lock(semaphore.mutex_);
  if (semaphore.permits_ > 0) {
    --semaphore.permits_;
    return false;
  }
  capture(h);
  semaphore.waiters_.push(*this);
  return true;
}

void AsyncSemaphore::release() noexcept {
  Waiter* next;
  {
    MutexLock lock(mutex_);
    next = waiters_.pop();
    if (!next) ++permits_;
  }
  if (next) next->resume();
}

bool RangeLock::grantable(const Hold& hold) {
  for (const Hold* earlier = hold.previous_; earlier; earlier = earlier->previous_) {
    if (conflict(*earlier, hold)) return false;
  }
  return true;
}

bool RangeLock::enqueue(Hold& hold) noexcept {
  MutexLock lock(mutex_);
  hold.queued_ = true;
  hold.previous_ = tail_;
  (tail_ ? tail_->next_ : head_) = &hold;
  tail_ = &hold;
  hold.granted_ = grantable(hold);
  return hold.granted_;
}

bool RangeLock::suspend(Hold& hold, std::coroutine_handle<> handle) noexcept {
  MutexLock lock(mutex_);
  // It may have become free between the two calls.
  if (hold.granted_) return false;
  hold.waiter_.capture(handle);
  return true;
}

void RangeLock::release(Hold& hold) noexcept {
  WaiterQueue granted;
  {
    MutexLock lock(mutex_);
    (hold.previous_ ? hold.previous_->next_ : head_) = hold.next_;
    (hold.next_ ? hold.next_->previous_ : tail_) = hold.previous_;
    hold.queued_ = false;
    for (Hold* later = hold.next_; later; later = later->next_) {
      if (later->granted_ || !conflict(hold, *later) || !grantable(*later)) continue;
      later->granted_ = true;
      // Without a handle it is between enqueue() and suspend(), which will see granted_.
      if (later->waiter_.handle) granted.push(later->waiter_);
    }
  }
  resume_all(granted.take_all());
}

Gate::~Gate() {
  if (inside() != 0) {
    std::fputs("platter: a Gate was destroyed with work inside\n", stderr);
    std::abort();
  }
}

bool Gate::enter() noexcept {
  std::uint64_t state = state_.load(std::memory_order_relaxed);
  do {
    if (state & 1) return false;
  } while (!state_.compare_exchange_weak(state, state + 2, std::memory_order_seq_cst));
  return true;
}

void Gate::leave() noexcept {
  // The last one out of a closed gate wakes the closers, and may only touch the gate under the
  // mutex: a closer that sees zero may destroy it.
  std::uint64_t state = state_.load(std::memory_order_relaxed);
  do {
    if (state & 1) break;
    if (state_.compare_exchange_weak(state, state - 2, std::memory_order_seq_cst)) return;
  } while (true);
  Waiter* closers = nullptr;
  {
    MutexLock lock(mutex_);
    if (state_.fetch_sub(2, std::memory_order_seq_cst) == 3) closers = waiters_.take_all();
  }
  resume_all(closers);
}

struct Gate::EmptyAwaiter : Waiter {
  Gate& gate;
  explicit EmptyAwaiter(Gate& g) : gate(g) {}
  bool await_ready() noexcept { return false; }
  bool await_suspend(std::coroutine_handle<> h) noexcept {
    MutexLock lock(gate.mutex_);
    if ((gate.state_.load(std::memory_order_seq_cst) >> 1) == 0) return false;
    capture(h);
    gate.waiters_.push(*this);
    return true;
  }
  void await_resume() noexcept {}
};

Task<void> Gate::close() {
  state_.fetch_or(1, std::memory_order_seq_cst);
  EmptyAwaiter empty(*this);
  co_await empty;
}

void Gate::reopen() noexcept { state_.fetch_and(~std::uint64_t{1}, std::memory_order_seq_cst); }

// A coroutine that owns its own frame.
struct ScopeRunner {
  struct promise_type {
    static void* operator new(std::size_t size) { return allocate_frame(size); }
    static void operator delete(void* frame, std::size_t size) noexcept { free_frame(frame, size); }
    ScopeRunner get_return_object() noexcept { return {}; }
    std::suspend_never initial_suspend() noexcept { return {}; }
    std::suspend_never final_suspend() noexcept { return {}; }
    void return_void() noexcept {}
    void unhandled_exception() noexcept { std::terminate(); }
  };
  static ScopeRunner run(TaskScope& scope, Task<void> task) {
    co_await task;
    if (--scope.running_ == 0 && scope.joiner_) {
      Executor::current().post(std::exchange(scope.joiner_, nullptr));
    }
  }
};

TaskScope::~TaskScope() {
  if (running_ != 0) {
    std::fputs("platter: a TaskScope was destroyed with tasks running\n", stderr);
    std::abort();
  }
}

void TaskScope::spawn(Task<void> task) {
  if (task.done()) return;
  ++running_;
  ScopeRunner::run(*this, std::move(task));
}

namespace {
struct JoinAwaiter {
  std::coroutine_handle<>& joiner;
  bool await_ready() noexcept { return false; }
  void await_suspend(std::coroutine_handle<> h) noexcept { joiner = h; }
  void await_resume() noexcept {}
};
}  // namespace

Task<void> TaskScope::join() {
  while (running_ != 0) {
    JoinAwaiter awaiter{joiner_};
    co_await awaiter;
  }
}

}  // namespace platter
