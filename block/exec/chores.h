// Chores: what is done now and then for something that need not be in use meanwhile, such as giving
// up memory that nobody has used for long.
//
//   Chore chore([this] { shed(); });   // starts nothing
//   chore.every(10min);                // how often; 0: never
//   chore.begin();                     // there is something to do: from now on
//
// A chore belongs to no executor: nothing waits for it when an executor drains or ends, and it runs
// although none of them does anything. It runs on a thread that all chores of the process share,
// which starts when the first begins (a program that only looks at an image starts none) and sleeps
// in between.
//
// Threads: every() and begin() from any. The work is short, waits for nothing but short mutexes,
// takes every mutex that it needs, and changes no chores.
// Ownership: destroying a Chore, and every(), return when the work is not running; so who calls
// them holds no mutex that the work takes. Chores outlive what is registered with them.
// Errors: where the system gives no thread, chores are left undone; the next every() of one that
// has begun tries again.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <optional>
#include <thread>
#include <vector>

#include "block/base/mutex.h"

namespace platter {

class Chore;

class Chores {
 public:
  Chores() = default;
  ~Chores();
  Chores(const Chores&) = delete;
  Chores& operator=(const Chores&) = delete;

  // Those of the process.
  static Chores& process();

  // For tests: so much time passes at once. Returns when what is due has been done.
  void advance(std::chrono::nanoseconds time);

 private:
  friend class Chore;
  using Clock = std::chrono::steady_clock;

  struct Entry {
    const Chore* chore;
    std::chrono::nanoseconds interval;
    Clock::time_point due;
  };

  void set(Chore& chore, std::chrono::nanoseconds interval);
  void begin(Chore& chore);
  void plan(const Chore& chore) PLATTER_REQUIRES(mutex_);
  void start_thread() PLATTER_REQUIRES(mutex_);
  Clock::time_point now() const PLATTER_REQUIRES(mutex_) { return Clock::now() + ahead_; }
  Entry* next() PLATTER_REQUIRES(mutex_);
  void loop();

  Mutex mutex_;
  std::condition_variable_any wake_;  // which waits for a time as well
  ConditionVariable rested_;          // work has ended
  std::vector<Entry> entries_ PLATTER_GUARDED_BY(mutex_);
  const Chore* running_ PLATTER_GUARDED_BY(mutex_) = nullptr;
  std::chrono::nanoseconds ahead_ PLATTER_GUARDED_BY(mutex_){0};  // of the clock
  bool stop_ PLATTER_GUARDED_BY(mutex_) = false;
  std::optional<std::thread> thread_ PLATTER_GUARDED_BY(mutex_);
};

class Chore {
 public:
  explicit Chore(std::function<void()> work, Chores& chores = Chores::process())
      : chores_(chores), work_(std::move(work)) {}
  ~Chore() { every(std::chrono::nanoseconds(0)); }
  Chore(const Chore&) = delete;
  Chore& operator=(const Chore&) = delete;

  // Each time `interval` has passed, counted from now, or from begin(). 0: never.
  void every(std::chrono::nanoseconds interval) { chores_.set(*this, interval); }
  // Nothing was done before the first call; further ones are cheap and change nothing.
  void begin() {
    if (!begun_.load(std::memory_order_acquire)) chores_.begin(*this);
  }

 private:
  friend class Chores;

  Chores& chores_;
  const std::function<void()> work_;
  // Both changed under the mutex of chores_.
  std::chrono::nanoseconds interval_{0};
  std::atomic<bool> begun_{false};
};

}  // namespace platter
