// Waiting for time to pass.
//
//   co_await sleep_for(std::chrono::milliseconds(50));
//
//   Timer timer;                                        // one that can be cut short
//   const bool elapsed = co_await timer.wait(5s);       // false after cancel()
//
// Threads: one executor each.
#pragma once

#include <algorithm>
#include <cerrno>
#include <chrono>

#include "block/exec/executor.h"
#include "block/exec/task.h"

namespace platter {

namespace detail {
class SleepAwaiter {
 public:
  explicit SleepAwaiter(std::chrono::nanoseconds time) {
    const std::chrono::nanoseconds bounded = std::max(time, std::chrono::nanoseconds(0));
    when_.tv_sec = bounded.count() / 1'000'000'000;
    when_.tv_nsec = bounded.count() % 1'000'000'000;
  }
  bool await_ready() const noexcept { return false; }
  void await_suspend(std::coroutine_handle<> handle) noexcept {
    op_ = io::timeout(&when_);
    op_.await_suspend(handle);
  }
  // False when it was cancelled.
  bool await_resume() const noexcept { return op_.result != -ECANCELED; }
  const IoOp& op() const { return op_; }

 private:
  __kernel_timespec when_{};
  IoOp op_;
};
}  // namespace detail

// Resumes the awaiting coroutine once `time` has passed; at once, but by way of the loop, when it
// is not positive.
inline detail::SleepAwaiter sleep_for(std::chrono::nanoseconds time) {
  return detail::SleepAwaiter(time);
}

class Timer {
 public:
  Timer() = default;
  Timer(const Timer&) = delete;
  Timer& operator=(const Timer&) = delete;

  // True once `time` has passed, false when cancel() ended it. One wait at a time.
  Task<bool> wait(std::chrono::nanoseconds time) {
    detail::SleepAwaiter sleep(time);
    running_ = &sleep;
    const bool elapsed = co_await sleep;
    running_ = nullptr;
    co_return elapsed;
  }

  // Ends a wait() in progress, if there is one; completes when the kernel has been told.
  Task<void> cancel() {
    if (!running_) co_return;
    IoOp cancel = io::cancel(running_->op());
    co_await cancel;
  }

 private:
  const detail::SleepAwaiter* running_ = nullptr;
};

}  // namespace platter
