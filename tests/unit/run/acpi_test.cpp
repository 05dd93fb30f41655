// The ACPI tables: checksums, lengths and pointers, placed here and as the firmware's loader places
// them; what ACPICA's own tools make of them; the power management registers.
#include "tools/run/acpi.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <optional>
#include <set>
#include <string>

#include "block/base/bytes.h"
#include "tools/run/aml.h"
#include "tools/run/apic.h"
#include "tools/run/cmos.h"
#include "tools/run/pci_host.h"
#include "tools/run/power.h"
#include "unit/run/checksum.h"

namespace platter::run {
namespace {

using Bytes = std::vector<std::byte>;

std::string text_at(std::span<const std::byte> bytes, std::size_t offset, std::size_t length) {
  const auto part = bytes.subspan(offset, length);
  return {reinterpret_cast<const char*>(part.data()), part.size()};
}

AcpiRequest some_machine() {
  return {.cpus = 3, .mmio = {{0xd0000000, 0x200, 5}, {0xd0001000, 0x200, 6}}};
}

// Memory with tables in it, and how to walk them.
struct Memory64 {
  Bytes bytes = Bytes(1 << 20);
  void put(std::uint64_t address, const Bytes& content) {
    std::ranges::copy(content, bytes.begin() + static_cast<std::ptrdiff_t>(address));
  }
  std::span<const std::byte> table(std::uint64_t address) const {
    const auto all = std::span(bytes).subspan(address);
    return all.first(load_le<std::uint32_t>(all.data() + 4));
  }
};

// All tables by signature, found from the root pointer as an operating system finds them.
std::map<std::string, Bytes> walk(const Memory64& memory, std::uint64_t root_at) {
  std::map<std::string, Bytes> tables;
  const auto root = std::span(memory.bytes).subspan(root_at, 36);
  EXPECT_EQ(text_at(root, 0, 8), "RSD PTR ");
  EXPECT_EQ(sum(root.first(20)), 0U);
  EXPECT_EQ(sum(root), 0U);
  EXPECT_EQ(root[15], std::byte{2});
  EXPECT_EQ(load_le<std::uint32_t>(root.data() + 20), 36U);
  const auto add = [&](std::uint64_t address) {
    const auto table = memory.table(address);
    tables[text_at(table, 0, 4)] = Bytes(table.begin(), table.end());
  };
  const auto xsdt_at = load_le<std::uint64_t>(root.data() + 24);
  add(xsdt_at);
  const Bytes xsdt = tables["XSDT"];
  for (std::size_t at = 36; at + 8 <= xsdt.size(); at += 8) add(load_le<std::uint64_t>(&xsdt[at]));
  const Bytes fadt = tables["FACP"];
  EXPECT_EQ(fadt.size(), 276U);
  EXPECT_EQ(load_le<std::uint32_t>(&fadt[40]), load_le<std::uint64_t>(&fadt[140]));
  add(load_le<std::uint32_t>(&fadt[40]));
  const auto facs = load_le<std::uint32_t>(&fadt[36]);
  EXPECT_EQ(facs % 64, 0U);
  add(facs);
  for (const auto& [signature, table] : tables) {
    if (signature != "FACS") {
      EXPECT_EQ(sum(table), 0U) << signature;
    }
  }
  return tables;
}

void expect_complete(const std::map<std::string, Bytes>& tables) {
  std::set<std::string> names;
  for (const auto& [name, table] : tables) names.insert(name);
  EXPECT_EQ(names, (std::set<std::string>{"APIC", "DSDT", "FACP", "FACS", "XSDT"}));
}

TEST(Acpi, PlacedTablesAreFoundFromTheRootAndAddUp) {
  AcpiTables tables = acpi_tables(some_machine());
  place_acpi_tables(tables, kAcpiTablesAddress);
  EXPECT_EQ(kAcpiTablesAddress % 64, 0U);
  EXPECT_LE(tables.root.size(), kAcpiTablesAddress - kAcpiRootAddress);
  Memory64 memory;
  memory.put(kAcpiRootAddress, tables.root);
  memory.put(kAcpiTablesAddress, tables.tables);
  const auto found = walk(memory, kAcpiRootAddress);
  expect_complete(found);

  const Bytes& fadt = found.at("FACP");
  EXPECT_EQ(load_le<std::uint16_t>(&fadt[46]), kAcpiInterrupt);
  EXPECT_EQ(load_le<std::uint32_t>(&fadt[48]), 0U) << "ACPI mode from the start";
  EXPECT_EQ(load_le<std::uint32_t>(&fadt[56]), Power::kEvents);
  EXPECT_EQ(load_le<std::uint32_t>(&fadt[64]), Power::kControl);
  EXPECT_EQ(fadt[88], std::byte{Power::kEventPorts});
  EXPECT_EQ(fadt[89], std::byte{Power::kControlPorts});
  const auto flags = load_le<std::uint32_t>(&fadt[112]);
  EXPECT_NE(flags & (1U << 10), 0U) << "there is a reset register";
  EXPECT_EQ(flags & (1U << 20), 0U) << "not hardware-reduced";
  // Generic addresses: a port, so many bits, from bit 0.
  const auto port = [&fadt](std::size_t at) {
    EXPECT_EQ(fadt[at], std::byte{1});
    EXPECT_EQ(fadt[at + 2], std::byte{0});
    return std::pair{load_le<std::uint64_t>(&fadt[at + 4]),
                     std::to_integer<unsigned>(fadt[at + 1])};
  };
  EXPECT_EQ(port(116), (std::pair{std::uint64_t{0xcf9}, 8U}));
  EXPECT_EQ(fadt[128], std::byte{6});
  EXPECT_EQ(port(148), (std::pair{std::uint64_t{Power::kEvents}, 32U}));
  EXPECT_EQ(port(172), (std::pair{std::uint64_t{Power::kControl}, 16U}));

  EXPECT_EQ(fadt[108], std::byte{Cmos::kCentury});

  unsigned processors = 0, io_apics = 0, levels = 0;
  const Bytes& madt = found.at("APIC");
  std::size_t at = 44;
  for (; at < madt.size(); at += std::to_integer<std::size_t>(madt[at + 1])) {
    if (madt[at] == std::byte{0}) {
      EXPECT_EQ(madt[at + 3], std::byte(processors));
      EXPECT_EQ(load_le<std::uint32_t>(&madt[at + 4]), 1U) << "enabled";
      ++processors;
    }
    if (madt[at] == std::byte{1}) ++io_apics;
    if (madt[at] == std::byte{2}) {
      const auto irq = std::to_integer<unsigned>(madt[at + 3]);
      EXPECT_EQ(load_le<std::uint32_t>(&madt[at + 4]), irq) << "KVM's pin";
      EXPECT_EQ(load_le<std::uint16_t>(&madt[at + 8]), kLevelHigh);
      levels |= 1U << irq;
    }
    ASSERT_NE(madt[at + 1], std::byte{0});
  }
  EXPECT_EQ(at, madt.size());
  EXPECT_EQ(processors, 3U);
  EXPECT_EQ(io_apics, 1U);
  EXPECT_EQ(levels, kLevelInterrupts) << "as the controllers are set";
}

TEST(Acpi, TablesOfTheLargestMachineFit) {
  AcpiRequest request{.cpus = 64, .mmio = {}};
  for (std::uint32_t i = 0; i < 8; ++i) request.mmio.push_back({0xd0000000 + i * 0x1000, 0x200, i});
  EXPECT_LE(acpi_tables(request).tables.size(), kAcpiEnd - kAcpiTablesAddress);
}

// What a firmware does with the script, and nothing else.
struct Loader {
  const AcpiTables& tables;
  Memory64 memory;
  std::map<std::string, std::uint64_t> where;

