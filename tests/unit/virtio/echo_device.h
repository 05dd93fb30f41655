// A device for tests of what all devices share: it copies what it may read to what it may write,
// at once or when it is told to.
#pragma once

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <vector>

#include "block/exec/executor_thread.h"
#include "virtio/device.h"

namespace platter::virtio {

class EchoDevice final : public Device {
 public:
  static constexpr std::uint64_t kFeature = bit(3);
  static constexpr std::size_t kConfigSize = 6;

  EchoDevice(const GuestMemory& memory, std::vector<Executor*> executors, unsigned queues = 1,
             std::uint16_t max_size = 16)
      : Device(memory, 42, kFeature, std::move(executors), queues, max_size) {}

  // From now on requests wait for release(); waits until `count` are held.
  void hold() { holding_ = true; }
  void wait_held(std::size_t count) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return held_.size() >= count; });
  }
  // Completes what is held (by queues of one executor), all in one round of that executor.
  void release() {
    std::vector<Held> held;
    {
      std::lock_guard lock(mutex_);
      held.swap(held_);
    }
    finish_there(*this, std::move(held));
  }
  std::vector<std::byte> bytes = std::vector<std::byte>(kConfigSize, std::byte{0x11});
  void change() {
    change_config([this] { bytes[0] = std::byte{0x22}; });
  }
  std::uint64_t seen_features = 0;
  unsigned resets = 0;

 private:
  struct Held {
    Queue* queue;
    Chain* chain;
  };

  static Detached finish_there(EchoDevice& device, std::vector<Held> held) {
    struct Switch {
      Executor& executor;
      bool await_ready() const noexcept { return false; }
      void await_suspend(std::coroutine_handle<> h) noexcept { executor.post_from_any_thread(h); }
      void await_resume() const noexcept {}
    };
    static_assert(std::is_trivially_destructible_v<Switch>);
    co_await Switch{held.front().queue->executor()};
    for (const Held& h : held) device.finish(*h.queue, *h.chain);
  }

  void finish(Queue& queue, Chain& chain) {
    const std::size_t n = std::min(chain.readable().size(), chain.writable().size());
    std::vector<std::byte> copy(n);
    chain.readable().first(n).copy_to(copy.data());
    chain.writable().first(n).copy_from(copy.data());
    queue.complete(chain, static_cast<std::uint32_t>(n));
  }
  void serve(Queue& queue, Chain& chain) override {
    if (!holding_) return finish(queue, chain);
    std::lock_guard lock(mutex_);
    held_.push_back({&queue, &chain});
    changed_.notify_all();
  }
  void on_features_ok(std::uint64_t features) override { seen_features = features; }
  void on_reset() override { ++resets; }
  void on_config_written(std::uint64_t offset, std::span<const std::byte> data) override {
    std::ranges::copy(data, bytes.begin() + static_cast<std::ptrdiff_t>(offset));
  }
  std::span<const std::byte> config_bytes() override { return bytes; }

  std::atomic<bool> holding_{false};
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Held> held_;  // guarded by mutex_
};

}  // namespace platter::virtio
