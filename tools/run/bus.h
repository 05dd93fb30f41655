// Bus: which device answers at which address; one for port space, one for memory space.
//
// An interval map from address ranges to devices. Entries are counted: an access holds its device
// while the handler runs, outside every lock, so a device may be removed (a BAR moved) by one vCPU
// while another is inside its handler.
//
// Threads: all member functions from any thread. A handler is called from any vCPU thread, from
// several at once; devices lock for themselves.
// Errors: EEXIST for an overlap, with both ranges. An access that no entry holds is not an error:
// reads give all ones and writes go nowhere, as on a real bus.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>

#include "block/base/error.h"
#include "block/base/mutex.h"

namespace platter::run {

class BusDevice {
 public:
  virtual ~BusDevice() = default;
  // `offset` is relative to the entry's base; offset + data.size() is within the entry. Values are
  // little-endian bytes. read() fills `data`.
  virtual void read(std::uint64_t offset, std::span<std::byte> data) = 0;
  virtual void write(std::uint64_t offset, std::span<const std::byte> data) = 0;
};

// A BusDevice made of two functions; an empty one reads as all ones or ignores the write.
class CallbackDevice final : public BusDevice {
 public:
  using Read = std::function<void(std::uint64_t offset, std::span<std::byte> data)>;
  using Write = std::function<void(std::uint64_t offset, std::span<const std::byte> data)>;
  CallbackDevice(Read read, Write write) : read_(std::move(read)), write_(std::move(write)) {}
  void read(std::uint64_t offset, std::span<std::byte> data) override;
  void write(std::uint64_t offset, std::span<const std::byte> data) override;

 private:
  Read read_;
  Write write_;
};

class Bus {
 public:
  // `size` is not zero; base + size does not wrap.
  Result<void> add(std::uint64_t base, std::uint64_t size, std::string name,
                   std::shared_ptr<BusDevice> device);
  // Removes the entry that starts at `base`; false when there is none. A handler may still be
  // running in another thread when this returns.
  bool remove(std::uint64_t base);

  // True when an entry holds the whole access and handled it.
  bool read(std::uint64_t address, std::span<std::byte> data) const;
  bool write(std::uint64_t address, std::span<const std::byte> data) const;

 private:
  struct Entry {
    std::uint64_t size;
    std::string name;
    std::shared_ptr<BusDevice> device;
  };
  struct Found {
    std::shared_ptr<BusDevice> device;
    std::uint64_t offset = 0;
  };
  Found find(std::uint64_t address, std::size_t size) const;

  mutable SharedMutex mutex_;
  std::map<std::uint64_t, Entry> entries_ PLATTER_GUARDED_BY(mutex_);  // by base
};

}  // namespace platter::run
