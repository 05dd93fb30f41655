#include "tools/run/mptable.h"

#include <string_view>
#include <utility>

#include "block/base/bytes.h"
#include "tools/run/acpi.h"
#include "tools/run/apic.h"
#include "tools/run/table_bytes.h"

namespace platter::run {
namespace {

constexpr std::uint8_t kApicVersion = 0x14, kIoApicVersion = 0x11;
constexpr std::uint8_t kPciBus = 0, kIsaBus = 1;
constexpr std::uint8_t kVectored = 0, kNmi = 1, kExternal = 3;  // kinds of interrupts
constexpr std::uint8_t kIoInterrupt = 3, kLocalInterrupt = 4;   // kinds of entries
constexpr std::uint8_t kAllApics = 0xff;

// An interrupt assignment entry (4.3.4, 4.3.5).
struct Assignment {
  std::uint8_t entry = kIoInterrupt;
  std::uint8_t kind = kVectored;
  std::uint16_t flags = kConforms;
  std::uint8_t bus = kIsaBus;
  std::uint8_t bus_irq = 0;
  std::uint8_t apic = kAllApics;
  std::uint8_t pin = 0;
};

void put(TableBytes& table, const Assignment& assignment) {
  table.put(assignment.entry);
  table.put(assignment.kind);
  table.put(assignment.flags);
  table.put(assignment.bus);
  table.put(assignment.bus_irq);
  table.put(assignment.apic);
  table.put(assignment.pin);
}

}  // namespace

std::vector<std::byte> mp_floating_pointer(std::uint32_t table_address) {
  TableBytes pointer;
  pointer.text("_MP_", 4);
  pointer.put(table_address);
  pointer.put(std::uint8_t{1});  // length in paragraphs
  pointer.put(std::uint8_t{4});  // version 1.4
  pointer.put(std::uint8_t{0});  // checksum
  pointer.put(std::uint8_t{0});  // a configuration table is present
  pointer.put(std::uint32_t{0});
  pointer.bytes()[10] = checksum_of(pointer.bytes());
  return pointer.bytes();
}

std::vector<std::byte> mp_table(unsigned cpus, const std::vector<PciInterrupt>& interrupts) {
  const auto io_apic_id = static_cast<std::uint8_t>(cpus);
  TableBytes table;
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
    // KVM's own routing: ISA interrupt n comes in at pin n, the timer included; 2 is the cascade.
    if (irq == 2 || (PciHost::kInterruptMask >> irq & 1) != 0) continue;
    put(table, {.flags = irq == kAcpiInterrupt ? kLevelHigh : kConforms,
                .bus_irq = irq,
                .apic = io_apic_id,
                .pin = irq});
    ++entries;
  }
  for (const PciInterrupt& interrupt : interrupts) {
    // Active high, because KVM does not invert lines; device in bits 2 to 6, INTA# to INTD# below.
    put(table, {.flags = kLevelHigh,
                .bus = kPciBus,
                .bus_irq = static_cast<std::uint8_t>((interrupt.device << 2) | interrupt.line),
                .apic = io_apic_id,
                .pin = interrupt.pin});
    ++entries;
  }
  put(table, {.entry = kLocalInterrupt, .kind = kExternal, .pin = 0});  // 8259 at LINT0
  put(table, {.entry = kLocalInterrupt, .kind = kNmi, .pin = 1});       // NMI at LINT1
  entries = static_cast<std::uint16_t>(entries + 2);

  std::vector<std::byte>& bytes = table.bytes();
  store_le(bytes.data() + 4, static_cast<std::uint16_t>(bytes.size()));
  store_le(bytes.data() + 34, entries);
  bytes[7] = checksum_of(bytes);
  return std::move(bytes);
}

}  // namespace platter::run
