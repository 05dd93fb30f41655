// SideThreads: coroutines that run at the same time, each on an executor in a thread of its own.
//
// Threads: used on one, which is none of those.
// Ownership: all have ended, and the executors are gone, when it is destroyed. The executors stay
// until the last one has ended, as what ran on one may be woken from another.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "block/exec/executor_thread.h"

namespace platter {

class SideThreads {
 public:
  SideThreads() = default;
  ~SideThreads() { join(); }
  SideThreads(const SideThreads&) = delete;
  SideThreads& operator=(const SideThreads&) = delete;

  void start(std::function<Task<void>()> work) {
    auto thread = ExecutorThread::start();
    ASSERT_TRUE(thread) << thread.error().message();
    Executor& executor = (*thread)->executor();
    executors_.push_back(std::move(*thread));
    waiters_.emplace_back([&executor, work = std::move(work)] { run_blocking(executor, work); });
  }
  void join() {
    for (std::thread& waiter : waiters_) waiter.join();
    waiters_.clear();
  }

 private:
  std::vector<std::unique_ptr<ExecutorThread>> executors_;
  std::vector<std::thread> waiters_;
};

}  // namespace platter
