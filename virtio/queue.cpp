#include "virtio/queue.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <utility>

namespace platter::virtio {
namespace {

[[noreturn]] void die(const char* what) {
  std::fprintf(stderr, "platter: virtio queue: %s\n", what);
  std::abort();
}

// Moves the coroutine to an executor. It may be running there before await_suspend returns.
struct SwitchTo {
  Executor& executor;
  bool await_ready() const noexcept { return false; }
  void await_suspend(std::coroutine_handle<> self) noexcept { executor.post_from_any_thread(self); }
  void await_resume() const noexcept {}
};

// Lets everything else that is ready on this executor go first.
struct Yield {
  bool await_ready() const noexcept { return false; }
  void await_suspend(std::coroutine_handle<> self) noexcept { Executor::current().post(self); }
  void await_resume() const noexcept {}
};

// Suspends and leaves the handle where someone finds it.
struct Park {
  std::coroutine_handle<>& place;
  bool await_ready() const noexcept { return false; }
  void await_suspend(std::coroutine_handle<> self) noexcept { place = self; }
  void await_resume() const noexcept {}
};

// As tests/layering/operands.cpp wants it.
static_assert(std::is_trivially_destructible_v<SwitchTo>);
static_assert(std::is_trivially_destructible_v<Yield>);
static_assert(std::is_trivially_destructible_v<Park>);

}  // namespace

Queue::Queue(QueueOwner& owner, Executor& executor, unsigned index, std::uint16_t max_size)
    : owner_(owner),
      executor_(executor),
      index_(index),
      max_size_(max_size),
      kick_fd_(eventfd(0, EFD_CLOEXEC)) {
  if (kick_fd_ < 0) die("could not create an eventfd");
  reset_setup();
}

Queue::~Queue() {
  if (running()) die("destroyed while it runs");
  close(kick_fd_);
}

void Queue::kick() const noexcept {
  const std::uint64_t one = 1;
  // Cannot block short of 2^64 - 2 unread kicks.
  [[maybe_unused]] const ssize_t n = write(kick_fd_, &one, sizeof one);
}

void Queue::reset_setup() {
  setup_ = Setup{};
  setup_.layout.size = max_size_;
}

bool Queue::running() const {
  MutexLock lock(state_mutex_);
  return running_;
}

Result<void> Queue::start(const GuestMemory& memory, std::uint64_t features) {
  auto ring = SplitRing::create(memory, setup_.layout, features);
  PLATTER_TRY(ring);
  {
    MutexLock lock(state_mutex_);
    if (running_) die("started twice");
    running_ = true;
  }
  ring_.emplace(std::move(*ring));
  stopping_.store(false, std::memory_order_relaxed);
  faulted_ = false;
  serve_loop();
  return {};
}

void Queue::request_stop() noexcept {
  stopping_.store(true, std::memory_order_release);
  kick();
}

void Queue::wait_stopped() {
  if (Executor::current_or_null() == &executor_) die("its own executor waits for it to stop");
  UniqueMutexLock lock(state_mutex_);
  while (running_) state_changed_.wait(lock);
}

Task<void> Queue::stopped() {
  UniqueMutexLock lock(state_mutex_);
  while (running_) {
    co_await stop_waiters_.wait(lock);
    lock.lock();
  }
}

Detached Queue::serve_loop() {
  co_await SwitchTo{executor_};
  flush_loop();
  std::uint64_t kicks = 0;
  while (!stopping_.load(std::memory_order_acquire)) {
    if (!faulted_ && !owner_.queues_halted()) {
      ring_->disable_notifications();
      const bool more = take_batch();
      // Look again after asking for notifications: what came before the driver saw our wish would
      // not be announced.
      if (more || (!faulted_ && ring_->enable_notifications())) {
        co_await Yield{};
        continue;
      }
    }
    IoOp wait = io::read(kick_fd_, &kicks, sizeof kicks, 0);
    co_await wait;
  }
  while (in_flight_ != 0 || flush_scheduled_) co_await Park{drainer_};
  std::exchange(flusher_, nullptr).destroy();
  ring_.reset();
  finish_stop();
}

bool Queue::take_batch() {
  // One ring's worth at most before others get a turn: a driver that feeds as fast as we serve must
  // not keep this executor from its other work.
  for (unsigned taken = 0; taken < ring_->size(); ++taken) {
    if (free_chains_.empty()) {
      // No more than ring size of these are ever made: heads in flight are distinct.
      chains_.push_back(std::make_unique<Chain>());
      free_chains_.push_back(chains_.back().get());
    }
    Chain& chain = *free_chains_.back();
    const auto popped = ring_->pop(chain);
    if (!popped) {
      faulted_ = true;
      owner_.on_queue_fault(*this, popped.error());
      return false;
    }
    if (!*popped) return false;
    free_chains_.pop_back();
    ++in_flight_;
    owner_.serve(*this, chain);
  }
  return true;
}

void Queue::complete(Chain& chain, std::uint32_t written) {
  ring_->add_used(chain, written);
  free_chains_.push_back(&chain);
  --in_flight_;
  // Published when everything that is ready now has run, so that all completions of one round of
  // the executor share one index store and at most one interrupt.
  if (!flush_scheduled_) {
    flush_scheduled_ = true;
    executor_.post(flusher_);
  }
}

Detached Queue::flush_loop() {
  for (;;) {
    co_await Park{flusher_};
    flush_scheduled_ = false;
    if (ring_->publish()) owner_.on_used_buffers(*this);
    if (drainer_) executor_.post(std::exchange(drainer_, nullptr));
  }
}

void Queue::finish_stop() noexcept {
  MutexLock lock(state_mutex_);
  running_ = false;
  state_changed_.notify_all();
  stop_waiters_.notify_all();
  // Once the lock is gone this object may be too.
}

}  // namespace platter::virtio
