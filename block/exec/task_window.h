// TaskWindow: parts of one piece of work that run side by side, not more than so many at a time.
//
//   TaskWindow window(kMostAtOnce);
//   while (more() && window.good()) {
//     if (window.full()) co_await window.oldest();
//     window.add(part());
//   }
//   while (window.busy()) co_await window.oldest();
//   co_return window.take();
//
// Ownership: the window owns the tasks; all must have been awaited when it is destroyed.
// Threads: one executor's. Errors: the first one, in the order of the tasks, is kept.
#pragma once

#include <cstddef>
#include <utility>
#include <vector>

#include "block/base/error.h"
#include "block/exec/task.h"

namespace platter {

class TaskWindow {
 public:
  explicit TaskWindow(std::size_t most) : most_(most) {}

  bool good() const { return result_.has_value(); }
  // Nothing has been added yet.
  bool unused() const { return tasks_.empty(); }
  bool busy() const { return awaited_ < tasks_.size(); }
  bool full() const { return tasks_.size() - awaited_ >= most_; }

  // Not when it is full.
  void add(Task<Result<void>> task) { tasks_.push_back(std::move(task)); }
  // Keeps the error of what is no task, unless there is one.
  void note(const Result<void>& result) {
    if (result_ && !result) result_ = result;
  }
  Result<void> take() { return std::move(result_); }

  // Awaits the oldest task that is not awaited yet; there is one.
  class Oldest {
   public:
    explicit Oldest(TaskWindow& window)
        : window_(window), task_(window.tasks_[window.awaited_++].operator co_await()) {}
    bool await_ready() const noexcept { return task_.await_ready(); }
    void await_suspend(std::coroutine_handle<> waiter) noexcept { task_.await_suspend(waiter); }
    void await_resume() { window_.note(task_.await_resume()); }

   private:
    TaskWindow& window_;
    Task<Result<void>>::Awaiter task_;
  };
  Oldest oldest() { return Oldest(*this); }

 private:
  const std::size_t most_;
  std::vector<Task<Result<void>>> tasks_;
  std::size_t awaited_ = 0;
  Result<void> result_;
};

}  // namespace platter
