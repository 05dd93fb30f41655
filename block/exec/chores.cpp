#include "block/exec/chores.h"

#include <algorithm>
#include <system_error>

namespace platter {

Chores& Chores::process() {
  static Chores chores;
  return chores;
}

Chores::~Chores() {
  std::optional<std::thread> thread;
  {
    MutexLock lock(mutex_);
    stop_ = true;
    thread.swap(thread_);
  }
  wake_.notify_one();
  if (thread) thread->join();
}

void Chores::start_thread() {
  if (thread_) return;
  try {
    thread_.emplace([this] { loop(); });
  } catch (const std::system_error&) {
    thread_.reset();
  }
}

void Chores::plan(const Chore& chore) {
  if (chore.interval_.count() <= 0 || !chore.begun_) return;
  entries_.push_back({&chore, chore.interval_, now() + chore.interval_});
  start_thread();
}

void Chores::begin(Chore& chore) {
  {
    MutexLock lock(mutex_);
    if (chore.begun_.exchange(true)) return;
    plan(chore);
  }
  wake_.notify_one();
}

void Chores::set(Chore& chore, std::chrono::nanoseconds interval) {
  {
    UniqueMutexLock lock(mutex_);
    std::erase_if(entries_, [&chore](const Entry& entry) { return entry.chore == &chore; });
    rested_.notify_all();
    while (running_ == &chore) rested_.wait(lock);
    chore.interval_ = interval;
    plan(chore);
  }
  wake_.notify_one();
}

Chores::Entry* Chores::next() {
  const auto first = std::min_element(entries_.begin(), entries_.end(),
                                      [](const Entry& a, const Entry& b) { return a.due < b.due; });
  return first == entries_.end() ? nullptr : &*first;
}

void Chores::loop() {
  UniqueMutexLock lock(mutex_);
  while (!stop_) {
    Entry* const entry = next();
    if (!entry) {
      wake_.wait(lock);
      continue;
    }
    if (entry->due > now()) {
      wake_.wait_until(lock, entry->due - ahead_);
      continue;
    }
    // Counted from now: what was missed (the machine slept) is not made up for.
    entry->due = now() + entry->interval;
    running_ = entry->chore;
    const std::function<void()>& work = running_->work_;
    lock.unlock();
    work();
    lock.lock();
    running_ = nullptr;
    rested_.notify_all();
  }
}

void Chores::advance(std::chrono::nanoseconds time) {
  UniqueMutexLock lock(mutex_);
  ahead_ += time;
  const Clock::time_point until = now();
  wake_.notify_one();
  while (thread_) {
    const Entry* const entry = next();
    if (!running_ && (!entry || entry->due > until)) return;
    rested_.wait(lock);
  }
}

}  // namespace platter
