#include "tools/run/acpi.h"

#include <fmt/format.h>

#include <span>
#include <string_view>
#include <tuple>
#include <utility>

#include "block/base/bytes.h"
#include "tools/run/aml.h"
#include "tools/run/apic.h"
#include "tools/run/cmos.h"
#include "tools/run/power.h"
#include "tools/run/serial.h"
#include "tools/run/table_bytes.h"

namespace platter::run {
namespace {

using Block = AcpiTables::Block;

constexpr std::uint8_t kAddressSpaceIo = 1;
constexpr std::uint8_t kAccessByte = 1, kAccessWord = 2;
constexpr std::size_t kHeaderSize = 36, kRootSize = 36, kFacsSize = 64;

// A table with its header (section 5.2.6); length and checksum come at the end.
class Table : public TableBytes {
 public:
  Table(std::string_view signature, std::uint8_t revision) {
    text(signature, 4);
    put(std::uint32_t{0});
    put(revision);
    put(std::uint8_t{0});
    text("PLATTR", 6);
    text("PLATTRUN", 8);
    put(std::uint32_t{1});
    text("PLTR", 4);  // the "compiler"
    put(std::uint32_t{1});
  }

  // A generic address structure (5.2.3.2) of a port.
  void port(std::uint16_t number, std::uint8_t bits, std::uint8_t access) {
    put(kAddressSpaceIo);
    put(bits);
    put(std::uint8_t{0});
    put(access);
    put(std::uint64_t{number});
  }
};

aml::Bytes cpu_devices(unsigned cpus) {
  aml::Bytes devices;
  for (unsigned cpu = 0; cpu < cpus; ++cpu) {
    const auto device = aml::device(fmt::format("C{:03X}", cpu),
                                    aml::join({aml::name("_HID", aml::text("ACPI0007")),
                                               aml::name("_UID", aml::integer(cpu))}));
    devices.insert(devices.end(), device.begin(), device.end());
  }
  return devices;
}

// Each slot's four interrupt pins, turned by one from slot to slot, as firmware for this bridge has
// it; the devices here use INTA# only.
aml::Bytes pci_routing() {
  std::vector<aml::Bytes> entries;
  for (unsigned slot = 1; slot < PciHost::kSlots; ++slot) {
    for (unsigned pin = 0; pin < 4; ++pin) {
      entries.push_back(
          aml::package({aml::integer(std::uint64_t{slot} << 16 | 0xffff), aml::integer(pin),
                        aml::integer(0), aml::integer(PciHost::interrupt_of(slot + pin))}));
    }
  }
  return aml::package(entries);
}

aml::Bytes pci_host_bridge() {
  constexpr auto kFirst = static_cast<std::uint16_t>(PciHost::kBase);
  constexpr auto kAfter = static_cast<std::uint16_t>(PciHost::kBase + PciHost::kPorts);
  return aml::device(
      "PCI0",
      aml::join(
          {aml::name("_HID", aml::eisa_id("PNP0A03")), aml::name("_UID", aml::integer(0)),
           aml::name("_CRS", aml::resources(
                                 {aml::bus_window(0, 0), aml::io_ports(kFirst, PciHost::kPorts),
                                  aml::io_window(0, kFirst - 1), aml::io_window(kAfter, 0xffff),
                                  aml::memory_window(PciHost::kWindow, PciHost::kWindowEnd - 1)})),
           aml::name("_PRT", pci_routing())}));
}

aml::Bytes serial_port() {
  return aml::device(
      "COM1",
      aml::join({aml::name("_HID", aml::eisa_id("PNP0501")), aml::name("_UID", aml::integer(1)),
                 aml::name("_CRS", aml::resources({aml::io_ports(Serial::kCom1, Serial::kPorts),
                                                   aml::isa_interrupt(Serial::kCom1Irq)}))}));
}

aml::Bytes mmio_devices(const std::vector<AcpiMmioDevice>& devices) {
  aml::Bytes all;
  for (std::size_t i = 0; i < devices.size(); ++i) {
    const AcpiMmioDevice& device = devices[i];
    const auto code = aml::device(
        fmt::format("VM{:02X}", i),
        aml::join({aml::name("_HID", aml::text("LNRO0005")), aml::name("_UID", aml::integer(i)),
                   aml::name("_CRS", aml::resources({aml::memory(device.base, device.size),
                                                     aml::edge_interrupt(device.gsi)}))}));
    all.insert(all.end(), code.begin(), code.end());
  }
  return all;
}

Table dsdt(const AcpiRequest& request) {
  Table table("DSDT", 2);
  // The values for the sleep type field of PM1a and PM1b control; the rest is reserved.
  table.append(aml::name("\\_S5_",
                         aml::package({aml::integer(Power::kSoftOff), aml::integer(Power::kSoftOff),
                                       aml::integer(0), aml::integer(0)})));
  table.append(aml::scope("\\_SB_", aml::join({cpu_devices(request.cpus), pci_host_bridge(),
                                               serial_port(), mmio_devices(request.mmio)})));
  return table;
}

Table madt(unsigned cpus) {
  Table table("APIC", 5);
  table.put(kLocalApicAddress);
  table.put(std::uint32_t{1});  // there are 8259s as well
  for (unsigned cpu = 0; cpu < cpus; ++cpu) {
    table.put(std::uint8_t{0});
    table.put(std::uint8_t{8});
    table.put(static_cast<std::uint8_t>(cpu));  // the processor device's _UID
    table.put(static_cast<std::uint8_t>(cpu));  // the APIC's id
    table.put(std::uint32_t{1});                // enabled
  }
  table.put(std::uint8_t{1});
  table.put(std::uint8_t{12});
  table.put(static_cast<std::uint8_t>(cpus));
  table.put(std::uint8_t{0});
  table.put(kIoApicAddress);
  table.put(std::uint32_t{0});  // its first interrupt
  // ISA interrupts come in at the pins of their numbers, the timer included, as KVM has it. Those
  // that are not ISA's, the SCI's and PCI's, are level-triggered and active high, because KVM does
  // not invert lines.
  for (unsigned irq = 0; irq < 16; ++irq) {
    if ((kLevelInterrupts >> irq & 1) == 0) continue;
    table.put(std::uint8_t{2});
    table.put(std::uint8_t{10});
    table.put(std::uint8_t{0});
    table.put(static_cast<std::uint8_t>(irq));
    table.put(std::uint32_t{irq});
    table.put(kLevelHigh);
  }
  // NMI at LINT1 of every processor.
  table.put(std::uint8_t{4});
  table.put(std::uint8_t{6});
  table.put(std::uint8_t{0xff});
  table.put(std::uint16_t{0});
  table.put(std::uint8_t{1});
  return table;
}

constexpr std::uint32_t kFadtFacs = 36, kFadtDsdt = 40, kFadtWideDsdt = 140;

// Section 5.2.9. FACS and DSDT are pointers, filled in by the caller.
Table fadt() {
  constexpr std::uint32_t kWbinvd = 1U << 0, kC1 = 1U << 2, kNoPowerButton = 1U << 4,
                          kNoSleepButton = 1U << 5, kNoRtcWake = 1U << 6, kResetRegister = 1U << 10;
  constexpr std::uint16_t kLegacyDevices = 1U << 0, kNoVga = 1U << 2;
  constexpr std::uint16_t kNoC2 = 101, kNoC3 = 1001;  // latencies that mean "not supported"
  Table table("FACP", 6);
  table.put(std::uint32_t{0});  // FACS
  table.put(std::uint32_t{0});  // DSDT
  table.zeroes(2);              // reserved, profile: unspecified
  table.put(std::uint16_t{kAcpiInterrupt});
  table.zeroes(8);  // no SMI command: always in ACPI mode
  table.put(std::uint32_t{Power::kEvents});
  table.put(std::uint32_t{0});
  table.put(std::uint32_t{Power::kControl});
  table.zeroes(20);  // PM1b control, PM2, timer, general events: none
  table.put(static_cast<std::uint8_t>(Power::kEventPorts));
  table.put(static_cast<std::uint8_t>(Power::kControlPorts));
  table.zeroes(6);  // lengths of those that are not there, C-state support
  table.put(kNoC2);
  table.put(kNoC3);
  table.zeroes(8);  // cache flush by size, duty cycle, RTC alarms
  table.put(Cmos::kCentury);
  table.put(std::uint16_t{kLegacyDevices | kNoVga});
  table.zeroes(1);
  table.put(
      std::uint32_t{kWbinvd | kC1 | kNoPowerButton | kNoSleepButton | kNoRtcWake | kResetRegister});
  table.port(PciHost::kResetPort, 8, kAccessByte);
  table.put(PciHost::kResetValue);
  table.zeroes(2);              // ARM flags
  table.put(std::uint8_t{4});   // minor version: 6.4
  table.put(std::uint64_t{0});  // FACS: the 32-bit pointer counts
  table.put(std::uint64_t{0});  // DSDT
  table.port(Power::kEvents, 8 * Power::kEventPorts, kAccessWord);
  table.zeroes(12);
  table.port(Power::kControl, 8 * Power::kControlPorts, kAccessWord);
  table.zeroes(5 * 12);      // PM1b control, PM2, timer, both general event blocks
  table.zeroes(2 * 12);      // sleep control and status: for machines without PM1
  table.text("PLATTER", 8);  // the hypervisor's vendor
  return table;
}

void pad(std::vector<std::byte>& bytes, std::size_t alignment) {
  bytes.resize((bytes.size() + alignment - 1) / alignment * alignment);
}

// Adds a table and its length and checksum; gives where it is.
std::uint32_t add_table(AcpiTables& all, Table table) {
  pad(all.tables, 16);
  const auto at = static_cast<std::uint32_t>(all.tables.size());
  const auto length = static_cast<std::uint32_t>(table.size());
  store_le(table.bytes().data() + 4, length);
  all.checksums.push_back({Block::kTables, at + 9, at, length});
  all.tables.insert(all.tables.end(), table.bytes().begin(), table.bytes().end());
  return at;
}

void add_pointer(AcpiTables& all, Block block, std::uint32_t offset, std::uint8_t size,
                 std::uint32_t target) {
  std::byte* place = (block == Block::kRoot ? all.root : all.tables).data() + offset;
  if (size == 8) {
    store_le(place, std::uint64_t{target});
  } else {
    store_le(place, target);
  }
  all.pointers.push_back({block, offset, size});
}

void put_name(Writer& writer, std::string_view name) {
  constexpr std::size_t kWidth = 56;
  writer.bytes(std::as_bytes(std::span(name)));
  writer.zeroes(kWidth - name.size());
}

const char* file_of(Block block) { return block == Block::kRoot ? kAcpiRootFile : kAcpiTablesFile; }

}  // namespace

AcpiTables acpi_tables(const AcpiRequest& request) {
  AcpiTables all;
  // FACS is first because it wants to lie at a multiple of 64.
  TableBytes facs;
  facs.text("FACS", 4);
  facs.put(std::uint32_t{kFacsSize});
  facs.zeroes(24);
  facs.put(std::uint8_t{2});  // version
  facs.zeroes(kFacsSize - facs.size());
  all.tables = std::move(facs).bytes();

  const std::uint32_t dsdt_at = add_table(all, dsdt(request));
  const std::uint32_t fadt_at = add_table(all, fadt());
  add_pointer(all, Block::kTables, fadt_at + kFadtFacs, 4, 0);
  add_pointer(all, Block::kTables, fadt_at + kFadtDsdt, 4, dsdt_at);
  add_pointer(all, Block::kTables, fadt_at + kFadtWideDsdt, 8, dsdt_at);
  const std::uint32_t madt_at = add_table(all, madt(request.cpus));

  Table xsdt("XSDT", 1);
  xsdt.zeroes(16);
  const std::uint32_t xsdt_at = add_table(all, std::move(xsdt));
  add_pointer(all, Block::kTables, xsdt_at + kHeaderSize, 8, fadt_at);
  add_pointer(all, Block::kTables, xsdt_at + kHeaderSize + 8, 8, madt_at);

  TableBytes root;
  root.text("RSD PTR ", 8);
  root.put(std::uint8_t{0});
  root.text("PLATTR", 6);
  root.put(std::uint8_t{2});   // revision
  root.put(std::uint32_t{0});  // no RSDT
  root.put(std::uint32_t{kRootSize});
  root.zeroes(kRootSize - root.size());
  all.root = std::move(root).bytes();
  add_pointer(all, Block::kRoot, 24, 8, xsdt_at);
  all.checksums.push_back({Block::kRoot, 8, 0, 20});
  all.checksums.push_back({Block::kRoot, 32, 0, kRootSize});
  return all;
}

void place_acpi_tables(AcpiTables& tables, std::uint64_t address) {
  const auto block = [&tables](Block which) -> std::vector<std::byte>& {
    return which == Block::kRoot ? tables.root : tables.tables;
  };
  for (const AcpiTables::Pointer& pointer : tables.pointers) {
    std::byte* place = block(pointer.block).data() + pointer.offset;
    if (pointer.size == 8) {
      store_le(place, load_le<std::uint64_t>(place) + address);
    } else {
      store_le(place, static_cast<std::uint32_t>(load_le<std::uint32_t>(place) + address));
    }
  }
  for (const AcpiTables::Checksum& checksum : tables.checksums) {
    std::vector<std::byte>& bytes = block(checksum.block);
    bytes[checksum.offset] = checksum_of(std::span(bytes).subspan(checksum.start, checksum.length));
  }
}

std::vector<std::byte> acpi_loader_script(const AcpiTables& tables) {
  constexpr std::size_t kEntry = 128;
  constexpr std::uint32_t kAllocate = 1, kAddPointer = 2, kAddChecksum = 3;
  constexpr std::uint8_t kHigh = 1, kFirstSegment = 2;
  std::vector<std::byte> script((2 + tables.pointers.size() + tables.checksums.size()) * kEntry);
  std::size_t count = 0;
  const auto entry = [&script, &count] {
    return Writer(std::span(script).subspan(count++ * kEntry, kEntry));
  };
  // The root pointer goes to the 0xf0000 segment, where it is looked for.
  for (const auto& [name, alignment, zone] :
       {std::tuple{kAcpiRootFile, 16U, kFirstSegment}, std::tuple{kAcpiTablesFile, 64U, kHigh}}) {
    Writer writer = entry();
    writer.le(kAllocate);
    put_name(writer, name);
    writer.le(std::uint32_t{alignment});
    writer.le(zone);
  }
  for (const AcpiTables::Pointer& pointer : tables.pointers) {
    Writer writer = entry();
    writer.le(kAddPointer);
    put_name(writer, file_of(pointer.block));
    put_name(writer, kAcpiTablesFile);
    writer.le(pointer.offset);
    writer.le(pointer.size);
  }
  for (const AcpiTables::Checksum& checksum : tables.checksums) {
    Writer writer = entry();
    writer.le(kAddChecksum);
    put_name(writer, file_of(checksum.block));
    writer.le(checksum.offset);
    writer.le(checksum.start);
    writer.le(checksum.length);
  }
  return script;
}

}  // namespace platter::run