  void run(const Bytes& script) {
    ASSERT_EQ(script.size() % 128, 0U);
    std::uint64_t next = 0x1000;
    for (std::size_t at = 0; at < script.size(); at += 128) {
      const auto entry = std::span(script).subspan(at, 128);
      const auto file = [&entry](std::size_t offset) {
        return std::string(text_at(entry, offset, 56).c_str());
      };
      switch (load_le<std::uint32_t>(entry.data())) {
        case 1: {  // allocate
          const auto alignment = load_le<std::uint32_t>(entry.data() + 60);
          const bool root = file(4) == kAcpiRootFile;
          EXPECT_EQ(entry[64], std::byte{root ? std::uint8_t{2} : std::uint8_t{1}}) << "zone";
          next = (next + alignment - 1) / alignment * alignment;
          where[file(4)] = next;
          const Bytes& content = root ? tables.root : tables.tables;
          memory.put(next, content);
          next += content.size();
          break;
        }
        case 2: {  // add a pointer
          std::byte* place =
              memory.bytes.data() + where.at(file(4)) + load_le<std::uint32_t>(entry.data() + 116);
          const auto size = std::to_integer<unsigned>(entry[120]);
          ASSERT_TRUE(size == 4 || size == 8);
          if (size == 8) {
            store_le(place, load_le<std::uint64_t>(place) + where.at(file(60)));
          } else {
            store_le(place, static_cast<std::uint32_t>(load_le<std::uint32_t>(place) +
                                                       where.at(file(60))));
          }
          break;
        }
        case 3: {  // add a checksum
          const std::uint64_t base = where.at(file(4));
          std::byte& place = memory.bytes[base + load_le<std::uint32_t>(entry.data() + 60)];
          const unsigned total = sum(std::span(memory.bytes)
                                         .subspan(base + load_le<std::uint32_t>(entry.data() + 64),
                                                  load_le<std::uint32_t>(entry.data() + 68)));
          place = static_cast<std::byte>(std::to_integer<unsigned>(place) - total);
          break;
        }
        default:
          FAIL() << "an unknown command at " << at;
      }
    }
  }
};

TEST(Acpi, TheFirmwaresLoaderGetsTheSameTables) {
  const AcpiTables tables = acpi_tables(some_machine());
  Loader loader{tables, {}, {}};
  loader.run(acpi_loader_script(tables));
  ASSERT_TRUE(loader.where.contains(kAcpiRootFile));
  expect_complete(walk(loader.memory, loader.where.at(kAcpiRootFile)));
}

TEST(Aml, LengthsOfEverySize) {
  // One, two and three bytes of length; what follows the opcode counts, the length included.
  EXPECT_EQ(aml::buffer(Bytes(10)).size(), 1U + 1 + 2 + 10);
  const Bytes middle = aml::buffer(Bytes(100));
  EXPECT_EQ(middle[1], std::byte{0x40 | (104 & 0xf)});
  EXPECT_EQ(middle[2], std::byte{104 >> 4});
  EXPECT_EQ(middle.size(), 105U);
  const Bytes large = aml::buffer(Bytes(0x10000));
  EXPECT_EQ(std::to_integer<unsigned>(large[1]) >> 6, 2U);
  EXPECT_EQ((std::to_integer<unsigned>(large[1]) & 0xf) | std::to_integer<unsigned>(large[2]) << 4 |
                std::to_integer<unsigned>(large[3]) << 12,
            large.size() - 1);
  EXPECT_EQ(aml::eisa_id("PNP0A03"), (Bytes{std::byte{0x0c}, std::byte{0x41}, std::byte{0xd0},
                                            std::byte{0x0a}, std::byte{0x03}}));
}

class AcpiPeers : public testing::Test {
 protected:
  void SetUp() override {
    for (const char* tool : {"iasl", "acpiexec"}) {
      if (std::system((std::string("command -v ") + tool + " >/dev/null 2>&1").c_str()) != 0) {
        GTEST_SKIP() << "this machine has no " << tool << " (package acpica-tools)";
      }
    }
    std::string name = testing::TempDir() + "platter-acpi-XXXXXX";
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    directory_ = name;
    AcpiTables tables = acpi_tables(some_machine());
    place_acpi_tables(tables, kAcpiTablesAddress);
    Memory64 memory;
    memory.put(kAcpiRootAddress, tables.root);
    memory.put(kAcpiTablesAddress, tables.tables);
    for (const auto& [signature, table] : walk(memory, kAcpiRootAddress)) {
      std::ofstream file(directory_ / (signature + ".dat"), std::ios::binary);
      file.write(reinterpret_cast<const char*>(table.data()),
                 static_cast<std::streamsize>(table.size()));
      names_ += " " + signature + ".dat";
    }
  }
  void TearDown() override {
    if (!directory_.empty()) std::filesystem::remove_all(directory_);
  }
  // Both outputs of a command that is run where the tables are.
  std::string run(const std::string& command) {
    const std::string line = "cd '" + directory_.string() + "' && " + command + " 2>&1";
    std::FILE* pipe = ::popen(line.c_str(), "r");
    EXPECT_NE(pipe, nullptr);
    std::string output;
    std::array<char, 4096> piece{};
    for (std::size_t got; (got = std::fread(piece.data(), 1, piece.size(), pipe)) > 0;) {
      output.append(piece.data(), got);
    }
    EXPECT_EQ(::pclose(pipe), 0) << command << "\n" << output;
    return output;
  }

