// The small devices and tables: serial port, console escapes, power and reset ports, processor
// features, MultiProcessor table, PCI host.
#include <gtest/gtest.h>

#include <array>
#include <future>
#include <string>
#include <thread>
#include <vector>

#include "block/base/bytes.h"
#include "tools/run/acpi.h"
#include "tools/run/apic.h"
#include "tools/run/console.h"
#include "tools/run/cpuid.h"
#include "tools/run/mptable.h"
#include "tools/run/pci_host.h"
#include "tools/run/ports.h"
#include "tools/run/power.h"
#include "tools/run/probe.h"
#include "tools/run/serial.h"
#include "tools/run/vm.h"
#include "unit/run/checksum.h"

namespace platter::run {
namespace {

std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text));
}

struct SerialTest : ::testing::Test {
  std::uint8_t in(unsigned index) {
    std::array<std::byte, 1> data{};
    serial.read(index, data);
    return std::to_integer<std::uint8_t>(data[0]);
  }
  void out(unsigned index, std::uint8_t value) {
    const std::array<std::byte, 1> data{std::byte{value}};
    serial.write(index, data);
  }
  std::string sent;
  std::vector<bool> line;
  Serial serial{[this](std::byte b) { sent += static_cast<char>(b); },
                [this](bool level) { line.push_back(level); }};
};

TEST_F(SerialTest, SendsAndReceives) {
  out(0, 'h');
  out(0, 'i');
  EXPECT_EQ(sent, "hi");
  EXPECT_EQ(in(5) & 1, 0);
  EXPECT_EQ(serial.receive(bytes_of("ab")), 2U);
  EXPECT_EQ(in(5) & 1, 1);
  EXPECT_EQ(in(0), 'a');
  EXPECT_EQ(in(0), 'b');
  EXPECT_EQ(in(5), 0x60) << "empty both ways";
}

TEST_F(SerialTest, InterruptsNeedEnablingAndOut2) {
  serial.receive(bytes_of("x"));
  EXPECT_TRUE(line.empty());
  out(1, 1);
  EXPECT_TRUE(line.empty()) << "OUT2 gates it";
  out(4, 8);
  EXPECT_EQ(line, std::vector{true});
  EXPECT_EQ(in(2) & 0x0f, 4) << "data is there";
  in(0);
  EXPECT_EQ(line, (std::vector{true, false}));
  EXPECT_EQ(in(2) & 0x0f, 1) << "nothing pending";
  out(1, 2);
  EXPECT_EQ(in(2) & 0x0f, 2) << "transmitter empty";
  EXPECT_EQ(in(2) & 0x0f, 1) << "reading it acknowledged it";
  EXPECT_EQ(line, (std::vector{true, false, true, false}));
}

TEST_F(SerialTest, DivisorScratchAndLoopback) {
  out(3, 0x83);
  out(0, 0x34);
  out(1, 0x12);
  EXPECT_EQ(in(0), 0x34);
  EXPECT_EQ(in(1), 0x12);
  out(3, 0x03);
  EXPECT_EQ(in(1), 0);
  out(7, 0x5a);
  EXPECT_EQ(in(7), 0x5a);
  out(4, 0x1a);  // loop-back with RTS and OUT2
  EXPECT_EQ(in(6) & 0xf0, 0x90) << "as CTS and carrier";
  out(0, 'l');
  EXPECT_EQ(in(0), 'l');
  EXPECT_EQ(sent, "");
}

TEST_F(SerialTest, InputIsBounded) {
  const std::vector<std::byte> much(Serial::kMaxPending + 10);
  EXPECT_EQ(serial.room(), Serial::kMaxPending);
  EXPECT_EQ(serial.receive(much), Serial::kMaxPending);
  EXPECT_EQ(serial.room(), 0U);
  EXPECT_EQ(serial.receive(much), 0U);
}

// Who brings input must not wait for a reader that does not read.
TEST(Serial, InputIsTakenWhileTheSinkBlocks) {
  std::promise<void> entered, released;
  Serial serial(
      [&](std::byte) {
        entered.set_value();
        released.get_future().wait();
      },
      [](bool) {});
  std::thread sender([&serial] {
    const std::array<std::byte, 1> data{std::byte{'x'}};
    serial.write(0, data);
  });
  entered.get_future().wait();
  EXPECT_EQ(serial.receive(bytes_of("in")), 2U);
  released.set_value();
  sender.join();
}

std::string text_of(const Typed& typed) {
  std::string text;
  for (std::byte b : typed.for_guest) text += static_cast<char>(b);
  return text;
}

