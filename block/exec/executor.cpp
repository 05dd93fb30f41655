#include "block/exec/executor.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <bit>
#include <cstdio>
#include <cstdlib>

namespace platter {

thread_local Executor* Executor::current_ = nullptr;

namespace {

// user_data of the eventfd read; every other CQE carries its IoOp's address.
constexpr std::uint64_t kWakeupTag = 1;

std::atomic<std::uint64_t> used_indexes{0};
// Rings given back. A new one may lie where an old one was; liburing maps and unmaps them by system
// calls of its own, which the thread sanitizer does not see, so it takes the order from here.
std::atomic<std::uint64_t> closed_rings{0};

[[noreturn]] void die(const char* what, int error) {
  std::fprintf(stderr, "platter: %s: %s\n", what, errno_text(error).c_str());
  std::abort();
}

// EINTR: the loop comes back. EBUSY and EAGAIN: completions have to be fetched first; the kernel
// keeps those that did not fit until it is entered for events.
void require_entered(int result) {
  if (result < 0 && result != -EINTR && result != -EBUSY && result != -EAGAIN) {
    die("io_uring_enter failed", -result);
  }
}

}  // namespace

namespace detail {
void post_to_current_executor(std::coroutine_handle<> handle) noexcept {
  Executor::current().post(handle);
}
void abort_unfinished_task() noexcept {
  std::fputs("platter: a Task was destroyed before it had finished\n", stderr);
  std::abort();
}
}  // namespace detail

Result<std::unique_ptr<Executor>> Executor::create(Config config) {
  std::uint64_t used = used_indexes.load();
  unsigned index = 0;
  do {
    if (used == ~std::uint64_t{0}) {
      return fail(EAGAIN, "more than {} executors at once", kMaxExecutors);
    }
    index = static_cast<unsigned>(std::countr_one(used));
  } while (!used_indexes.compare_exchange_weak(used, used | (std::uint64_t{1} << index)));

  std::unique_ptr<Executor> executor(new Executor());
  executor->config_ = config;
  executor->index_ = index;
  executor->event_fd_ = eventfd(0, EFD_CLOEXEC);
  if (executor->event_fd_ < 0) return fail_errno(errno, "could not create an eventfd");
  return executor;
}

Executor::~Executor() {
  if (in_flight_ != 0) {
    std::fprintf(stderr, "platter: an Executor was destroyed with %u operations in flight\n",
                 in_flight_);
    std::abort();
  }
  // A poster may still be on its way out.
  {
    MutexLock lock(inbox_mutex_);
  }
  if (ring_open_) {
    closed_rings.fetch_add(1, std::memory_order_release);
    io_uring_queue_exit(&ring_);
  }
  if (event_fd_ >= 0) close(event_fd_);
  used_indexes.fetch_and(~(std::uint64_t{1} << index_));
}

void Executor::open_ring() {
  // The ladder: each step gives up flags that an older kernel refuses.
  constexpr unsigned kBase = IORING_SETUP_CLAMP | IORING_SETUP_CQSIZE;
  constexpr unsigned kLadder[] = {
      kBase | IORING_SETUP_SUBMIT_ALL | IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN |
          IORING_SETUP_TASKRUN_FLAG,
      kBase | IORING_SETUP_SUBMIT_ALL | IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
      kBase,
      0,
  };
  int error = 0;
  for (unsigned flags : kLadder) {
    io_uring_params params{};
    params.flags = flags;
    if ((flags & IORING_SETUP_CQSIZE) != 0) params.cq_entries = config_.ring_entries * 4;
    error = io_uring_queue_init_params(config_.ring_entries, &ring_, &params);
    if (error == 0) {
      static_cast<void>(closed_rings.load(std::memory_order_acquire));
      ring_open_ = true;
      return;
    }
    if (error != -EINVAL) break;
  }
  die("could not create an io_uring", -error);
}

io_uring_sqe* Executor::next_sqe() {
  if (!ring_open_) open_ring();
  io_uring_sqe* sqe = io_uring_get_sqe(&ring_);
  while (!sqe) {
    // The submission queue is full: hand it to the kernel without waiting.
    enter_kernel(0);
    reap();
    sqe = io_uring_get_sqe(&ring_);
  }
  return sqe;
}

void Executor::start(IoOp& op) noexcept {
  io_uring_sqe* sqe = next_sqe();
  io_uring_prep_rw(op.opcode, sqe, op.fd, nullptr, op.length, op.offset);
  sqe->addr = op.address;
  sqe->rw_flags = static_cast<int>(op.op_flags);
  io_uring_sqe_set_data(sqe, &op);
  ++in_flight_;
}

void Executor::arm_wakeup() {
  if (wakeup_armed_) return;
  io_uring_sqe* sqe = next_sqe();
  io_uring_prep_read(sqe, event_fd_, &event_value_, sizeof event_value_, 0);
  io_uring_sqe_set_data64(sqe, kWakeupTag);
  wakeup_armed_ = true;
}

void Executor::enter_kernel(unsigned wait_for) {
  rounds_since_enter_ = 0;
  int n;
  if (wait_for != 0) {
    n = io_uring_submit_and_wait(&ring_, wait_for);
  } else if (io_uring_sq_ready(&ring_) != 0) {
    n = io_uring_submit(&ring_);
  } else {
    n = io_uring_get_events(&ring_);
  }
  if (n == -EBUSY || n == -EAGAIN) n = io_uring_get_events(&ring_);
  require_entered(n);
}

void Executor::reap() {
  if (!ring_open_) return;
  unsigned head;
  unsigned count = 0;
  io_uring_cqe* cqe;
  io_uring_for_each_cqe(&ring_, head, cqe) {
    ++count;
    if (cqe->user_data == kWakeupTag) {
      wakeup_armed_ = false;
      continue;
    }
    IoOp* op = reinterpret_cast<IoOp*>(static_cast<std::uintptr_t>(cqe->user_data));
    op->result = cqe->res;
    ready_.push_back(op->waiter);
    --in_flight_;
  }
  io_uring_cq_advance(&ring_, count);
}

void Executor::take_inbox() {
  if (!inbox_filled_.load(std::memory_order_acquire)) return;
  MutexLock lock(inbox_mutex_);
  ready_.insert(ready_.end(), inbox_.begin(), inbox_.end());
  inbox_.clear();
  inbox_filled_.store(false, std::memory_order_relaxed);
}

void Executor::resume_ready() {
  // Two lists: what becomes ready meanwhile runs in the next round, so I/O is not starved.
  // A disk that has completed many requests at once gets the first of the next ones while the rest
  // are still being made: it would stand idle for as long as that takes.
  constexpr unsigned kSubmitEarly = 8;
  running_.swap(ready_);
  for (std::coroutine_handle<> handle : running_) {
    handle.resume();
    if (ring_open_ && io_uring_sq_ready(&ring_) >= kSubmitEarly) {
      // What the kernel does not take now stays queued for when it is entered next.
      require_entered(io_uring_submit(&ring_));
    }
  }
  running_.clear();
}

bool Executor::busy_poll_for_events() {
  if (io_uring_sq_ready(&ring_) != 0) enter_kernel(0);
  const auto until = std::chrono::steady_clock::now() + busy_poll_;
  do {
    // Completions are posted when the kernel is entered; it flags that there are some to post.
    if ((*ring_.sq.kflags & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW)) != 0) enter_kernel(0);
    reap();
    take_inbox();
    if (!ready_.empty() || stopping()) return true;
  } while (std::chrono::steady_clock::now() < until);
  return false;
}

