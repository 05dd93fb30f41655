// MsixTable: the vectors of a PCI function's MSI-X capability (PCI 3.0, 6.8.2): table, pending
// bits, and the signals that send the messages.
//
// Threads: any, several at once; a lock per vector, so queues on different executors do not meet.
// Ownership: owns the signals; refers to the platform.
// Errors: a vector for which the platform gives no signal loses its interrupts; reported once
// through the platform's own means. Accesses outside the table read zeroes and write nothing.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "block/base/mutex.h"
#include "virtio/platform.h"

namespace platter::virtio {

class MsixTable {
 public:
  static constexpr unsigned kEntrySize = 16;     // bytes
  static constexpr unsigned kMaxVectors = 2048;  // what the capability can express
  static constexpr std::uint16_t kNoVector = 0xffff;

  MsixTable(Platform& platform, unsigned vectors);

  unsigned vectors() const { return static_cast<unsigned>(entries_.size()); }

  // Guest accesses, offsets in bytes from the start of the table / the pending bits.
  void read_table(std::uint64_t offset, std::span<std::byte> data);
  void write_table(std::uint64_t offset, std::span<const std::byte> data);
  void read_pending(std::uint64_t offset, std::span<std::byte> data);

  // The capability's enable and function-mask bits.
  void set_control(bool enabled, bool masked);
  bool enabled() const { return enabled_.load(std::memory_order_acquire); }

  // Sends the vector's message, or remembers it as pending while the vector is masked. Vectors that
  // do not exist (kNoVector among them) are ignored.
  void raise(unsigned vector) noexcept;

  void reset();

 private:
  // On its own cache lines: raised from the executor of one queue.
  struct alignas(64) Entry {
    Mutex mutex;
    MsiMessage message PLATTER_GUARDED_BY(mutex);
    bool masked PLATTER_GUARDED_BY(mutex) = true;
    bool pending PLATTER_GUARDED_BY(mutex) = false;
    bool stale PLATTER_GUARDED_BY(mutex) = true;  // the signal does not have `message` yet
    std::unique_ptr<MsiSignal> signal PLATTER_GUARDED_BY(mutex);
  };
  bool deliverable(const Entry& entry) const PLATTER_REQUIRES(entry.mutex);
  // The signal has the current message afterwards.
  void prepare(Entry& entry) noexcept PLATTER_REQUIRES(entry.mutex);
  void send(Entry& entry) noexcept PLATTER_REQUIRES(entry.mutex);
  void settle(Entry& entry) noexcept PLATTER_REQUIRES(entry.mutex);

  Platform& platform_;
  std::vector<Entry> entries_;
  std::atomic<bool> enabled_{false};
  std::atomic<bool> function_masked_{false};
};

}  // namespace platter::virtio
