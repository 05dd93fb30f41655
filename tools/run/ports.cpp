#include "tools/run/ports.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <string_view>

#include "block/base/mutex.h"
#include "tools/run/power.h"

namespace platter::run {
namespace {

constexpr std::uint8_t kKeyboardPulseReset = 0xfe;
// There is no keyboard controller but for its reset line. "Output buffer full" that never empties
// makes drivers give up at once, and "input buffer empty" lets a reset through without a wait.
constexpr std::uint8_t kKeyboardAbsent = 0xfd;
constexpr std::byte kDebugPortIsThere{0xe9};
constexpr std::string_view kShutdown = "Shutdown";

std::uint8_t first(std::span<const std::byte> data) {
  return std::to_integer<std::uint8_t>(data[0]);
}

class SystemControlA final : public BusDevice {
 public:
  explicit SystemControlA(Control& control) : control_(control) {}
  void read(std::uint64_t, std::span<std::byte> data) override {
    std::ranges::fill(data, std::byte{value_.load()});
  }
  void write(std::uint64_t, std::span<const std::byte> data) override {
    if ((first(data) & 1) != 0) control_.end(EndReason::kReset);
    value_ = first(data);
  }

 private:
  Control& control_;
  std::atomic<std::uint8_t> value_{2};  // A20 is open
};

// Bochs' way to switch off, which SeaBIOS uses: the letters of a word, one by one.
class BochsShutdown final : public BusDevice {
 public:
  explicit BochsShutdown(Control& control) : control_(control) {}
  void read(std::uint64_t, std::span<std::byte> data) override {
    std::ranges::fill(data, std::byte{0xff});
  }
  void write(std::uint64_t, std::span<const std::byte> data) override {
    MutexLock lock(mutex_);
    const char letter = static_cast<char>(first(data));
    matched_ = letter == kShutdown[matched_] ? matched_ + 1 : letter == kShutdown[0] ? 1 : 0;
    if (matched_ < kShutdown.size()) return;
    matched_ = 0;
    control_.end(EndReason::kPowerOff);
  }

 private:
  Control& control_;
  Mutex mutex_;
  std::size_t matched_ PLATTER_GUARDED_BY(mutex_) = 0;
};

}  // namespace

Result<void> add_legacy_ports(Bus& ports, Control& control, std::function<void(std::byte)> debug) {
  auto added = ports.add(kKeyboardCommand, 1, "keyboard controller",
                         std::make_shared<CallbackDevice>(
                             [](std::uint64_t, std::span<std::byte> data) {
                               std::ranges::fill(data, std::byte{kKeyboardAbsent});
                             },
                             [&control](std::uint64_t, std::span<const std::byte> data) {
                               if (first(data) == kKeyboardPulseReset)
                                 control.end(EndReason::kReset);
                             }));
  PLATTER_TRY(added);
  added = ports.add(kSystemControlA, 1, "system control port A",
                    std::make_shared<SystemControlA>(control));
  PLATTER_TRY(added);
  added = ports.add(kDebugPort, 1, "firmware debug port",
                    std::make_shared<CallbackDevice>(
                        [](std::uint64_t, std::span<std::byte> data) {
                          std::ranges::fill(data, kDebugPortIsThere);
                        },
                        [debug = std::move(debug)](std::uint64_t, std::span<const std::byte> data) {
                          if (debug) debug(data[0]);
                        }));
  PLATTER_TRY(added);
  added = ports.add(Power::kEvents, Power::kPorts, "power management",
                    std::make_shared<Power>(control));
  PLATTER_TRY(added);
  return ports.add(kBochsShutdown, 1, "shutdown port", std::make_shared<BochsShutdown>(control));
}

}  // namespace platter::run
