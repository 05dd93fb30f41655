// How deep calls from node to node are on this thread's stack. A Task starts on its caller's stack,
// so a chain of a thousand nodes would overflow it; past kMaxNesting a call yields first and so
// goes on from the executor's loop with an empty stack.
//
// Threads: per thread.
#pragma once

#include <coroutine>

#include "block/exec/executor.h"

namespace platter::detail {

// Frames between two nodes come to at most a few KiB each, also under the sanitizers.
inline constexpr unsigned kMaxNesting = 32;

inline thread_local constinit unsigned nesting = 0;

// On the stack around a call that starts a Task; never in a coroutine's frame.
class Nesting {
 public:
  Nesting() noexcept { ++nesting; }
  ~Nesting() { --nesting; }
  Nesting(const Nesting&) = delete;
  Nesting& operator=(const Nesting&) = delete;
};

inline bool nested_too_deep() noexcept { return nesting >= kMaxNesting; }

// Suspends when `yield`, and goes on from the executor's ready list.
struct YieldIf {
  bool yield;
  bool await_ready() const noexcept { return !yield; }
  void await_suspend(std::coroutine_handle<> handle) const noexcept {
    Executor::current().post(handle);
  }
  void await_resume() const noexcept {}
};

}  // namespace platter::detail
