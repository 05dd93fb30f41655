#include "tools/run/power.h"

#include <algorithm>

#include "block/base/bytes.h"

namespace platter::run {
namespace {

constexpr std::uint64_t kEnableOffset = 2;
constexpr std::size_t kControlOffset = Power::kControl - Power::kEvents;
constexpr std::uint16_t kAcpiMode = 1U << 0;     // SCI_EN: there is no other mode
constexpr std::uint16_t kLockRelease = 1U << 2;  // reads as zero
constexpr unsigned kSleepTypeShift = 10;
constexpr std::uint16_t kSleepEnable = 1U << 13;  // reads as zero

}  // namespace

Power::Power(Control& control) : control_(control) {
  store_le(registers_ + kControlOffset, kAcpiMode);
}

void Power::read(std::uint64_t offset, std::span<std::byte> data) {
  MutexLock lock(mutex_);
  std::copy_n(registers_ + offset, data.size(), data.begin());
}

void Power::write(std::uint64_t offset, std::span<const std::byte> data) {
  MutexLock lock(mutex_);
  for (std::size_t i = 0; i < data.size(); ++i) {
    // Status bits are cleared by writing ones, and none is ever set.
    if (offset + i >= kEnableOffset) registers_[offset + i] = data[i];
  }
  const auto control = load_le<std::uint16_t>(registers_ + kControlOffset);
  store_le(registers_ + kControlOffset,
           static_cast<std::uint16_t>((control & ~(kSleepEnable | kLockRelease)) | kAcpiMode));
  if ((control & kSleepEnable) != 0 && ((control >> kSleepTypeShift) & 7) == kSoftOff) {
    control_.end(EndReason::kPowerOff);
  }
}

}  // namespace platter::run
