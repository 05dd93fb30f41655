#include "block/node/in_flight.h"

namespace platter {

static_assert(Executor::kMaxExecutors <= 64);

void InFlight::start() {
  unseen_ = {~std::uint64_t{0}, ~std::uint64_t{0}};
  running_.store(true);
  phase_.fetch_add(1);
}

bool InFlight::scan() {
  for (std::size_t parity = 0; parity < 2; ++parity) {
    for (std::uint64_t left = unseen_[parity]; left != 0; left &= left - 1) {
      const auto slot = static_cast<std::size_t>(std::countr_zero(left));
      if (slot >= slots_.size() || slots_[slot].count[parity].load() == 0) {
        unseen_[parity] &= ~(std::uint64_t{1} << slot);
      }
    }
  }
  // New requests use the phase's parity. Once the other one is empty, turn them there, so that this
  // one can run empty too.
  const unsigned current = phase_.load(std::memory_order_relaxed) & 1;
  if (unseen_[current ^ 1] == 0 && unseen_[current] != 0) phase_.fetch_add(1);
  return unseen_[0] == 0 && unseen_[1] == 0;
}

std::uint64_t InFlight::barrier() {
  UniqueMutexLock lock(mutex_);
  const bool was_running = running_.load();
  const std::uint64_t number = passed_.load() + (was_running ? 2 : 1);
  if (number > wanted_) wanted_ = number;
  if (!was_running) start();
  lock.unlock();
  advance();
  return number;
}

void InFlight::advance() {
  MutexLock lock(mutex_);
  if (!running_.load() || !scan()) return;
  while (true) {
    const std::uint64_t done = passed_.load() + 1;
    passed_.store(done);
    if (done >= wanted_) {
      running_.store(false);
      break;
    }
    start();
    if (!scan()) break;
  }
  waiters_.notify_all();
}

Task<void> InFlight::wait() {
  const std::uint64_t number = barrier();
  while (true) {
    UniqueMutexLock lock(mutex_);
    if (passed(number)) co_return;
    co_await waiters_.wait(lock);
  }
}

}  // namespace platter
