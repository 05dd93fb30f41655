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
#include <mutex>
#include <span>
#include <vector>

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
    std::mutex mutex;
    MsiMessage message;  // the rest guarded by mutex
    bool masked = true;
    bool pending = false;
    bool stale = true;  // the signal does not have `message` yet
    std::unique_ptr<MsiSignal> signal;
  };
  // All with the entry's mutex held.
  bool deliverable(const Entry& entry) const;
  void prepare(Entry& entry) noexcept;  // the signal has the current message afterwards
  void send(Entry& entry) noexcept;
  void settle(Entry& entry) noexcept;

  Platform& platform_;
  std::vector<Entry> entries_;
  std::atomic<bool> enabled_{false};
  std::atomic<bool> function_masked_{false};
};

}  // namespace platter::virtio
