#include "block/exec/workers.h"

#include <algorithm>
#include <system_error>
#include <utility>

namespace platter {

WorkerPool::WorkerPool(unsigned threads) : limit_(std::max(1U, threads)) {}

WorkerPool::~WorkerPool() {
  {
    MutexLock lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

WorkerPool& WorkerPool::codecs() {
  static WorkerPool pool(std::thread::hardware_concurrency());
  return pool;
}

WorkerPool& WorkerPool::blocking() {
  static WorkerPool pool(std::thread::hardware_concurrency() + 2);
  return pool;
}

void WorkerPool::submit(std::function<void()> work) {
  {
    MutexLock lock(mutex_);
    if (idle_ <= queue_.size() && threads_.size() < limit_) start_thread();
    if (!threads_.empty()) queue_.push_back(std::exchange(work, nullptr));
  }
  wake_.notify_one();
  if (work) work();
}

void WorkerPool::start_thread() {
  try {
    threads_.emplace_back([this] { loop(); });
  } catch (const std::system_error&) {
    // The process may have no more of them: those that there are do the work.
  }
}

void WorkerPool::loop() {
  UniqueMutexLock lock(mutex_);
  while (true) {
    if (queue_.empty()) {
      if (stop_) return;
      ++idle_;
      wake_.wait(lock);
      --idle_;
      continue;
    }
    std::function<void()> work = std::move(queue_.front());
    queue_.pop_front();
    lock.unlock();
    work();
    work = nullptr;
    lock.lock();
  }
}

}  // namespace platter
