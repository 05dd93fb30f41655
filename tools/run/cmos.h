// Cmos: the real-time clock and its 128 bytes of memory, at ports 0x70 and 0x71. Firmware learns
// from it how much memory there is and what to boot from.
//
// Threads: read() and write() from any thread.
// Errors: none.
#pragma once

#include <array>
#include <cstdint>
#include <ctime>
#include <functional>
#include <span>

#include "block/base/mutex.h"
#include "tools/run/bus.h"

namespace platter::run {

class Cmos final : public BusDevice {
 public:
  static constexpr std::uint16_t kBase = 0x70;
  static constexpr std::uint64_t kPorts = 2;
  static constexpr std::uint8_t kCentury = 0x32;  // where the clock has the century

  struct Config {
    std::uint64_t low_ram = 0;   // bytes below 4 GiB
    std::uint64_t high_ram = 0;  // bytes above
    unsigned cpus = 1;
  };
  // `now` gives seconds since the epoch; the clock shows UTC.
  Cmos(const Config& config, std::function<std::time_t()> now);

  void read(std::uint64_t offset, std::span<std::byte> data) override;
  void write(std::uint64_t offset, std::span<const std::byte> data) override;

 private:
  std::uint8_t value(unsigned index) const PLATTER_REQUIRES(mutex_);

  Mutex mutex_;
  std::function<std::time_t()> now_ PLATTER_GUARDED_BY(mutex_);
  std::array<std::uint8_t, 128> memory_ PLATTER_GUARDED_BY(mutex_){};
  unsigned index_ PLATTER_GUARDED_BY(mutex_) = 0;
};

}  // namespace platter::run
