// Mutexes and locks whose use clang checks (thread_annotations.h): std::mutex and its company,
// which it does not know, under names of their own and at no cost.
//
//   Mutex            std::mutex
//   MutexLock        std::lock_guard
//   UniqueMutexLock  a lock that can be given up and taken again; stays where it is
//   ConditionVariable  for plain threads; coroutines wait on a ConditionQueue (block/exec/sync.h)
//   SharedMutex, ReaderLock, WriterLock
//   MutexRole        stands for the mutex of every object of a kind, in annotations
//
// Threads: any. A mutex is never held across a suspension.
#pragma once

#include <condition_variable>
#include <mutex>
#include <shared_mutex>

#include "block/base/thread_annotations.h"

namespace platter {

class PLATTER_CAPABILITY("mutex") Mutex {
 public:
  void lock() PLATTER_ACQUIRE() { mutex_.lock(); }
  void unlock() PLATTER_RELEASE() { mutex_.unlock(); }

 private:
  friend class ConditionVariable;
  std::mutex mutex_;
};

struct PLATTER_CAPABILITY("mutex") MutexRole {};

class PLATTER_SCOPED_CAPABILITY [[nodiscard]] MutexLock {
 public:
  explicit MutexLock(Mutex& mutex) PLATTER_ACQUIRE(mutex) : mutex_(mutex) { mutex_.lock(); }
  ~MutexLock() PLATTER_RELEASE() { mutex_.unlock(); }
  MutexLock(const MutexLock&) = delete;
  MutexLock& operator=(const MutexLock&) = delete;

 private:
  Mutex& mutex_;
};

class PLATTER_SCOPED_CAPABILITY [[nodiscard]] UniqueMutexLock {
 public:
  explicit UniqueMutexLock(Mutex& mutex) PLATTER_ACQUIRE(mutex) : mutex_(mutex) { mutex_.lock(); }
  ~UniqueMutexLock() PLATTER_RELEASE() {
    if (held_) mutex_.unlock();
  }
  UniqueMutexLock(const UniqueMutexLock&) = delete;
  UniqueMutexLock& operator=(const UniqueMutexLock&) = delete;

  void lock() PLATTER_ACQUIRE() {
    mutex_.lock();
    held_ = true;
  }
  // Touches nothing of the lock once the mutex is free: the lock may be gone then.
  void unlock() PLATTER_RELEASE() {
    held_ = false;
    mutex_.unlock();
  }

 private:
  friend class ConditionVariable;
  Mutex& mutex_;
  bool held_ = true;
};

class ConditionVariable {
 public:
  // `lock` is held, and held again on return; look at the condition in a loop.
  void wait(UniqueMutexLock& lock) {
    std::unique_lock<std::mutex> held(lock.mutex_.mutex_, std::adopt_lock);
    changed_.wait(held);
    held.release();
  }
  void notify_one() noexcept { changed_.notify_one(); }
  void notify_all() noexcept { changed_.notify_all(); }

 private:
  std::condition_variable changed_;
};

class PLATTER_CAPABILITY("mutex") SharedMutex {
 public:
  void lock() PLATTER_ACQUIRE() { mutex_.lock(); }
  void unlock() PLATTER_RELEASE() { mutex_.unlock(); }
  void lock_shared() PLATTER_ACQUIRE_SHARED() { mutex_.lock_shared(); }
  void unlock_shared() PLATTER_RELEASE_SHARED() { mutex_.unlock_shared(); }

 private:
  std::shared_mutex mutex_;
};

class PLATTER_SCOPED_CAPABILITY [[nodiscard]] WriterLock {
 public:
  explicit WriterLock(SharedMutex& mutex) PLATTER_ACQUIRE(mutex) : mutex_(mutex) { mutex_.lock(); }
  ~WriterLock() PLATTER_RELEASE() { mutex_.unlock(); }
  WriterLock(const WriterLock&) = delete;
  WriterLock& operator=(const WriterLock&) = delete;

 private:
  SharedMutex& mutex_;
};

class PLATTER_SCOPED_CAPABILITY [[nodiscard]] ReaderLock {
 public:
  explicit ReaderLock(SharedMutex& mutex) PLATTER_ACQUIRE_SHARED(mutex) : mutex_(mutex) {
    mutex_.lock_shared();
  }
  ~ReaderLock() PLATTER_RELEASE_GENERIC() { mutex_.unlock_shared(); }
  ReaderLock(const ReaderLock&) = delete;
  ReaderLock& operator=(const ReaderLock&) = delete;

 private:
  SharedMutex& mutex_;
};

}  // namespace platter
