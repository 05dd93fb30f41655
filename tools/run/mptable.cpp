#include "tools/run/mptable.h"

#include <algorithm>
#include <cstring>
#include <span>
#include <string_view>
#include <utility>

#include "block/base/bytes.h"
#include "tools/run/apic.h"

namespace platter::run {
namespace {

constexpr std::uint8_t kApicVersion = 0x14, kIoApicVersion = 0x11;
constexpr std::uint8_t kPciBus = 0, kIsaBus = 1;
constexpr std::uint16_t kConforms = 0;  // polarity and trigger as the bus has them
constexpr std::uint16_t kLevelHigh = 0x0d;

class MpBytes {
 public:
  template <std::unsigned_integral T>
  void put(T value) {
    std::byte raw[sizeof(T)];
    store_le(raw, value);
    bytes_.insert(bytes_.end(), std::begin(raw), std::end(raw));
  }
  void text(std::string_view text, std::size_t width) {
    for (std::size_t i = 0; i < width; ++i) {
      bytes_.push_back(i < text.size() ? static_cast<std::byte>(text[i]) : std::byte{' '});
    }
  }
  std::vector<std::byte>& bytes() { return bytes_; }

 private:
  std::vector<std::byte> bytes_;
};

// All bytes of a structure add up to zero.
std::byte checksum(std::span<const std::byte> bytes) {
  unsigned sum = 0;
  for (std::byte byte : bytes) sum += std::to_integer<unsigned>(byte);
  return static_cast<std::byte>(0x100 - (sum & 0xff));
}

void put_interrupt(MpBytes& table, std::uint8_t kind, std::uint16_t flags, std::uint8_t bus,
                   std::uint8_t bus_irq, std::uint8_t apic, std::uint8_t pin, bool local) {
  table.put(std::uint8_t{local ? std::uint8_t{4} : std::uint8_t{3}});
  table.put(kind);
  table.put(flags);
  table.put(bus);
  table.put(bus_irq);
  table.put(apic);
  table.put(pin);
}

}  // namespace

std::vector<std::byte> mp_floating_pointer(std::uint32_t table_address) {
  MpBytes pointer;
  pointer.text("_MP_", 4);
  pointer.put(table_address);
  pointer.put(std::uint8_t{1});  // length in paragraphs
  pointer.put(std::uint8_t{4});  // version 1.4
  pointer.put(std::uint8_t{0});  // checksum
  pointer.put(std::uint8_t{0});  // a configuration table is present
  pointer.put(std::uint32_t{0});
  pointer.bytes()[10] = checksum(pointer.bytes());
  return pointer.bytes();
}

std::vector<std::byte> mp_table(unsigned cpus, const std::vector<PciInterrupt>& interrupts) {
  const auto io_apic_id = static_cast<std::uint8_t>(cpus);
  MpBytes table;
  table.text("PCMP", 4);
  table.put(std::uint16_t{0});  // length, below
  table.put(std::uint8_t{4});
  table.put(std::uint8_t{0});  // checksum, below
  table.text("PLATTER", 8);
  table.text("RUN", 12);
  table.put(std::uint32_t{0});
  table.put(std::uint16_t{0});
  table.put(std::uint16_t{0});  // entries, below
  table.put(kLocalApicAddress);
  table.put(std::uint32_t{0});
  std::uint16_t entries = 0;

  for (unsigned cpu = 0; cpu < cpus; ++cpu, ++entries) {
    table.put(std::uint8_t{0});
    table.put(static_cast<std::uint8_t>(cpu));
    table.put(kApicVersion);
    table.put(static_cast<std::uint8_t>(cpu == 0 ? 3 : 1));  // enabled; the first one boots
    table.put(std::uint32_t{0x600});                         // family 6
    table.put(std::uint32_t{0x201});                         // APIC and FPU
    table.put(std::uint64_t{0});
  }
  for (const auto& [bus, name] : {std::pair{kPciBus, "PCI"}, std::pair{kIsaBus, "ISA"}}) {
    table.put(std::uint8_t{1});
    table.put(bus);
    table.text(name, 6);
    ++entries;
  }
  table.put(std::uint8_t{2});
  table.put(io_apic_id);
  table.put(kIoApicVersion);
  table.put(std::uint8_t{1});
  table.put(kIoApicAddress);
  ++entries;

  for (std::uint8_t irq = 0; irq < 16; ++irq) {
    const bool pci = std::ranges::any_of(interrupts, [irq](auto& i) { return i.pin == irq; });
    // KVM's own routing: ISA interrupt n comes in at pin n, the timer included; 2 is the cascade.
    if (irq == 2 || pci) continue;
    put_interrupt(table, 0, kConforms, kIsaBus, irq, io_apic_id, irq, false);
    ++entries;
  }
  for (const PciInterrupt& interrupt : interrupts) {
    // Active high, because KVM does not invert lines; device in bits 2 to 6, INTA# to INTD# below.
    put_interrupt(table, 0, kLevelHigh, kPciBus,
                  static_cast<std::uint8_t>((interrupt.device << 2) | interrupt.line), io_apic_id,
                  interrupt.pin, false);
    ++entries;
  }
  put_interrupt(table, 3, kConforms, kIsaBus, 0, 0xff, 0, true);  // 8259 at LINT0
  put_interrupt(table, 1, kConforms, kIsaBus, 0, 0xff, 1, true);  // NMI at LINT1
  entries = static_cast<std::uint16_t>(entries + 2);

  std::vector<std::byte>& bytes = table.bytes();
  store_le(bytes.data() + 4, static_cast<std::uint16_t>(bytes.size()));
  store_le(bytes.data() + 34, entries);
  bytes[7] = checksum(bytes);
  return std::move(bytes);
}

}  // namespace platter::run
