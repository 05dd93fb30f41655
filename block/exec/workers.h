// WorkerPool: threads for what would block or keep an executor busy: path opens, name lookups,
// compression, encryption, checksums.
//
//   auto work = [&] { return ::open(path, O_RDONLY); };   // a named local
//   int fd = co_await run_on(WorkerPool::blocking(), work);
//
// Threads: submit() from any; a coroutine that awaits is resumed on its own executor.
#pragma once

#include <deque>
#include <functional>
#include <optional>
#include <thread>
#include <type_traits>
#include <vector>

#include "block/base/mutex.h"
#include "block/exec/sync.h"

namespace platter {

class WorkerPool {
 public:
  // Threads start at first use and number `threads` at most.
  explicit WorkerPool(unsigned threads);
  ~WorkerPool();  // finishes what was submitted
  WorkerPool(const WorkerPool&) = delete;
  WorkerPool& operator=(const WorkerPool&) = delete;

  // The process's pool for CPU-heavy work: a thread per core.
  static WorkerPool& codecs();
  // The process's pool for calls that block: a few more threads than cores.
  static WorkerPool& blocking();

  // Runs `work` itself when not one thread can be had.
  void submit(std::function<void()> work);
  unsigned threads() const { return limit_; }

 private:
  void loop();
  void start_thread() PLATTER_REQUIRES(mutex_);

  const unsigned limit_;
  Mutex mutex_;
  ConditionVariable wake_;
  std::deque<std::function<void()>> queue_ PLATTER_GUARDED_BY(mutex_);
  std::vector<std::thread> threads_ PLATTER_GUARDED_BY(mutex_);
  unsigned idle_ PLATTER_GUARDED_BY(mutex_) = 0;
  bool stop_ PLATTER_GUARDED_BY(mutex_) = false;
};

namespace detail {
template <class F>
struct WorkAwaiter : Waiter {
  WorkerPool& pool;
  F& work;
  std::optional<std::invoke_result_t<F&>> result;

  WorkAwaiter(WorkerPool& p, F& w) : pool(p), work(w) {}
  bool await_ready() noexcept { return false; }
  void await_suspend(std::coroutine_handle<> h) {
    capture(h);
    pool.submit([this] {
      result.emplace(work());
      resume();
    });
  }
  std::invoke_result_t<F&> await_resume() { return std::move(*result); }
};
}  // namespace detail

// Runs `work()` (which returns a value) on the pool; the callable must live until it has run, so it
// is a named local of the awaiting coroutine.
template <class F>
detail::WorkAwaiter<F> run_on(WorkerPool& pool, F& work) {
  return detail::WorkAwaiter<F>(pool, work);
}

}  // namespace platter
