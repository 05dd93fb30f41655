// ExecutorThread: an executor running in a thread of its own, and ways to run a coroutine on it.
//
//   auto thread = ExecutorThread::start();
//   auto work = [&] { return load_table(image); };            // a named local; returns a Task
//   auto table = co_await run_on_executor((*thread)->executor(), work);      // from an executor
//   auto table = run_blocking((*thread)->executor(), work);                  // from a plain thread
//
// The coroutine runs wholly on the target executor; its result is moved to the caller, who goes on
// where it was.
//
// Threads: start and destroy an ExecutorThread on any thread but its own.
// Ownership: destroying it first drains: what runs there goes on until nothing is ready or in
// flight. Coroutines that wait for something else by then are lost, so end their work before.
#pragma once

#include <memory>
#include <optional>
#include <thread>
#include <type_traits>

#include "block/base/mutex.h"
#include "block/exec/executor.h"
#include "block/exec/sync.h"
#include "block/exec/task.h"

namespace platter {

class ExecutorThread {
 public:
  // Fails as Executor::create() does, or with EAGAIN when there can be no more threads.
  static Result<std::unique_ptr<ExecutorThread>> start(Executor::Config config = {});
  ~ExecutorThread();
  ExecutorThread(const ExecutorThread&) = delete;
  ExecutorThread& operator=(const ExecutorThread&) = delete;

  Executor& executor() { return *executor_; }

 private:
  ExecutorThread() = default;

  std::unique_ptr<Executor> executor_;
  std::thread thread_;
};

namespace detail {

// A coroutine that waits to be resumed for the first time by an executor and owns its own frame.
struct DetachedOnExecutor {
  struct promise_type {
    static void* operator new(std::size_t size) { return allocate_frame(size); }
    static void operator delete(void* frame, std::size_t size) noexcept { free_frame(frame, size); }
    DetachedOnExecutor get_return_object() noexcept {
      return {std::coroutine_handle<promise_type>::from_promise(*this)};
    }
    std::suspend_always initial_suspend() noexcept { return {}; }
    std::suspend_never final_suspend() noexcept { return {}; }
    void return_void() noexcept {}
    void unhandled_exception() noexcept { std::terminate(); }
  };
  std::coroutine_handle<promise_type> handle;
};

template <class F>
using TaskValue = typename std::invoke_result_t<F&>::value_type;
// What a finished task leaves behind; void becomes a mark.
template <class T>
using Stored = std::conditional_t<std::is_void_v<T>, std::true_type, T>;

// Runs `start()` on the executor that resumes it, puts its value into `*result` and calls
// `finished.resume()`, after which nothing of the caller's is touched.
template <class F, class Finished>
DetachedOnExecutor run_detached(F* start, std::optional<Stored<TaskValue<F>>>* result,
                                Finished* finished) {
  {
    auto task = (*start)();
    if constexpr (std::is_void_v<TaskValue<F>>) {
      co_await task;
      result->emplace();
    } else {
      result->emplace(co_await task);
    }
  }
  finished->resume();
}

template <class F>
struct RemoteAwaiter : Waiter {
  Executor& target;
  F& start;
  std::optional<Stored<TaskValue<F>>> result;

  RemoteAwaiter(Executor& t, F& s) : target(t), start(s) {}
  bool await_ready() noexcept { return false; }
  void await_suspend(std::coroutine_handle<> h) noexcept {
    capture(h);
    target.post_from_any_thread(run_detached(&start, &result, static_cast<Waiter*>(this)).handle);
  }
  TaskValue<F> await_resume() {
    if constexpr (!std::is_void_v<TaskValue<F>>) return std::move(*result);
  }
};

// What a plain thread waits on.
class Completion {
 public:
  void resume() {
    // To the end under the mutex: the waiter may destroy this as soon as it can see done_.
    MutexLock lock(mutex_);
    done_ = true;
    changed_.notify_one();
  }
  void wait() {
    UniqueMutexLock lock(mutex_);
    while (!done_) changed_.wait(lock);
  }

 private:
  Mutex mutex_;
  ConditionVariable changed_;
  bool done_ PLATTER_GUARDED_BY(mutex_) = false;
};

}  // namespace detail

// Runs the task that `start()` makes on `target` and gives its value on the awaiting coroutine's
// own executor. `start` must live until then, so it is a named local. Also right when `target` is
// the current executor.
template <class F>
detail::RemoteAwaiter<F> run_on_executor(Executor& target, F& start) {
  return detail::RemoteAwaiter<F>(target, start);
}

// The same for a thread that runs no executor: blocks it until the task has finished.
template <class F>
detail::TaskValue<F> run_blocking(Executor& target, F&& start) {
  std::optional<detail::Stored<detail::TaskValue<F>>> result;
  detail::Completion finished;
  target.post_from_any_thread(detail::run_detached(&start, &result, &finished).handle);
  finished.wait();
  if constexpr (!std::is_void_v<detail::TaskValue<F>>) return std::move(*result);
}

}  // namespace platter
