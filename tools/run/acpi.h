// Acpi: the tables (ACPI 6.4) by which an operating system learns of processors, interrupts, the
// PCI host bridge, the devices that no bus tells of, and of the ways to switch off and to reset.
//
// The tables are made once, with all pointers between them relative to their beginning. For a
// kernel that is booted directly they are placed here; firmware gets them through the firmware
// configuration device with a script (the "table loader") that says how to place them.
//
// Threads: pure functions.
// Errors: none.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "tools/run/pci_host.h"

namespace platter::run {

// Where the tables of a directly booted kernel are; it looks for the root pointer from 0xe0000 on.
inline constexpr std::uint64_t kAcpiRootAddress = 0xe0000;
inline constexpr std::uint64_t kAcpiTablesAddress = 0xe0040;
inline constexpr std::uint64_t kAcpiEnd = 0xf0000;
// The System Control Interrupt. Nothing raises it, but kernels claim it.
inline constexpr unsigned kAcpiInterrupt = 9;
// The ISA controllers' interrupts that are level-triggered here (bit n = IRQ n).
inline constexpr std::uint16_t kLevelInterrupts = PciHost::kInterruptMask | 1U << kAcpiInterrupt;

struct AcpiMmioDevice {
  std::uint32_t base = 0;
  std::uint32_t size = 0;  // bytes
  std::uint32_t gsi = 0;   // edge-triggered
};

struct AcpiRequest {
  unsigned cpus = 1;  // 1 to 254: local APIC ids 0 to cpus - 1, I/O APIC id `cpus`
  std::vector<AcpiMmioDevice> mmio;
};

struct AcpiTables {
  // One of the two blocks of bytes: the root pointer by itself, and all that it leads to.
  enum class Block : std::uint8_t { kRoot, kTables };
  // A little-endian address of `size` bytes at `offset` of `block`; it holds an offset into the
  // tables, to which their address is to be added.
  struct Pointer {
    Block block;
    std::uint32_t offset;
    std::uint8_t size;
  };
  // The byte at `offset` makes those of [start, start + length) add up to zero; it holds zero.
  struct Checksum {
    Block block;
    std::uint32_t offset;
    std::uint32_t start;
    std::uint32_t length;
  };
  std::vector<std::byte> root;    // to lie at a multiple of 16
  std::vector<std::byte> tables;  // to lie at a multiple of 64
  std::vector<Pointer> pointers;
  std::vector<Checksum> checksums;
};

AcpiTables acpi_tables(const AcpiRequest& request);
// Fills in pointers and checksums for tables that lie at `address`.
void place_acpi_tables(AcpiTables& tables, std::uint64_t address);

// The firmware files' names, and the script for the loader of the firmware (QEMU's
// "etc/table-loader" format, as in SeaBIOS's romfile_loader.h): it is for tables not yet placed.
inline constexpr const char* kAcpiRootFile = "etc/acpi/rsdp";
inline constexpr const char* kAcpiTablesFile = "etc/acpi/tables";
inline constexpr const char* kTableLoaderFile = "etc/table-loader";
std::vector<std::byte> acpi_loader_script(const AcpiTables& tables);

}  // namespace platter::run
