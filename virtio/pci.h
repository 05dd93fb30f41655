// PciFunction: the configuration space of one PCI function: header, BARs, capability list. A
// register-level state machine; the machine's host bridge routes accesses to it.
//
// Threads: read_config, write_config, read_bar, write_bar from any vCPU thread, several at once.
// Ownership: refers to its listener, which outlives it.
// Errors: accesses outside what exists read as all ones (configuration space) or zeroes (BARs) and
// write nothing.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>

#include "block/base/mutex.h"

namespace platter::virtio {

class PciFunction;

// The machine's address decoder. Called from the vCPU thread that writes a BAR or the command
// register, with the function's configuration lock held: it must not call back into the function.
class PciListener {
 public:
  // From now on accesses to guest-physical [address, address + size) go to read_bar/write_bar.
  virtual void bar_mapped(PciFunction& function, unsigned bar, std::uint64_t address,
                          std::uint64_t size) = 0;
  virtual void bar_unmapped(PciFunction& function, unsigned bar) = 0;

 protected:
  ~PciListener() = default;
};

class PciFunction {
 public:
  static constexpr std::size_t kConfigSize = 256;  // bytes
  static constexpr unsigned kBars = 6;

  struct Identity {
    std::uint16_t vendor = 0;
    std::uint16_t device = 0;
    std::uint8_t revision = 0;
    std::uint32_t class_code = 0;  // 24 bits: base class, sub-class, interface
    std::uint16_t subsystem_vendor = 0;
    std::uint16_t subsystem = 0;
    std::uint8_t interrupt_pin = 0;  // 0 none, 1 INTA# ...
  };

  PciFunction(const PciFunction&) = delete;
  PciFunction& operator=(const PciFunction&) = delete;
  virtual ~PciFunction() = default;

  // Set before the guest runs.
  void set_listener(PciListener* listener) { listener_ = listener; }

  // `size` is 1, 2 or 4 bytes and the access lies within one dword.
  std::uint32_t read_config(unsigned offset, unsigned size);
  void write_config(unsigned offset, unsigned size, std::uint32_t value);

  // Guest access to an address inside a mapped BAR.
  virtual void read_bar(unsigned bar, std::uint64_t offset, std::span<std::byte> data) = 0;
  virtual void write_bar(unsigned bar, std::uint64_t offset, std::span<const std::byte> data) = 0;

  // Power-on state: BARs unmapped and zero, command register clear.
  virtual void reset_function();

 protected:
  explicit PciFunction(const Identity& identity);

  // Set-up, from the constructor of the derived class. A memory BAR of 32 bits, not prefetchable;
  // `size` is a power of two of at least 16 bytes.
  void add_memory_bar(unsigned bar, std::uint32_t size);
  // Appends a capability of `body` bytes after the id and next bytes (so its length is body + 2);
  // gives its offset in configuration space.
  unsigned add_capability(std::uint8_t id, std::span<const std::byte> body);
  // Lets the guest change these bits of the byte at `offset`.
  void make_writable(unsigned offset, std::uint8_t mask) { writable_[offset] |= mask; }

  // Called without the configuration lock, around accesses to bytes [offset, offset + size).
  virtual void before_config_read(unsigned offset, unsigned size) = 0;
  virtual void after_config_write(unsigned offset, unsigned size) = 0;
  virtual void bar_changed(unsigned bar, bool mapped, std::uint64_t address)
      PLATTER_REQUIRES(mutex_) = 0;

  // The raw bytes.
  std::span<std::byte> config() PLATTER_REQUIRES(mutex_) { return config_; }
  Mutex& config_mutex() PLATTER_RETURNS_CAPABILITY(mutex_) { return mutex_; }
  // The command register's interrupt-disable bit, for callers that must not wait for the lock.
  bool intx_disabled() const { return intx_disabled_.load(std::memory_order_acquire); }

 private:
  void update_mappings() PLATTER_REQUIRES(mutex_);

  Mutex mutex_;
  PciListener* listener_ = nullptr;
  const Identity identity_;
  std::array<std::byte, kConfigSize> config_ PLATTER_GUARDED_BY(mutex_){};
  std::array<std::uint8_t, kConfigSize> writable_{};
  std::array<std::uint32_t, kBars> bar_size_{};  // 0: no such BAR
  std::array<bool, kBars> mapped_ PLATTER_GUARDED_BY(mutex_){};
  std::array<std::uint32_t, kBars> mapped_at_ PLATTER_GUARDED_BY(mutex_){};
  std::atomic<bool> intx_disabled_{false};
  unsigned next_capability_ = 0x40;
  unsigned last_link_ = 0x34;
};

}  // namespace platter::virtio
