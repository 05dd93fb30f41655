#include "tools/run/probe.h"

#include <array>
#include <chrono>

#include "block/base/bytes.h"
#include "tools/run/boot.h"
#include "tools/run/bus.h"
#include "tools/run/control.h"
#include "tools/run/cpuid.h"
#include "tools/run/vcpu.h"
#include "tools/run/vm.h"

namespace platter::run {
namespace {

constexpr std::uint64_t kCodeAddress = 0x10000;
constexpr std::uint64_t kProbeMemory = 2 * kMiB;
// Emulators reach less than a million a second, the slowest processors some hundred million.
constexpr double kHardwareSpeed = 20e6;
constexpr std::uint32_t kShortLoop = 2000, kLongLoop = 20'000'000;

// Seconds for `rounds` of a loop of two instructions, from the start of the loop to the HLT.
Result<double> time_loop(Vm& vm, const Memory& memory, unsigned cpu, std::uint32_t rounds) {
  // mov ecx, rounds; 1: dec ecx; jnz 1b; hlt
  std::array<std::byte, 10> code{std::byte{0xb9},
                                 {},
                                 {},
                                 {},
                                 {},
                                 std::byte{0xff},
                                 std::byte{0xc9},
                                 std::byte{0x75},
                                 std::byte{0xfc},
                                 std::byte{0xf4}};
  store_le(code.data() + 1, rounds);
  auto written = memory.write(kCodeAddress, code);
  PLATTER_TRY(written);
  const Bus nothing_ports, nothing_memory;
  auto control = Control::create();
  PLATTER_TRY(control);
  auto vcpu = Vcpu::create(vm, memory, cpu, {nothing_ports, nothing_memory}, **control);
  PLATTER_TRY(vcpu);
  auto entered = (*vcpu)->set_entry({EntryState::Mode::kLong, kCodeAddress, 0, 0});
  PLATTER_TRY(entered);
  const auto start = std::chrono::steady_clock::now();
  auto reason = (*vcpu)->run_once();
  const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
  PLATTER_TRY(reason);
  if (*reason != KVM_EXIT_HLT) {
    return fail(EIO, "KVM cannot run even a loop (exit reason {})", *reason);
  }
  return time.count();
}

}  // namespace

ProbeResult judge_speed(double instructions_per_second) {
  return {instructions_per_second, instructions_per_second >= kHardwareSpeed};
}

Result<ProbeResult> probe_kvm() {
  Memory memory;
  auto added = memory.add_ram(kProbeMemory);
  PLATTER_TRY(added);
  auto prepared = prepare_long_mode(memory);
  PLATTER_TRY(prepared);
  auto vm = Vm::create(false);  // without interrupt controllers HLT comes back to us
  PLATTER_TRY(vm);
  auto mapped = (*vm)->map(memory);
  PLATTER_TRY(mapped);
  // The short loop is over in no time on hardware and in some milliseconds elsewhere; only where it
  // was quick is there time for one that gives a figure.
  auto seconds = time_loop(**vm, memory, 0, kShortLoop);
  PLATTER_TRY(seconds);
  const double estimate = 2.0 * kShortLoop / *seconds;
  if (estimate < 2e6) return judge_speed(estimate);
  seconds = time_loop(**vm, memory, 1, kLongLoop);
  PLATTER_TRY(seconds);
  return judge_speed(2.0 * kLongLoop / *seconds);
}

}  // namespace platter::run
