// Executor: one thread, one io_uring, one ready list, timers, and an inbox for other threads.
//
// A coroutine that suspends on anything in this folder is resumed on the executor it suspended on.
// SQEs are queued while coroutines run and submitted by the handful, the last with the wait for an
// event; completions put coroutines on the ready list and never run user code inside the reaper.
//
// Threads: an Executor belongs to the first thread that runs it (run() or block_on()), since the
// kernel takes a ring's submissions from one thread only; post_from_any_thread() and stop() may be
// called from elsewhere. index() is immutable.
// Errors: a kernel that gives no io_uring at all ends the process with a message.
// Destroying an Executor that has operations in flight aborts: the kernel may own their buffers.
// drain() first, or cancel() what would not end by itself.
//
// Example:
//   auto executor = Executor::create();
//   Result<Info> info = (*executor)->block_on([&] { return load_info(path); });
#pragma once

#include <liburing.h>
#include <sys/uio.h>

#include <atomic>
#include <chrono>
#include <coroutine>
#include <cstdint>
#include <memory>
#include <vector>

#include "block/base/error.h"
#include "block/base/mutex.h"
#include "block/exec/task.h"

namespace platter {

class Executor;

// One ring operation, awaited: `int n = co_await op;` gives the CQE's result, a negative errno or
// what the operation counts. Trivially destructible, so it may be awaited as a temporary.
// Buffers it names must live until it completes.
struct IoOp {
  std::uint8_t opcode = 0;  // IORING_OP_*
  int fd = -1;
  std::uint64_t address = 0;
  std::uint32_t length = 0;
  std::uint64_t offset = 0;
  std::uint32_t op_flags = 0;  // rw_flags, fsync_flags, poll events, msg_flags, ... of the opcode

  int result = 0;
  std::coroutine_handle<> waiter;

  bool await_ready() const noexcept { return false; }
  void await_suspend(std::coroutine_handle<> handle) noexcept;
  int await_resume() const noexcept { return result; }
};

namespace io {
// Offsets and lengths in bytes. `iov` must live until completion. `rw_flags`: RWF_*.
IoOp readv(int fd, const iovec* iov, unsigned count, std::uint64_t offset, int rw_flags = 0);
IoOp writev(int fd, const iovec* iov, unsigned count, std::uint64_t offset, int rw_flags = 0);
IoOp read(int fd, void* data, unsigned length, std::uint64_t offset);
IoOp write(int fd, const void* data, unsigned length, std::uint64_t offset);
IoOp fsync(int fd, bool data_only);
// `mode`: FALLOC_FL_*; 0 allocates.
IoOp fallocate(int fd, int mode, std::uint64_t offset, std::uint64_t length);
// Completes once `fd` has one of `events` (POLLIN, ...).
IoOp poll(int fd, unsigned events);
// Completes (with -ETIME) after the time has passed; `when` must live until then.
IoOp timeout(const __kernel_timespec* when);
// Asks the kernel to end `target`, an operation in flight on this executor, which then completes
// with -ECANCELED, or with its result when it was too late. Completes itself with 0, or with
// -ENOENT or -EALREADY when it was too late.
IoOp cancel(const IoOp& target);
}  // namespace io

class Executor {
 public:
  static constexpr unsigned kMaxExecutors = 64;
  struct Config {
    unsigned ring_entries = 256;
  };

  // Claims an index; the ring itself is made at first use. Fails with EAGAIN when kMaxExecutors
  // exist at once.
  static Result<std::unique_ptr<Executor>> create(Config config);
  static Result<std::unique_ptr<Executor>> create() { return create(Config{}); }
  ~Executor();
  Executor(const Executor&) = delete;
  Executor& operator=(const Executor&) = delete;

  // The executor whose loop runs on this thread. current() requires that there is one.
  static Executor& current() { return *current_; }
  static Executor* current_or_null() { return current_; }

  // A small number unique among live executors, below kMaxExecutors; indexes per-executor state.
  unsigned index() const { return index_; }

  // Runs `start()` (a callable that returns a Task) and the loop on the calling thread until that
  // task has finished; gives its result. Not to be called from inside a coroutine.
  template <class Start>
  auto block_on(Start&& start) {
    Enter enter(*this);
    auto task = start();
    while (!task.done()) turn();
    return task.take();
  }

  // Runs the loop on the calling thread until nothing is ready or in flight. Coroutines that wait
  // for anything else (a lock, another thread) stay as they are.
  void drain();

  // Runs the loop on the calling thread until stop(), or not at all when stop() was called since
  // the last run. Work that is still pending then stays so.
  void run();
  void stop();  // any thread

  // Resume `handle` from this executor's loop.
  void post(std::coroutine_handle<> handle) noexcept { ready_.push_back(handle); }
  void post_from_any_thread(std::coroutine_handle<> handle) noexcept;

  // Number of ring operations in flight.
  unsigned in_flight() const { return in_flight_; }

  // Make the loop poll the completion queue for up to this long before it sleeps. Default zero.
  void set_busy_poll(std::chrono::microseconds time) { busy_poll_ = time; }

 private:
  friend struct IoOp;
  class Enter {
   public:
    explicit Enter(Executor& executor) : previous_(current_) { current_ = &executor; }
    ~Enter() { current_ = previous_; }
    Enter(const Enter&) = delete;
    Enter& operator=(const Enter&) = delete;

   private:
    Executor* previous_;
  };

  Executor() = default;
  // One round: finds coroutines to resume, sleeping for them when there are none, resumes each
  // once, and returns so that the caller can look whether what it waits for has happened.
  void turn();
  void resume_ready();
  void take_inbox();
  void reap();
  // Submits what is queued and sleeps until a completion or another thread's post.
  void wait_for_events();
  bool busy_poll_for_events();
  void enter_kernel(unsigned wait_for);
  void start(IoOp& op) noexcept;
  io_uring_sqe* next_sqe();
  void open_ring();
  void arm_wakeup();
  bool stopping() const { return stoppable_ && stop_.load(std::memory_order_seq_cst); }
  void write_event() noexcept;

  static thread_local Executor* current_;

  Config config_;
  unsigned index_ = 0;
  bool ring_open_ = false;
  bool wakeup_armed_ = false;
  unsigned rounds_since_enter_ = 0;
  io_uring ring_{};
  unsigned in_flight_ = 0;
  std::chrono::microseconds busy_poll_{0};
  std::vector<std::coroutine_handle<>> ready_;
  std::vector<std::coroutine_handle<>> running_;

  std::atomic<bool> stop_{false};
  bool stoppable_ = false;  // inside run()
  // True from just before the loop looks at the inbox for the last time until it wakes: the poster
  // that turns it back to false writes the eventfd.
  std::atomic<bool> sleeping_{false};
  int event_fd_ = -1;
  std::uint64_t event_value_ = 0;
  // Held by a poster until it touches the executor no more.
  Mutex inbox_mutex_;
  std::vector<std::coroutine_handle<>> inbox_ PLATTER_GUARDED_BY(inbox_mutex_);
  std::atomic<bool> inbox_filled_{false};
};

}  // namespace platter
