// Queue: a virtqueue at work on one executor: it sleeps on the notification eventfd, pops what is
// available in a batch, starts a request for each, gathers their completions and publishes them
// with at most one interrupt per batch.
//
// Life: configured (by the transport through Device) -> start() -> serving -> stop: no more pops,
// requests in flight finish, completions are published -> configured again, or destroyed.
//
// Threads: start(), request_stop(), wait_stopped() from any thread but an executor's, one at a
// time (Device's mutex); kick() from any; complete() and ring work on the queue's executor.
// Ownership: owns its eventfd, ring and the pool of Chains; refers to executor and owner.
// Errors: faults of the ring go to the owner, once per start.
#pragma once

#include <atomic>
#include <coroutine>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "block/base/mutex.h"
#include "block/exec/executor.h"
#include "block/exec/sync.h"
#include "block/exec/task.h"
#include "virtio/chain.h"
#include "virtio/guest_memory.h"
#include "virtio/vring.h"

namespace platter::virtio {

class Queue;

// The mutex of the device that a queue belongs to.
inline constexpr MutexRole device_mutex;

// Whom a queue works for. Called on the queue's executor.
class QueueOwner {
 public:
  // Starts a request; it ends with queue.complete(chain, ...), at once or later.
  virtual void serve(Queue& queue, Chain& chain) = 0;
  virtual void on_queue_fault(Queue& queue, RingFault fault) = 0;
  virtual void on_used_buffers(Queue& queue) noexcept = 0;  // send the queue's interrupt
  // Whether no buffers are to be taken for now (the device needs a reset).
  virtual bool queues_halted() const noexcept = 0;

 protected:
  ~QueueOwner() = default;
};

// A coroutine that starts at once, belongs to nobody and frees its frame (from the pool of frames)
// when it ends: a request in flight. Someone counts it: Queue does.
struct Detached {
  struct promise_type {
    static void* operator new(std::size_t size) { return allocate_frame(size); }
    static void operator delete(void* frame, std::size_t size) noexcept { free_frame(frame, size); }
    Detached get_return_object() noexcept { return {}; }
    std::suspend_never initial_suspend() noexcept { return {}; }
    std::suspend_never final_suspend() noexcept { return {}; }
    void return_void() noexcept {}
    void unhandled_exception() noexcept { std::terminate(); }
  };
};

class Queue {
 public:
  // Makes the eventfd; aborts when the process is out of descriptors (set-up, host side).
  Queue(QueueOwner& owner, Executor& executor, unsigned index, std::uint16_t max_size);
  ~Queue();
  Queue(const Queue&) = delete;
  Queue& operator=(const Queue&) = delete;

  unsigned index() const { return index_; }
  Executor& executor() const { return executor_; }
  int kick_fd() const { return kick_fd_; }
  void kick() const noexcept;

  // On the executor: the request of `chain` is over; it wrote `written` bytes from the start of its
  // writable part. The chain goes back to the pool.
  void complete(Chain& chain, std::uint32_t written);
  unsigned in_flight() const { return in_flight_; }  // on the executor

  // Control side, used by Device with its mutex held ---------------------------------------------

  struct Setup {
    SplitRing::Layout layout;
    bool enabled = false;
  };
  Setup& setup() PLATTER_REQUIRES(device_mutex) { return setup_; }
  const Setup& setup() const PLATTER_REQUIRES(device_mutex) { return setup_; }
  std::uint16_t max_size() const { return max_size_; }
  void reset_setup() PLATTER_REQUIRES(device_mutex);

  // Begins service of the ring described by setup(). EINVAL when the layout is wrong.
  Result<void> start(const GuestMemory& memory, std::uint64_t features)
      PLATTER_REQUIRES(device_mutex);
  bool running() const;
  // Takes no more buffers from now on; returns at once.
  void request_stop() noexcept;
  void wait_stopped();
  Task<void> stopped();

 private:
  // All on the executor.
  Detached serve_loop();
  Detached flush_loop();
  bool take_batch();  // true: there may be more
  void finish_stop() noexcept;

  QueueOwner& owner_;
  Executor& executor_;
  const unsigned index_;
  const std::uint16_t max_size_;
  int kick_fd_ = -1;
  Setup setup_ PLATTER_GUARDED_BY(device_mutex);

  std::atomic<bool> stopping_{false};
  mutable Mutex state_mutex_;
  ConditionVariable state_changed_;
  ConditionQueue stop_waiters_ PLATTER_GUARDED_BY(state_mutex_);
  bool running_ PLATTER_GUARDED_BY(state_mutex_) = false;

  // The executor's, while running.
  std::optional<SplitRing> ring_;
  std::vector<std::unique_ptr<Chain>> chains_;
  std::vector<Chain*> free_chains_;
  unsigned in_flight_ = 0;
  bool faulted_ = false;
  bool flush_scheduled_ = false;
  std::coroutine_handle<> flusher_;  // suspended between batches
  std::coroutine_handle<> drainer_;  // the serve loop, waiting for in_flight_ to become zero
};

}  // namespace platter::virtio