TEST(EscapeFilter, ControlAIsAPrefix) {
  EscapeFilter filter;
  EXPECT_EQ(text_of(filter.filter(bytes_of("ab"))), "ab");
  EXPECT_EQ(text_of(filter.filter(bytes_of("\x01"))), "");
  EXPECT_EQ(text_of(filter.filter(bytes_of("\x01"))), "\x01") << "across calls";
  EXPECT_EQ(text_of(filter.filter(bytes_of("\x01"
                                           "q"))),
            "\x01"
            "q");
  const Typed typed = filter.filter(bytes_of("c\x01xd"));
  EXPECT_TRUE(typed.quit);
  EXPECT_EQ(text_of(typed), "c");
}

struct PortsTest : ::testing::Test {
  void SetUp() override {
    control = std::move(*Control::create());
    ASSERT_TRUE(
        add_legacy_ports(ports, *control, [this](std::byte b) { debug += static_cast<char>(b); }));
  }
  void out(std::uint64_t port, std::vector<std::byte> data) { ports.write(port, data); }
  std::unique_ptr<Control> control;
  Bus ports;
  std::string debug;
};

TEST_F(PortsTest, PowerOffNeedsSleepEnable) {
  out(Power::kControl, {std::byte{1}, std::byte{0}});
  EXPECT_FALSE(control->ended());
  out(Power::kControl, {std::byte{0}, std::byte{0x20}});
  EXPECT_EQ(control->reason(), EndReason::kPowerOff);
}

TEST_F(PortsTest, BochsShutdownSpellsAWord) {
  for (char c : std::string_view("ShutShutdow")) out(kBochsShutdown, {static_cast<std::byte>(c)});
  EXPECT_FALSE(control->ended());
  out(kBochsShutdown, {std::byte{'n'}});
  EXPECT_EQ(control->reason(), EndReason::kPowerOff);
}

TEST_F(PortsTest, KeyboardControllerResets) {
  std::array<std::byte, 1> status{};
  ports.read(kKeyboardCommand, status);
  EXPECT_EQ(status[0] & std::byte{2}, std::byte{0}) << "ready for a command, so nobody waits";
  out(kKeyboardCommand, {std::byte{0xaa}});
  EXPECT_FALSE(control->ended());
  out(kKeyboardCommand, {std::byte{0xfe}});
  EXPECT_EQ(control->reason(), EndReason::kReset);
  control->end(EndReason::kFailure, "later");
  EXPECT_EQ(control->reason(), EndReason::kReset) << "the first reason counts";
}

TEST_F(PortsTest, DebugPortIsSeenAndHeard) {
  std::array<std::byte, 1> value{};
  ports.read(kDebugPort, value);
  EXPECT_EQ(value[0], std::byte{0xe9});
  out(kDebugPort, {std::byte{'d'}});
  EXPECT_EQ(debug, "d");
}

std::vector<kvm_cpuid_entry2> supported() {
  std::vector<kvm_cpuid_entry2> table;
  for (std::uint32_t function : {0U, 1U, 4U, 7U, 0xbU, 0xdU, 0x40000001U, 0x80000001U}) {
    kvm_cpuid_entry2 entry{};
    entry.function = function;
    if (function == 0) entry.eax = 0x1c;
    if (function == 1) entry.ecx = (1U << 13) | (1U << 3) | (1U << 26);
    table.push_back(entry);
  }
  return table;
}
const kvm_cpuid_entry2* find(const std::vector<kvm_cpuid_entry2>& table, std::uint32_t function) {
  for (const auto& entry : table) {
    if (entry.function == function) return &entry;
  }
  return nullptr;
}

TEST(Cpuid, BasicHidesWhatAnEmulatorCannotCarry) {
  const auto table = guest_cpuid(supported(), {CpuModel::kBasic, 1, 2, true});
  EXPECT_EQ(find(table, 0)->eax, 1U);
  EXPECT_EQ(find(table, 7), nullptr);
  EXPECT_EQ(find(table, 0xd), nullptr);
  ASSERT_NE(find(table, 0x40000001), nullptr) << "kvmclock stays";
  const auto* one = find(table, 1);
  EXPECT_EQ(one->ebx >> 16, 0x0102U) << "APIC id 1 of 2";
  EXPECT_EQ(one->ecx & (1U << 13), 0U);
  EXPECT_NE(one->ecx & (1U << 24), 0U) << "TSC deadline";
  EXPECT_NE(one->ecx & (1U << 31), 0U) << "hypervisor";
}

