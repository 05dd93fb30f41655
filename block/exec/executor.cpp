#include "block/exec/executor.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <cstdio>

namespace platter {

thread_local Executor* Executor::current_ = nullptr;

namespace {

// user_data of the eventfd read; every other CQE carries its IoOp's address.
constexpr std::uint64_t kWakeupTag = 1;

std::atomic<std::uint64_t> used_indexes{0};

[[noreturn]] void die(const char* what, int error) {
  std::fprintf(stderr, "platter: %s: %s\n", what, errno_text(error).c_str());
  std::abort();
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
  if (ring_open_) io_uring_queue_exit(&ring_);
  if (event_fd_ >= 0) close(event_fd_);
  used_indexes.fetch_and(~(std::uint64_t{1} << index_));
}

void Executor::open_ring() {
  // The ladder: each step gives up flags that an older kernel refuses.
  constexpr unsigned kLadder[] = {
      IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_CLAMP,
      IORING_SETUP_COOP_TASKRUN | IORING_SETUP_CLAMP,
      IORING_SETUP_CLAMP,
      0,
  };
  int error = 0;
  for (unsigned flags : kLadder) {
    error = io_uring_queue_init(config_.ring_entries, &ring_, flags);
    if (error == 0) {
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
    submit_and_wait(false);
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

void Executor::submit_and_wait(bool wait) {
  int n;
  do {
    n = wait ? io_uring_submit_and_wait(&ring_, 1) : io_uring_submit(&ring_);
  } while (n == -EINTR && !wait);
  // EINTR while waiting: the loop comes back. EBUSY/EAGAIN: completions must be reaped first.
  if (n < 0 && n != -EINTR && n != -EBUSY && n != -EAGAIN && n != -ETIME) {
    die("io_uring_enter failed", -n);
  }
  if (n == -EBUSY || n == -EAGAIN) reap();
}

void Executor::reap() {
  if (!ring_open_) return;
  // With DEFER_TASKRUN completions are posted only when the kernel is entered for events.
  if ((ring_.flags & IORING_SETUP_DEFER_TASKRUN) != 0 &&
      (*ring_.sq.kflags & IORING_SQ_TASKRUN) != 0) {
    io_uring_get_events(&ring_);
  }
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
  std::lock_guard lock(inbox_mutex_);
  ready_.insert(ready_.end(), inbox_.begin(), inbox_.end());
  inbox_.clear();
  inbox_filled_.store(false, std::memory_order_relaxed);
}

void Executor::resume_ready() {
  // Two lists: what becomes ready meanwhile runs in the next round, so I/O is not starved.
  running_.swap(ready_);
  for (std::coroutine_handle<> handle : running_) handle.resume();
  running_.clear();
}

void Executor::turn(bool may_sleep) {
  take_inbox();
  if (!ready_.empty()) {
    resume_ready();
    if (ready_.empty() && !inbox_filled_.load(std::memory_order_relaxed)) {
      // Fall through: submit and look for completions.
    } else if (ring_open_ && io_uring_sq_ready(&ring_) == 0) {
      return;
    }
    if (!ready_.empty()) {
      if (ring_open_ && io_uring_sq_ready(&ring_) >= config_.ring_entries / 2) submit_and_wait(false);
      reap();
      return;
    }
    // The coroutines that ran may have been all that block_on() waits for: let it look before
    // sleeping.
    if (!ring_open_ || (io_uring_sq_ready(&ring_) == 0 && in_flight_ == 0)) return;
    if (io_uring_sq_ready(&ring_) != 0) {
      submit_and_wait(false);
      reap();
    }
    return;
  }
  reap();
  if (!ready_.empty()) return;
  if (!may_sleep || stop_.load(std::memory_order_acquire)) return;

  if (busy_poll_.count() > 0) {
    if (ring_open_ && io_uring_sq_ready(&ring_) != 0) submit_and_wait(false);
    const auto until = std::chrono::steady_clock::now() + busy_poll_;
    do {
      reap();
      take_inbox();
      if (!ready_.empty() || stop_.load(std::memory_order_acquire)) return;
    } while (std::chrono::steady_clock::now() < until);
  }

  arm_wakeup();
  sleeping_.store(true, std::memory_order_seq_cst);
  const bool idle = !inbox_filled_.load(std::memory_order_seq_cst) &&
                    !stop_.load(std::memory_order_seq_cst);
  submit_and_wait(idle);
  sleeping_.store(false, std::memory_order_relaxed);
  reap();
}

void Executor::run() {
  Enter enter(*this);
  while (!stop_.load(std::memory_order_acquire)) turn(true);
  stop_.store(false, std::memory_order_relaxed);
}

void Executor::stop() {
  stop_.store(true, std::memory_order_seq_cst);
  const std::uint64_t one = 1;
  [[maybe_unused]] ssize_t n = write(event_fd_, &one, sizeof one);
}

void Executor::post_from_any_thread(std::coroutine_handle<> handle) noexcept {
  {
    std::lock_guard lock(inbox_mutex_);
    inbox_.push_back(handle);
    inbox_filled_.store(true, std::memory_order_seq_cst);
  }
  if (sleeping_.load(std::memory_order_seq_cst)) {
    const std::uint64_t one = 1;
    [[maybe_unused]] ssize_t n = write(event_fd_, &one, sizeof one);
  }
}

void IoOp::await_suspend(std::coroutine_handle<> handle) noexcept {
  waiter = handle;
  Executor::current().start(*this);
}

namespace io {
namespace {
std::uint64_t address_of(const void* p) { return reinterpret_cast<std::uintptr_t>(p); }
}  // namespace

IoOp readv(int fd, const iovec* iov, unsigned count, std::uint64_t offset, int rw_flags) {
  IoOp op;
  op.opcode = IORING_OP_READV;
  op.fd = fd;
  op.address = address_of(iov);
  op.length = count;
  op.offset = offset;
  op.op_flags = static_cast<std::uint32_t>(rw_flags);
  return op;
}
IoOp writev(int fd, const iovec* iov, unsigned count, std::uint64_t offset, int rw_flags) {
  IoOp op = readv(fd, iov, count, offset, rw_flags);
  op.opcode = IORING_OP_WRITEV;
  return op;
}
IoOp read(int fd, void* data, unsigned length, std::uint64_t offset) {
  IoOp op;
  op.opcode = IORING_OP_READ;
  op.fd = fd;
  op.address = address_of(data);
  op.length = length;
  op.offset = offset;
  return op;
}
IoOp write(int fd, const void* data, unsigned length, std::uint64_t offset) {
  IoOp op = read(fd, nullptr, length, offset);
  op.opcode = IORING_OP_WRITE;
  op.address = address_of(data);
  return op;
}
IoOp fsync(int fd, bool data_only) {
  IoOp op;
  op.opcode = IORING_OP_FSYNC;
  op.fd = fd;
  op.op_flags = data_only ? IORING_FSYNC_DATASYNC : 0;
  return op;
}
IoOp fallocate(int fd, int mode, std::uint64_t offset, std::uint64_t length) {
  // The SQE carries the mode in `len` and the length in `addr`.
  IoOp op;
  op.opcode = IORING_OP_FALLOCATE;
  op.fd = fd;
  op.length = static_cast<std::uint32_t>(mode);
  op.address = length;
  op.offset = offset;
  return op;
}
IoOp poll(int fd, unsigned events) {
  IoOp op;
  op.opcode = IORING_OP_POLL_ADD;
  op.fd = fd;
  op.op_flags = events;
  return op;
}
IoOp timeout(const __kernel_timespec* when) {
  IoOp op;
  op.opcode = IORING_OP_TIMEOUT;
  op.address = address_of(when);
  op.length = 1;
  return op;
}
}  // namespace io

}  // namespace platter