  std::filesystem::path directory_;
  std::string names_;
};

bool has(const std::string& text, std::string_view part) {
  return text.find(part) != std::string::npos;
}

// Read, written as source, and compiled again without a word: the same bytes come out.
TEST_F(AcpiPeers, TheCompilerFindsNothingToSay) {
  const std::string read = run("iasl -d" + names_);
  EXPECT_FALSE(has(read, "Warning")) << read;
  EXPECT_FALSE(has(read, "Error")) << read;
  EXPECT_FALSE(has(read, "Invalid")) << read;
  for (const char* table : {"DSDT", "FACP", "APIC", "XSDT", "FACS"}) {
    const std::string compiled = run(std::string("iasl -p again ") + table + ".dsl");
    EXPECT_TRUE(has(compiled, "Compilation successful. 0 Errors, 0 Warnings")) << compiled;
  }
}

TEST_F(AcpiPeers, TheInterpreterFindsSoftOffRoutingAndResources) {
  const std::string said =
      run("acpiexec -b 'evaluate \\_S5; evaluate \\_SB.PCI0._PRT; resources \\_SB.PCI0; "
          "resources \\_SB.VM01; resources \\_SB.COM1; namespace' DSDT.dat");
  for (const char* part : {"Contains 4 Elements", "Contains 124 Elements",  // soft-off, routing
                           "E0000000", "FEBFFFFF", "D0001000",              // windows, a disk
                           "C000", "C002", "PCI0", "COM1", "VM00", "VM01"}) {
    EXPECT_TRUE(has(said, part)) << part << "\n" << said;
  }
  for (const char* part :
       {"Error", "AE_AML", "AcpiGetCurrentResources failed", "AcpiGetIrqRoutingTable failed"}) {
    EXPECT_FALSE(has(said, part)) << part << "\n" << said;
  }
}

struct PowerTest : testing::Test {
  std::uint16_t in(std::uint64_t offset) {
    std::array<std::byte, 2> raw{};
    power.read(offset, raw);
    return load_le<std::uint16_t>(raw.data());
  }
  void out(std::uint64_t offset, std::uint16_t value) {
    std::array<std::byte, 2> raw{};
    store_le(raw.data(), value);
    power.write(offset, raw);
  }
  std::unique_ptr<Control> control = std::move(*Control::create());
  Power power{*control};
};

TEST_F(PowerTest, RegistersReadAsAnOperatingSystemExpects) {
  EXPECT_EQ(in(4), 1U) << "ACPI mode";
  out(0, 0xffff);
  EXPECT_EQ(in(0), 0U) << "no event";
  out(2, 0x0020);
  EXPECT_EQ(in(2), 0x0020U) << "enable bits are kept";
  out(4, 0x0c06);
  EXPECT_EQ(in(4), 0x0c03U) << "the lock's release is no state";
  EXPECT_FALSE(control->ended());
}

TEST_F(PowerTest, AByteIsReadInAcpiModeToo) {
  const std::array<std::byte, 1> none{};
  power.write(4, none);
  std::array<std::byte, 1> low{};
  power.read(4, low);
  EXPECT_EQ(low[0], std::byte{1});
}

TEST_F(PowerTest, OnlySoftOffSwitchesOff) {
  out(4, 5 << 10 | 1 << 13);
  EXPECT_FALSE(control->ended()) << "a sleep that is not offered";
  EXPECT_EQ(in(4), 5U << 10 | 1) << "sleep enable reads as zero";
  out(4, Power::kSoftOff << 10);
  EXPECT_FALSE(control->ended());
  out(4, Power::kSoftOff << 10 | 1 << 13);
  EXPECT_EQ(control->reason(), EndReason::kPowerOff);
}

TEST_F(PowerTest, AByteIsEnough) {
  const std::array<std::byte, 1> high{std::byte{0x20}};
  power.write(5, high);
  EXPECT_EQ(control->reason(), EndReason::kPowerOff);
}

}  // namespace
}  // namespace platter::run
