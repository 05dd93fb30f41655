// Task<T>: a coroutine that starts at once and is awaited once.
//
// A Task runs on the executor of the thread that called it until its first suspension, and is
// resumed there ever after. When it has finished before anyone awaits it, awaiting costs nothing;
// otherwise the awaiting coroutine is put on its executor's ready list when the task ends. Nothing
// is ever resumed inline from another coroutine, so a million awaits in a row use constant stack
// (g++ 12 makes no tail calls of symmetric transfers in unoptimised or sanitized builds).
//
// Ownership: the Task owns the coroutine frame. Destroying a Task whose coroutine has not finished
// aborts the process: the kernel may still own buffers in its frame.
// Threads: create, await and destroy a Task on one executor's thread.
// Errors: a Task that can fail is Task<Result<T>>. Exceptions do not leave a Task: they abort.
//
// g++ 12: name every operand of co_await that has a destructor and is written as a braced or
// aggregate temporary or as a capturing lambda; such temporaries are destroyed twice.
#pragma once

#include <coroutine>
#include <cstdlib>
#include <exception>
#include <optional>
#include <type_traits>
#include <utility>

#include "block/exec/frame_pool.h"

namespace platter {

template <class T>
class Task;

namespace detail {

// Puts a coroutine of this thread on the ready list of the thread's executor.
void post_to_current_executor(std::coroutine_handle<> handle) noexcept;
[[noreturn]] void abort_unfinished_task() noexcept;

class TaskPromiseBase {
 public:
  static void* operator new(std::size_t size) { return allocate_frame(size); }
  static void operator delete(void* frame, std::size_t size) noexcept { free_frame(frame, size); }

  std::suspend_never initial_suspend() noexcept { return {}; }

  struct FinalAwaiter {
    bool await_ready() noexcept { return false; }
    template <class Promise>
    void await_suspend(std::coroutine_handle<Promise> self) noexcept {
      if (std::coroutine_handle<> waiter = self.promise().waiter_) post_to_current_executor(waiter);
    }
    void await_resume() noexcept {}
  };
  FinalAwaiter final_suspend() noexcept { return {}; }
  void unhandled_exception() noexcept { std::terminate(); }

  std::coroutine_handle<> waiter_;
};

template <class T>
class TaskPromise : public TaskPromiseBase {
 public:
  Task<T> get_return_object() noexcept;
  template <class U = T>
    requires std::is_constructible_v<T, U&&>
  void return_value(U&& value) {
    value_.emplace(std::forward<U>(value));
  }
  T take() { return std::move(*value_); }

 private:
  std::optional<T> value_;
};

template <>
class TaskPromise<void> : public TaskPromiseBase {
 public:
  Task<void> get_return_object() noexcept;
  void return_void() noexcept {}
  void take() noexcept {}
};

}  // namespace detail

template <class T = void>
class [[nodiscard]] Task {
 public:
  using promise_type = detail::TaskPromise<T>;
  using value_type = T;

  Task() = default;
  explicit Task(std::coroutine_handle<promise_type> handle) noexcept : handle_(handle) {}
  Task(Task&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Task& operator=(Task&& other) noexcept {
    if (this != &other) {
      reset();
      handle_ = std::exchange(other.handle_, nullptr);
    }
    return *this;
  }
  ~Task() { reset(); }

  bool done() const noexcept { return handle_.done(); }

  // The result of a task that is done; call once, instead of awaiting.
  T take() { return handle_.promise().take(); }

  struct Awaiter {
    std::coroutine_handle<promise_type> handle;
    bool await_ready() const noexcept { return handle.done(); }
    void await_suspend(std::coroutine_handle<> waiter) noexcept {
      handle.promise().waiter_ = waiter;
    }
    T await_resume() { return handle.promise().take(); }
  };
  Awaiter operator co_await() const noexcept { return Awaiter{handle_}; }

 private:
  void reset() noexcept {
    if (!handle_) return;
    if (!handle_.done()) detail::abort_unfinished_task();
    handle_.destroy();
    handle_ = nullptr;
  }

  std::coroutine_handle<promise_type> handle_;
};

namespace detail {
template <class T>
Task<T> TaskPromise<T>::get_return_object() noexcept {
  return Task<T>(std::coroutine_handle<TaskPromise<T>>::from_promise(*this));
}
inline Task<void> TaskPromise<void>::get_return_object() noexcept {
  return Task<void>(std::coroutine_handle<TaskPromise<void>>::from_promise(*this));
}
}  // namespace detail

}  // namespace platter
