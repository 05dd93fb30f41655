// MessageRoutes: which message each GSI above the lines of the interrupt controllers sends. KVM
// knows one table of all routes, lines included, and takes it as a whole.
//
// Threads: all member functions from any thread.
// Ownership: owns the function that hands the table over.
// Errors: ENOSPC when all GSIs are given away; those of the function, and then nothing has changed.
#pragma once

#include <linux/kvm.h>

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "block/base/error.h"
#include "block/base/mutex.h"

namespace platter::run {

class MessageRoutes {
 public:
  static constexpr unsigned kLines = 24;  // pins of the I/O APIC
  // Bound of message GSIs of one machine; KVM's own limit is 4096 routes.
  static constexpr unsigned kMaxGsis = 2048;
  // Makes this the whole table.
  using Commit = std::function<Result<void>(std::span<const kvm_irq_routing_entry>)>;

  explicit MessageRoutes(Commit commit) : commit_(std::move(commit)) {}

  // A GSI for a message-signalled interrupt; inert until set().
  Result<unsigned> allocate();
  void free(unsigned gsi);
  Result<void> set(unsigned gsi, std::uint64_t address, std::uint32_t data);

 private:
  struct Message {
    bool used = false;
    bool routed = false;
    std::uint64_t address = 0;
    std::uint32_t data = 0;
    bool operator==(const Message&) const = default;
  };
  std::vector<kvm_irq_routing_entry> table() const PLATTER_REQUIRES(mutex_);

  const Commit commit_;
  Mutex mutex_;
  std::vector<Message> messages_ PLATTER_GUARDED_BY(mutex_);  // index + kLines is the GSI
};

}  // namespace platter::run
