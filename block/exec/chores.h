// Chores: what is done now and then for something that need not be in use meanwhile, such as giving
// up memory that nobody has used for long.
//
//   Chore chore([this] { shed(); });   // starts nothing
//   chore.every(10min);                // from now on; 0: no more
//
// A chore belongs to no executor: nothing waits for it when an executor drains or ends, and it runs
// although none of them does anything. It runs on a thread that all chores of the process share,
// which starts with the first and sleeps in between.
//
// Threads: every() from any. The work is short, waits for nothing but short mutexes, takes every
// mutex that it needs, and changes no chores.
// Ownership: destroying a Chore, and every(), return when the work is not running; so who calls
// them holds no mutex that the work takes. Chores outlive what is registered with them.
// Errors: where the system gives no thread, chores are left undone; the next every() tries again.
#pragma once

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

  void set(const Chore& chore, std::chrono::nanoseconds interval);
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

  // Each time `interval` has passed, counted from now. 0: never.
  void every(std::chrono::nanoseconds interval) { chores_.set(*this, interval); }

 private:
  friend class Chores;

  Chores& chores_;
  const std::function<void()> work_;
};

}  // namespace platter
