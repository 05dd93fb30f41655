#include "block/exec/workers.h"

#include <algorithm>

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
    queue_.push_back(std::move(work));
    if (idle_ < queue_.size() && threads_.size() < limit_)
      threads_.emplace_back([this] { loop(); });
  }
  wake_.notify_one();
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
