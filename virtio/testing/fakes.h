// Stand-ins for the machine around a transport and for the transport around a device.
//
// Threads: all may be called from any thread; waits block the calling thread.
#pragma once

#include <algorithm>
#include <atomic>
#include <memory>
#include <utility>
#include <vector>

#include "block/base/mutex.h"
#include "virtio/device.h"
#include "virtio/platform.h"

namespace platter::virtio::testing {

// Counts events and lets a thread wait for the next ones.
class Counter {
 public:
  void add() {
    MutexLock lock(mutex_);
    ++count_;
    changed_.notify_all();
  }
  unsigned count() const {
    MutexLock lock(mutex_);
    return count_;
  }
  void wait_for(unsigned count) const {
    UniqueMutexLock lock(mutex_);
    while (count_ < count) changed_.wait(lock);
  }

 private:
  mutable Mutex mutex_;
  mutable ConditionVariable changed_;
  unsigned count_ PLATTER_GUARDED_BY(mutex_) = 0;
};

// What a device sees of a transport.
class FakeSink final : public InterruptSink {
 public:
  explicit FakeSink(unsigned queues) : queues_(queues) {}
  void queue_interrupt(unsigned queue) noexcept override { queues_[queue].add(); }
  void config_interrupt() noexcept override { config_.add(); }
  Counter& queue(unsigned queue) { return queues_[queue]; }
  Counter& config() { return config_; }

 private:
  std::vector<Counter> queues_;
  Counter config_;
};

class FakeLine final : public InterruptLine {
 public:
  void set_level(bool asserted) noexcept override {
    if (asserted == level_.exchange(asserted)) repeated_ = true;
    if (asserted) edges_.add();
  }
  bool level() const { return level_; }
  bool repeated() const { return repeated_; }  // the same level twice: breaks the contract
  Counter& edges() { return edges_; }

 private:
  std::atomic<bool> level_{false};
  std::atomic<bool> repeated_{false};
  Counter edges_;
};

class FakePlatform final : public Platform {
 public:
  struct Binding {
    NotifyAddress where;
    int event_fd = -1;
    bool operator==(const Binding&) const = default;
  };

  Result<std::unique_ptr<MsiSignal>> create_msi(const MsiMessage& message) override {
    if (refuse_msi) return fail(ENOSPC, "no more interrupt routes");
    MutexLock lock(mutex_);
    ++signals_made_;
    return std::make_unique<Signal>(*this, message);
  }
  Result<void> bind_notify(const NotifyAddress& where, int event_fd) override {
    if (refuse_bindings) return fail(ENOSPC, "no more ioeventfds");
    MutexLock lock(mutex_);
    bindings_.push_back({where, event_fd});
    return {};
  }
  void unbind_notify(const NotifyAddress& where, int event_fd) override {
    MutexLock lock(mutex_);
    std::erase(bindings_, Binding{where, event_fd});
  }

  std::vector<Binding> bindings() const {
    MutexLock lock(mutex_);
    return bindings_;
  }
  std::vector<MsiMessage> sent() const {
    MutexLock lock(mutex_);
    return sent_;
  }
  unsigned signals_made() const {
    MutexLock lock(mutex_);
    return signals_made_;
  }
  Counter& messages() { return messages_; }

  // Set before use.
  bool refuse_msi = false;
  bool refuse_bindings = false;

 private:
  class Signal final : public MsiSignal {
   public:
    Signal(FakePlatform& platform, const MsiMessage& message)
        : platform_(platform), message_(message) {}
    void raise() noexcept override {
      {
        MutexLock lock(platform_.mutex_);
        platform_.sent_.push_back(message_);
      }
      platform_.messages_.add();
    }
    Result<void> set_message(const MsiMessage& message) override {
      message_ = message;
      return {};
    }

   private:
    FakePlatform& platform_;
    MsiMessage message_;
  };

  mutable Mutex mutex_;
  std::vector<Binding> bindings_ PLATTER_GUARDED_BY(mutex_);
  std::vector<MsiMessage> sent_ PLATTER_GUARDED_BY(mutex_);
  unsigned signals_made_ PLATTER_GUARDED_BY(mutex_) = 0;
  Counter messages_;
};

}  // namespace platter::virtio::testing
