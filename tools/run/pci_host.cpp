#include "tools/run/pci_host.h"

#include <algorithm>
#include <bit>

#include "block/base/bytes.h"
#include "block/base/checked.h"

namespace platter::run {
namespace {

constexpr std::uint32_t kEnable = 0x80000000;
constexpr unsigned kCommand = 0x04, kFirstBar = 0x10, kInterruptLine = 0x3c, kInterruptPin = 0x3d;
constexpr std::uint32_t kMemoryAndMaster = 0x6;
// i440FX programmable attribute map: which parts of the first MiB are RAM. All of it is RAM here,
// always; the registers only keep what firmware writes, and say that RAM is there already.
constexpr unsigned kFirstPam = 0x59, kLastPam = 0x5f, kSmram = 0x72;
constexpr std::byte kPamRamPresent{0x10};
constexpr std::uint64_t kResetControl = PciHost::kResetPort - PciHost::kBase;
constexpr unsigned kResetCpu = 0x04;

}  // namespace

class PciHost::Bridge final : public virtio::PciFunction {
 public:
  Bridge()
      : PciFunction(Identity{.vendor = 0x8086,
                             .device = 0x1237,
                             .revision = 2,
                             .class_code = 0x060000,
                             // By these SeaBIOS knows a machine of QEMU's kind, with fw_cfg.
                             .subsystem_vendor = 0x1af4,
                             .subsystem = 0x1100,
                             .interrupt_pin = 0}) {
    for (unsigned pam = kFirstPam; pam <= kLastPam; ++pam) make_writable(pam, 0xff);
    make_writable(kSmram, 0xff);
    config()[kFirstPam] = kPamRamPresent;
  }
  void read_bar(unsigned, std::uint64_t, std::span<std::byte> data) override {
    std::ranges::fill(data, std::byte{0});
  }
  void write_bar(unsigned, std::uint64_t, std::span<const std::byte>) override {}

