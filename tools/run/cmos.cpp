#include "tools/run/cmos.h"

#include <algorithm>

#include "tools/run/memory.h"

namespace platter::run {
namespace {

constexpr unsigned kStatusA = 0x0a, kStatusB = 0x0b, kStatusC = 0x0c, kStatusD = 0x0d;
constexpr std::uint8_t kBinaryMode = 0x04, kHours24 = 0x02;

std::uint8_t to_bcd(int value) {
  return static_cast<std::uint8_t>(((value / 10) << 4) | (value % 10));
}

}  // namespace

Cmos::Cmos(const Config& config, std::function<std::time_t()> now) : now_(std::move(now)) {
  const auto put16 = [this](unsigned index, std::uint64_t value) PLATTER_REQUIRES(mutex_) {
    memory_[index] = static_cast<std::uint8_t>(value);
    memory_[index + 1] = static_cast<std::uint8_t>(value >> 8);
  };
  memory_[kStatusA] = 0x26;
  memory_[kStatusB] = kHours24;
  memory_[kStatusD] = 0x80;  // the battery is good
  put16(0x15, 640);
  const std::uint64_t extended = config.low_ram > kMiB ? (config.low_ram - kMiB) / kKiB : 0;
  put16(0x17, std::min<std::uint64_t>(extended, 0xffff));
  put16(0x30, std::min<std::uint64_t>(extended, 0xffff));
  const std::uint64_t above_16m =
      config.low_ram > 16 * kMiB ? (config.low_ram - 16 * kMiB) / (64 * kKiB) : 0;
  put16(0x34, std::min<std::uint64_t>(above_16m, 0xffff));
  const std::uint64_t above_4g = config.high_ram / (64 * kKiB);
  put16(0x5b, above_4g & 0xffff);
  memory_[0x5d] = static_cast<std::uint8_t>(above_4g >> 16);
  memory_[0x3d] = 0x02;  // boot order: the hard disk, and nothing else
  memory_[0x38] = 0x01;  // no check of the floppy signature
  memory_[0x5f] = static_cast<std::uint8_t>(config.cpus - 1);
}

std::uint8_t Cmos::value(unsigned index) const {
  std::tm time{};
  const std::time_t now = now_();
  ::gmtime_r(&now, &time);
  const auto shown = [this](int number) PLATTER_REQUIRES(mutex_) {
    return (memory_[kStatusB] & kBinaryMode) != 0 ? static_cast<std::uint8_t>(number)
                                                  : to_bcd(number);
  };
  switch (index) {
    case 0x00:
      return shown(time.tm_sec);
    case 0x02:
      return shown(time.tm_min);
    case 0x04: {
      if ((memory_[kStatusB] & kHours24) != 0) return shown(time.tm_hour);
      const int hour = time.tm_hour % 12 == 0 ? 12 : time.tm_hour % 12;
      return static_cast<std::uint8_t>(shown(hour) | (time.tm_hour >= 12 ? 0x80 : 0));
    }
    case 0x06:
      return shown(time.tm_wday + 1);
    case 0x07:
      return shown(time.tm_mday);
    case 0x08:
      return shown(time.tm_mon + 1);
    case 0x09:
      return shown(time.tm_year % 100);
    case kCentury:
      return shown((time.tm_year + 1900) / 100);
    default:
      return memory_[index];
  }
}

void Cmos::read(std::uint64_t offset, std::span<std::byte> data) {
  MutexLock lock(mutex_);
  for (std::size_t i = 0; i < data.size(); ++i) {
    data[i] = offset + i == 1 ? std::byte{value(index_)} : std::byte{0xff};
  }
}

void Cmos::write(std::uint64_t offset, std::span<const std::byte> data) {
  MutexLock lock(mutex_);
  for (std::size_t i = 0; i < data.size(); ++i) {
    const auto byte = std::to_integer<std::uint8_t>(data[i]);
    if (offset + i == 0) {
      index_ = byte & 0x7f;  // bit 7 masks the NMI, which nothing here raises
    } else if (index_ == kStatusA) {
      memory_[index_] = byte & 0x7f;  // no update is ever in progress
    } else if (index_ != kStatusC && index_ != kStatusD) {
      memory_[index_] = byte;
    }
  }
}

}  // namespace platter::run
