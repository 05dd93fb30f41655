// Device: what every virtio device has in common, seen by a transport: status register, feature
// negotiation, configuration space, queue set-up, reset. A device type derives from it.
//
//   BlkDevice disk(memory, root, config, executors);
//   MmioTransport transport(disk, platform, line, base);     // calls attach() and the rest
//   ...
//   disk.stop_and_wait();     // before guest memory, executors or the block node go away
//
// The status register follows virtio 2.1 and 3.1.1: bits are only ever added by the driver;
// FEATURES_OK is refused when a bit was accepted that was never offered or VERSION_1 was not;
// DRIVER_OK needs FEATURES_OK and starts the queues; writing 0 resets. Reset and stop let every
// request that is in flight finish first, so the kernel never writes to memory the driver has
// taken back.
//
// Threads: everything here is called from vCPU or set-up threads, any at once (a mutex inside),
// unless a comment says otherwise. Calls that wait for requests must not come from the thread of
// an executor that serves a queue; stop() is the awaitable way to do it there.
// Ownership: refers to guest memory, executors (which run from before DRIVER_OK until the device
// has been stopped) and the interrupt sink; owns its queues and their eventfds. Errors: what the
// driver does wrong is refused or answered with DEVICE_NEEDS_RESET.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "block/base/error.h"
#include "block/base/mutex.h"
#include "block/exec/executor.h"
#include "block/exec/task.h"
#include "virtio/features.h"
#include "virtio/guest_memory.h"
#include "virtio/queue.h"

namespace platter::virtio {

// Where a device sends its interrupts: the transport. Called from any thread; must not call back
// into the device, whose control lock may be held.
class InterruptSink {
 public:
  virtual void queue_interrupt(unsigned queue) noexcept = 0;
  virtual void config_interrupt() noexcept = 0;

 protected:
  ~InterruptSink() = default;
};

class Device : private QueueOwner {
 public:
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;
  // The device has been stopped (stop or stop_and_wait): aborts otherwise.
  virtual ~Device();

  std::uint16_t device_id() const { return device_id_; }

  // Set once by the transport, before the driver sees the device.
  void attach(InterruptSink& sink) { sink_ = &sink; }

  std::uint64_t offered_features() const { return offered_; }
  // Bits 32 * word to 32 * word + 31. Ignored once FEATURES_OK is set.
  void set_driver_features(unsigned word, std::uint32_t bits);
  std::uint32_t driver_features(unsigned word) const;

  std::uint8_t status() const { return status_.load(std::memory_order_acquire); }
  // Waits for requests in flight when `value` is 0 (reset).
  void write_status(std::uint8_t value);

  // Accesses past the end read zeroes and write nothing.
  void read_config(std::uint64_t offset, std::span<std::byte> data);
  void write_config(std::uint64_t offset, std::span<const std::byte> data);
  std::uint32_t config_generation() const { return generation_.load(std::memory_order_acquire); }

  unsigned queue_count() const { return static_cast<unsigned>(queues_.size()); }
  // The answers for a queue that does not exist are zero; writes to it are ignored, and so are
  // writes of addresses and size once the queue is enabled.
  std::uint16_t queue_max_size(unsigned queue) const;
  std::uint16_t queue_size(unsigned queue) const;
  void set_queue_size(unsigned queue, std::uint16_t size);
  std::uint64_t queue_address(unsigned queue, RingPart part) const;
  // Half 0 is bits 0 to 31, half 1 bits 32 to 63.
  void set_queue_address(unsigned queue, RingPart part, unsigned half, std::uint32_t value);
  bool queue_enabled(unsigned queue) const;
  void enable_queue(unsigned queue);
  // Waits for the queue's requests in flight.
  void disable_queue(unsigned queue);

  // The eventfd that stands for the driver's notification of `queue` (which exists).
  int kick_fd(unsigned queue) const { return queues_[queue]->kick_fd(); }
  // The same as writing it; a queue that does not exist is ignored.
  void kick(unsigned queue) noexcept;