void Executor::wait_for_events() {
  arm_wakeup();
  // Making room for that may have fetched completions.
  if (!ready_.empty()) return;
  if (busy_poll_.count() > 0 && busy_poll_for_events()) return;
  sleeping_.store(true, std::memory_order_seq_cst);
  const bool idle = !inbox_filled_.load(std::memory_order_seq_cst) && !stopping();
  enter_kernel(idle ? 1 : 0);
  sleeping_.store(false, std::memory_order_relaxed);
  reap();
  take_inbox();
}

void Executor::turn() {
  // While coroutines keep each other busy the kernel is entered only now and then; what they queue
  // is submitted, with the wait for its completion, in one system call when nobody is ready.
  constexpr unsigned kRoundsPerEnter = 32;
  take_inbox();
  if (ready_.empty()) {
    reap();
    if (ready_.empty()) wait_for_events();
  } else if (ring_open_ && ++rounds_since_enter_ >= kRoundsPerEnter &&
             (in_flight_ != 0 || io_uring_sq_ready(&ring_) != 0)) {
    enter_kernel(0);
    reap();
  }
  resume_ready();
}

void Executor::run() {
  Enter enter(*this);
  stoppable_ = true;
  while (!stop_.load(std::memory_order_acquire)) turn();
  stoppable_ = false;
  stop_.store(false, std::memory_order_relaxed);
}

void Executor::drain() {
  Enter enter(*this);
  take_inbox();
  while (in_flight_ != 0 || !ready_.empty()) {
    turn();
    take_inbox();
  }
}

void Executor::write_event() noexcept {
  const std::uint64_t one = 1;
  [[maybe_unused]] const ssize_t n = write(event_fd_, &one, sizeof one);
}

void Executor::stop() {
  MutexLock lock(inbox_mutex_);
  stop_.store(true, std::memory_order_seq_cst);
  if (sleeping_.exchange(false, std::memory_order_seq_cst)) write_event();
}

void Executor::post_from_any_thread(std::coroutine_handle<> handle) noexcept {
  // The mutex is held to the end: the coroutine may be the last that the executor waits for, and
  // the executor destroyed as soon as it has run.
  MutexLock lock(inbox_mutex_);
  inbox_.push_back(handle);
  inbox_filled_.store(true, std::memory_order_seq_cst);
  if (sleeping_.exchange(false, std::memory_order_seq_cst)) write_event();
}

void IoOp::await_suspend(std::coroutine_handle<> handle) noexcept {
  waiter = handle;
  Executor::current().start(*this);
}

}  // namespace platter