 private:
  void before_config_read(unsigned, unsigned) override {}
  void after_config_write(unsigned, unsigned) override {}
  void bar_changed(unsigned, bool, std::uint64_t) override {}
};

PciHost::PciHost(Bus& memory, Control& control)
    : memory_(memory), control_(control), bridge_(std::make_unique<Bridge>()) {
  slots_[0] = bridge_.get();
}

PciHost::~PciHost() {
  for (virtio::PciFunction* function : slots_) {
    if (function != nullptr) function->set_listener(nullptr);
  }
}

Result<unsigned> PciHost::plug(virtio::PciFunction& function) {
  const unsigned slot = next_slot();
  if (slot == kSlots) return fail(ENOSPC, "more than {} virtio-pci disks", kSlots - 1);
  slots_[slot] = &function;
  function.set_listener(this);
  return slot;
}

unsigned PciHost::next_slot() const {
  const auto free = std::ranges::find(slots_, nullptr);
  return static_cast<unsigned>(free - slots_.begin());
}

unsigned PciHost::interrupt_of(unsigned slot) {
  static constexpr unsigned kLines[4] = {10, 10, 11, 11};
  return kLines[(slot - 1) % 4];
}

Result<void> PciHost::assign_resources() {
  std::uint64_t next = kWindow;
  for (unsigned slot = 1; slot < kSlots; ++slot) {
    virtio::PciFunction* function = slots_[slot];
    if (function == nullptr) continue;
    for (unsigned bar = 0; bar < virtio::PciFunction::kBars; ++bar) {
      const unsigned place = kFirstBar + 4 * bar;
      function->write_config(place, 4, 0xffffffff);
      const std::uint32_t answer = function->read_config(place, 4) & ~0xfU;
      if (answer == 0) continue;
      const std::uint64_t size = std::uint64_t{~answer} + 1;
      const std::uint64_t address =
          align_up<std::uint64_t>(next, std::max<std::uint64_t>(size, 4096));
      if (address + size > kWindowEnd) {
        return fail(ENOSPC, "the PCI window [{:#x}, {:#x}) is full", kWindow, kWindowEnd);
      }
      function->write_config(place, 4, static_cast<std::uint32_t>(address));
      next = address + size;
    }
    if (function->read_config(kInterruptPin, 1) != 0) {
      function->write_config(kInterruptLine, 1, interrupt_of(slot));
    }
    function->write_config(kCommand, 2, kMemoryAndMaster);
  }
  return {};
}

virtio::PciFunction* PciHost::selected(unsigned& place) const {
  const std::uint32_t address = address_.load(std::memory_order_relaxed);
  // Bits 16 to 23 are the bus, 11 to 15 the slot, 8 to 10 the function, 2 to 7 the dword.
  if ((address & kEnable) == 0 || ((address >> 16) & 0xff) != 0 || ((address >> 8) & 7) != 0) {
    return nullptr;
  }
  place = address & 0xfc;
  return slots_[(address >> 11) & 0x1f];
}

void PciHost::read(std::uint64_t offset, std::span<std::byte> data) {
  std::ranges::fill(data, std::byte{0xff});
  if (offset == 0 && data.size() == 4) {
    store_le(data.data(), address_.load(std::memory_order_relaxed));
    return;
  }
  unsigned place = 0;
  virtio::PciFunction* function = offset >= 4 ? selected(place) : nullptr;
  if (function == nullptr || !std::has_single_bit(data.size()) || data.size() > 4) return;
  const auto within = static_cast<unsigned>(offset - 4);
  if (within % data.size() != 0) return;
  const std::uint32_t value =
      function->read_config(place + within, static_cast<unsigned>(data.size()));
  std::byte raw[4];
  store_le(raw, value);
  std::copy_n(raw, data.size(), data.begin());
}

void PciHost::write(std::uint64_t offset, std::span<const std::byte> data) {
  if (offset == 0 && data.size() == 4) {
    address_.store(load_le<std::uint32_t>(data.data()), std::memory_order_relaxed);
    return;
  }
  if (offset == kResetControl && data.size() == 1) {
    if ((std::to_integer<unsigned>(data[0]) & kResetCpu) != 0) control_.end(EndReason::kReset);
    return;
  }
  unsigned place = 0;
  virtio::PciFunction* function = offset >= 4 ? selected(place) : nullptr;
  if (function == nullptr || !std::has_single_bit(data.size()) || data.size() > 4) return;
  const auto within = static_cast<unsigned>(offset - 4);
  if (within % data.size() != 0) return;
  std::byte raw[4]{};
  std::ranges::copy(data, raw);
  function->write_config(place + within, static_cast<unsigned>(data.size()),
                         load_le<std::uint32_t>(raw));
}

void PciHost::put_on_bus(const Bar& bar, Place& place) {
  virtio::PciFunction& function = *bar.first;
  const unsigned number = bar.second;
  auto device = std::make_shared<CallbackDevice>(
      [&function, number](std::uint64_t offset, std::span<std::byte> data) {
        function.read_bar(number, offset, data);
      },
      [&function, number](std::uint64_t offset, std::span<const std::byte> data) {
        function.write_bar(number, offset, data);
      });
  place.on_bus = memory_.add(place.address, place.size, "PCI BAR", std::move(device)).has_value();
}

void PciHost::bar_mapped(virtio::PciFunction& function, unsigned bar, std::uint64_t address,
                         std::uint64_t size) {
  MutexLock lock(mapped_mutex_);
  // While BARs are sized or moved they may lie anywhere for a moment, also on top of each other.
  const Bar key{&function, bar};
  put_on_bus(key, mapped_[key] = {.address = address, .size = size});
}

void PciHost::bar_unmapped(virtio::PciFunction& function, unsigned bar) {
  MutexLock lock(mapped_mutex_);
  const auto found = mapped_.find({&function, bar});
  if (found == mapped_.end()) return;
  const Place left = found->second;
  mapped_.erase(found);
  if (!left.on_bus) return;
  memory_.remove(left.address);
  // Others may have waited for this to go.
  for (auto& [other, place] : mapped_) {
    if (!place.on_bus) put_on_bus(other, place);
  }
}

}  // namespace platter::run