  // Ends service: finishes what is in flight, then leaves the rings alone. The driver sees
  // DEVICE_NEEDS_RESET nowhere: the machine is going away. The object may then be destroyed.
  void stop_and_wait();
  Task<void> stop();

  // Who is told, in one line, of what a driver or the storage did wrong. Any thread. Set before
  // the device runs.
  void set_reporter(std::function<void(const Error&)> reporter) { reporter_ = std::move(reporter); }

 protected:
  Device(const GuestMemory& memory, std::uint16_t device_id, std::uint64_t offered,
         std::vector<Executor*> executors, unsigned queue_count, std::uint16_t queue_max_size);

  // The negotiated features; constant from FEATURES_OK to reset, so readable by executors.
  std::uint64_t negotiated() const { return negotiated_.load(std::memory_order_relaxed); }

  // The device type's side. FEATURES_OK was accepted / the device went back to its initial state.
  virtual void on_features_ok(std::uint64_t features) = 0;
  virtual void on_reset() = 0;
  // `bytes` are within the configuration space.
  virtual void on_config_written(std::uint64_t offset, std::span<const std::byte> bytes)
      PLATTER_REQUIRES(config_mutex_) = 0;
  // The current configuration space.
  virtual std::span<const std::byte> config_bytes() PLATTER_REQUIRES(config_mutex_) = 0;
  // Serve `chain` (executor thread of `queue`); ends with queue.complete(chain, ...).
  void serve(Queue& queue, Chain& chain) override = 0;

  // Applies `change()` to what config_bytes() shows, bumps the generation, and tells the driver
  // when it is running. Any thread.
  template <class F>
  void change_config(F&& change) {
    {
      MutexLock lock(config_mutex_);
      change();
      generation_.fetch_add(1, std::memory_order_release);
    }
    announce_config_change();
  }
  void report(const Error& error) const {
    if (reporter_) reporter_(error);
  }
  // Puts the device into DEVICE_NEEDS_RESET (2.1.2): no queue takes requests until reset. Any
  // thread.
  void break_device(const Error& why);

  Mutex config_mutex_;

 private:
  void on_queue_fault(Queue& queue, RingFault fault) override;
  void on_used_buffers(Queue& queue) noexcept override;
  bool queues_halted() const noexcept override { return (status() & kStatusNeedsReset) != 0; }
  void announce_config_change();
  void start_queues() PLATTER_REQUIRES(device_mutex);
  void reset() PLATTER_REQUIRES(device_mutex);
  void stop_queues() PLATTER_REQUIRES(device_mutex);
  // The queue, or nullptr when there is none of that number.
  Queue* find(unsigned queue) const {
    return queue < queues_.size() ? queues_[queue].get() : nullptr;
  }

  const GuestMemory& memory_;
  const std::uint16_t device_id_;
  const std::uint64_t offered_;
  InterruptSink* sink_ = nullptr;
  std::function<void(const Error&)> reporter_;

  // Control state; held while waiting for queues, so never taken by them.
  Mutex& mutex() const PLATTER_RETURNS_CAPABILITY(device_mutex) { return mutex_; }
  mutable Mutex mutex_;
  std::uint64_t accepted_ PLATTER_GUARDED_BY(device_mutex) = 0;    // what the driver wrote so far
  bool accepted_beyond_ PLATTER_GUARDED_BY(device_mutex) = false;  // bits above 63 were accepted
  bool closing_ PLATTER_GUARDED_BY(device_mutex) = false;          // stop was called
  std::atomic<std::uint64_t> negotiated_{0};
  std::atomic<std::uint8_t> status_{0};
  std::atomic<std::uint32_t> generation_{0};
  std::vector<std::unique_ptr<Queue>> queues_;  // the vector is immutable
};

}  // namespace platter::virtio