TEST(Cpuid, HostKeepsItsLeaves) {
  const auto table = guest_cpuid(supported(), {CpuModel::kHost, 0, 1, false});
  EXPECT_EQ(find(table, 0)->eax, 0x1cU);
  EXPECT_NE(find(table, 7), nullptr);
  EXPECT_NE(find(table, 1)->ecx & (1U << 13), 0U);
  EXPECT_EQ(find(table, 1)->ecx & (1U << 3), 0U) << "MONITOR is not offered";
}

TEST(MpTable, AddsUpAndCountsItsEntries) {
  const auto pointer = mp_floating_pointer(0xf0000);
  ASSERT_EQ(pointer.size(), 16U);
  EXPECT_EQ(sum(pointer), 0U);
  EXPECT_EQ(load_le<std::uint32_t>(pointer.data() + 4), 0xf0000U);

  const auto table = mp_table(3, {{1, 0, 10}, {2, 0, 10}});
  EXPECT_EQ(sum(table), 0U);
  EXPECT_EQ(load_le<std::uint16_t>(table.data() + 4), table.size());
  unsigned entries = 0, processors = 0, to_pin_10 = 0;
  for (std::size_t at = 44; at < table.size(); ++entries) {
    const auto type = std::to_integer<unsigned>(table[at]);
    if (type == 0) ++processors;
    if (type == 3) {
      const auto pin = std::to_integer<unsigned>(table[at + 7]);
      if (pin == 10) ++to_pin_10;
      EXPECT_EQ(load_le<std::uint16_t>(&table[at + 2]),
                (kLevelInterrupts >> pin & 1) != 0 ? kLevelHigh : kConforms)
          << "pin " << pin << " as the controllers and the MADT have it";
    }
    at += type == 0 ? 20 : 8;
  }
  EXPECT_EQ(entries, load_le<std::uint16_t>(table.data() + 34));
  EXPECT_EQ(processors, 3U);
  EXPECT_EQ(to_pin_10, 2U) << "the two PCI interrupts and no ISA one";
}

class FakeFunction final : public virtio::PciFunction {
 public:
  explicit FakeFunction(std::uint32_t bar_size)
      : PciFunction({.vendor = 0x1af4, .device = 0x1042, .interrupt_pin = 1}) {
    add_memory_bar(0, bar_size);
  }
  void read_bar(unsigned, std::uint64_t offset, std::span<std::byte> data) override {
    for (std::byte& byte : data) byte = static_cast<std::byte>(offset);
  }
  void write_bar(unsigned, std::uint64_t, std::span<const std::byte>) override {}

 private:
  void before_config_read(unsigned, unsigned) override {}
  void after_config_write(unsigned, unsigned) override {}
  void bar_changed(unsigned, bool, std::uint64_t) override {}
};

struct PciTest : ::testing::Test {
  std::uint32_t config(unsigned slot, unsigned offset) {
    std::array<std::byte, 4> raw;
    store_le(raw.data(), 0x80000000U | slot << 11 | offset);
    host->write(0, raw);
    host->read(4, raw);
    return load_le<std::uint32_t>(raw.data());
  }
  std::unique_ptr<Control> control = std::move(*Control::create());
  Bus memory;
  std::unique_ptr<PciHost> host = std::make_unique<PciHost>(memory, *control);
};

TEST_F(PciTest, BridgeFunctionsAndEmptySlots) {
  FakeFunction function(0x1000);
  EXPECT_EQ(host->next_slot(), 1U);
  EXPECT_EQ(*host->plug(function), 1U);
  EXPECT_EQ(config(0, 0), 0x12378086U);
  EXPECT_EQ(config(1, 0), 0x10421af4U);
  EXPECT_EQ(config(2, 0), 0xffffffffU);
  EXPECT_EQ(config(0x20 | 1, 0), 0xffffffffU) << "another bus";
  std::array<std::byte, 4> raw;
  store_le(raw.data(), std::uint32_t{0});
  host->write(0, raw);
  host->read(4, raw);
  EXPECT_EQ(load_le<std::uint32_t>(raw.data()), 0xffffffffU) << "not enabled";
  std::array<std::byte, 2> odd{};
  config(1, 0);
  host->read(5, odd);
  EXPECT_EQ(odd[0], std::byte{0xff}) << "not aligned";
  host.reset();
}

TEST_F(PciTest, AssignedBarsAreOnTheBusAndMove) {
  FakeFunction small(0x1000), large(0x100000);
  ASSERT_TRUE(host->plug(small));
  ASSERT_TRUE(host->plug(large));
  ASSERT_TRUE(host->assign_resources());
  EXPECT_EQ(config(1, 0x10) & ~0xfU, PciHost::kWindow);
  EXPECT_EQ(config(2, 0x10) & ~0xfU, PciHost::kWindow + 0x100000) << "aligned to its size";
  EXPECT_EQ(config(1, 0x3c) & 0xff, PciHost::interrupt_of(1));
  std::array<std::byte, 1> data{};
  EXPECT_TRUE(memory.read(PciHost::kWindow + 0x42, data));
  EXPECT_EQ(data[0], std::byte{0x42});
  large.write_config(0x10, 4, 0xf0000000);
  EXPECT_FALSE(memory.read(PciHost::kWindow + 0x100000, data));
  EXPECT_TRUE(memory.read(0xf0000000 + 1, data));
  large.write_config(0x10, 4, PciHost::kWindow);
  EXPECT_TRUE(memory.read(PciHost::kWindow + 0x42, data)) << "the one that was there stays";
  host.reset();
}

TEST_F(PciTest, BarsThatChangePlacesAreBothThere) {
  FakeFunction first(0x1000), second(0x1000);
  ASSERT_TRUE(host->plug(first));
  ASSERT_TRUE(host->plug(second));
  ASSERT_TRUE(host->assign_resources());
  first.write_config(0x10, 4, PciHost::kWindow + 0x1000);
  std::array<std::byte, 1> data{};
  EXPECT_FALSE(memory.read(PciHost::kWindow + 0x42, data));
  second.write_config(0x10, 4, PciHost::kWindow);
  for (const unsigned place : {0U, 0x1000U}) {
    data[0] = {};
    EXPECT_TRUE(memory.read(PciHost::kWindow + place + 0x42, data)) << place;
    EXPECT_EQ(data[0], std::byte{0x42});
  }
  // Each goes with its own function.
  first.write_config(0x04, 2, 0);
  EXPECT_FALSE(memory.read(PciHost::kWindow + 0x1042, data));
  EXPECT_TRUE(memory.read(PciHost::kWindow + 0x42, data));
  host.reset();
}

TEST_F(PciTest, WindowAndSlotsEnd) {
  FakeFunction huge(0x20000000);
  ASSERT_TRUE(host->plug(huge));
  EXPECT_EQ(host->assign_resources().error().code(), ENOSPC);
  std::vector<std::unique_ptr<FakeFunction>> rest;
  while (host->next_slot() < PciHost::kSlots) {
    rest.push_back(std::make_unique<FakeFunction>(0x1000));
    ASSERT_TRUE(host->plug(*rest.back()));
  }
  EXPECT_EQ(host->plug(huge).error().code(), ENOSPC);
  EXPECT_EQ(host->plug(huge).error().message(), "more than 31 virtio-pci disks");
  host.reset();
}

TEST_F(PciTest, ResetControlRegister) {
  const std::array<std::byte, 1> value{std::byte{6}};
  host->write(1, value);
  EXPECT_EQ(control->reason(), EndReason::kReset);
}

TEST(Capabilities, OnlyNeededOnesAreMissed) {
  const std::vector<Capability> table{{1, "one", true}, {2, "two", true}, {3, "three", false}};
  EXPECT_TRUE(missing_capabilities(table, [](unsigned) { return 1; }).empty());
  const auto missing = missing_capabilities(table, [](unsigned n) { return n == 1 ? 1 : 0; });
  ASSERT_EQ(missing.size(), 1U);
  EXPECT_STREQ(missing[0], "two");
}

TEST(Vm, AMissingDeviceIsSaidPlainly) {
  const auto vm = Vm::create(true, "/nonexistent/kvm");
  ASSERT_FALSE(vm);
  EXPECT_EQ(vm.error().message(),
            "could not open '/nonexistent/kvm': No such file or directory (does this machine offer "
            "virtualisation, and is the kvm module loaded?)");
  const auto other = Vm::create(true, "/dev/null");
  ASSERT_FALSE(other);
  EXPECT_NE(other.error().message().find("'/dev/null' is not a KVM device"), std::string::npos);
}

TEST(Probe, TellsEmulatorsFromProcessors) {
  EXPECT_FALSE(judge_speed(1.1e6).hardware);
  EXPECT_TRUE(judge_speed(500e6).hardware);
}

}  // namespace
}  // namespace platter::run
