#include "tools/run/vcpu.h"

#include <fmt/format.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <mutex>
#include <system_error>

#include "tools/run/kernel_table.h"

namespace platter::run {
namespace {

// The signal that takes a thread out of KVM_RUN. Its handler does nothing: arriving is enough.
int kick_signal() { return SIGRTMIN; }

void install_kick_handler() {
  static std::once_flag once;
  std::call_once(once, [] {
    struct sigaction action{};
    action.sa_handler = [](int) {};
    ::sigemptyset(&action.sa_mask);
    ::sigaction(kick_signal(), &action, nullptr);
  });
}

kvm_segment flat_segment(std::uint16_t selector, bool code, bool wide) {
  kvm_segment segment{};
  segment.limit = 0xffffffff;
  segment.selector = selector;
  segment.type = code ? 11 : 3;  // accessed; readable code or writable data
  segment.present = 1;
  segment.db = wide && code ? 0 : 1;
  segment.s = 1;
  segment.l = wide && code ? 1 : 0;
  segment.g = 1;
  return segment;
}

constexpr std::chrono::milliseconds kKickInterval{20};
constexpr std::uint64_t kCr0ProtectedMode = 0x11, kCr0Paging = 0x80000000;
constexpr std::uint64_t kCr4Pae = 0x20;
constexpr std::uint64_t kEferLongMode = 0x500;

}  // namespace

Result<std::unique_ptr<Vcpu>> Vcpu::create(Vm& vm, const Memory& memory, unsigned id, Buses buses,
                                           Control& control) {
  install_kick_handler();
  std::unique_ptr<Vcpu> vcpu(new Vcpu(memory, id, buses, control));
  auto fd = vm.create_vcpu(id);
  PLATTER_TRY(fd);
  vcpu->fd_ = std::move(*fd);
  void* area =
      ::mmap(nullptr, vm.run_size(), PROT_READ | PROT_WRITE, MAP_SHARED, vcpu->fd_.get(), 0);
  if (area == MAP_FAILED) return fail_errno(errno, "could not map virtual CPU {}", id);
  vcpu->run_ = static_cast<kvm_run*>(area);
  vcpu->run_size_ = vm.run_size();
  return vcpu;
}

Vcpu::~Vcpu() {
  if (run_ != nullptr) ::munmap(run_, run_size_);
}

Result<void> Vcpu::set_cpuid(std::span<const kvm_cpuid_entry2> table) {
  auto request = kernel_table(table);
  if (::ioctl(fd_.get(), kSetCpuid2, request.data()) < 0) {
    return fail_errno(errno, "could not set the features of virtual CPU {}", id_);
  }
  return {};
}

Result<void> Vcpu::set_entry(const EntryState& entry) {
  if (entry.mode == EntryState::Mode::kReset) return {};  // as KVM makes it
  kvm_sregs system{};
  if (::ioctl(fd_.get(), KVM_GET_SREGS, &system) < 0) return fail_errno(errno, "KVM_GET_SREGS");
  const bool wide = entry.mode == EntryState::Mode::kLong;
  system.cs = flat_segment(0x10, true, wide);
  system.ds = flat_segment(0x18, false, wide);
  system.es = system.fs = system.gs = system.ss = system.ds;
  system.gdt.base = kGdtAddress;
  system.gdt.limit = 0x1f;
  system.idt = {};
  system.cr0 = kCr0ProtectedMode;
  if (wide) {
    system.cr0 |= kCr0Paging;
    system.cr3 = kPageTableAddress;
    system.cr4 |= kCr4Pae;
    system.efer |= kEferLongMode;
  }
  if (::ioctl(fd_.get(), KVM_SET_SREGS, &system) < 0) {
    return fail_errno(errno, "could not set the start state of virtual CPU {}", id_);
  }
  kvm_regs registers{};
  registers.rflags = 2;
  registers.rip = entry.rip;
  registers.rbx = entry.rbx;
  registers.rsi = entry.rsi;
  if (::ioctl(fd_.get(), KVM_SET_REGS, &registers) < 0) {
    return fail_errno(errno, "could not set the registers of virtual CPU {}", id_);
  }
  return {};
}

Result<void> Vcpu::start() {
  try {
    thread_ = std::thread([this] { run(); });
  } catch (const std::system_error& error) {
    return fail_errno(error.code().value(), "could not start the thread of virtual CPU {}", id_);
  }
  return {};
}

void Vcpu::stop_all(std::span<const std::unique_ptr<Vcpu>> vcpus) {
  // A signal that comes before KVM_RUN is entered would be lost; this flag makes it return at once.
  for (const auto& vcpu : vcpus) {
    vcpu->has_left_ = !vcpu->thread_.joinable();
    __atomic_store_n(&vcpu->run_->immediate_exit, std::uint8_t{1}, __ATOMIC_SEQ_CST);
  }
  // One that comes just before a blocking write of console output is lost too, hence the
  // repetition; and that write may be what another processor waits for, at a mutex, which no signal
  // interrupts.
  for (bool all_left = false; !all_left;) {
    for (const auto& vcpu : vcpus) {
      if (!vcpu->has_left_) ::pthread_kill(vcpu->thread_.native_handle(), kick_signal());
    }
    const auto round_end = std::chrono::steady_clock::now() + kKickInterval;
    all_left = true;
    for (const auto& vcpu : vcpus) {
      if (!vcpu->has_left_) vcpu->has_left_ = vcpu->left_.try_acquire_until(round_end);
      all_left = all_left && vcpu->has_left_;
    }
  }
  for (const auto& vcpu : vcpus) {
    if (vcpu->thread_.joinable()) vcpu->thread_.join();
  }
}

Result<unsigned> Vcpu::run_once() {
  for (;;) {
    if (::ioctl(fd_.get(), KVM_RUN, 0) >= 0) return area().exit_reason;
    if (errno != EINTR && errno != EAGAIN) return fail_errno(errno, "KVM_RUN");
  }
}

void Vcpu::run() {
  run_loop();
  left_.release();
}

void Vcpu::run_loop() {
  while (!control_.ended()) {
    if (::ioctl(fd_.get(), KVM_RUN, 0) < 0) {
      // EAGAIN: a processor that was just started by another one; it only has to be tried again.
      if (errno == EINTR || errno == EAGAIN) continue;
      end_with_failure(fmt::format("KVM_RUN failed: {}", errno_text(errno)));
      return;
    }
    if (!serve_exit()) return;
  }
}

bool Vcpu::serve_exit() {
  switch (area().exit_reason) {
    case KVM_EXIT_IO:
      serve_port_access();
      return true;
    case KVM_EXIT_MMIO:
      serve_memory_access();
      return true;
    case KVM_EXIT_INTR:
    case KVM_EXIT_IRQ_WINDOW_OPEN:
      return true;
    case KVM_EXIT_SHUTDOWN:
      control_.end(
          EndReason::kTripleFault,
          fmt::format("the guest crashed: triple fault on CPU {}; {}", id_, describe_state()));
      return false;
    case KVM_EXIT_SYSTEM_EVENT:
      control_.end(area().system_event.type == KVM_SYSTEM_EVENT_SHUTDOWN ? EndReason::kPowerOff
                                                                         : EndReason::kReset);
      return false;
    case KVM_EXIT_INTERNAL_ERROR:
      end_with_failure(area().internal.suberror == KVM_INTERNAL_ERROR_EMULATION
                           ? "KVM cannot carry out an instruction of the guest"
                           : fmt::format("KVM internal error {}", area().internal.suberror));
      return false;
    case KVM_EXIT_FAIL_ENTRY:
      end_with_failure(fmt::format("the processor refused to enter the guest (reason {:#x})",
                                   area().fail_entry.hardware_entry_failure_reason));
      return false;
    default:
      end_with_failure(fmt::format("unexpected exit {} from KVM", area().exit_reason));
      return false;
  }
}

void Vcpu::serve_port_access() {
  const auto& io = area().io;
  // The kernel puts `count` elements of `size` bytes at data_offset within the area it gave us.
  auto* data = static_cast<std::byte*>(static_cast<void*>(run_)) + io.data_offset;
  for (std::uint32_t i = 0; i < io.count; ++i, data += io.size) {
    if (io.direction == KVM_EXIT_IO_OUT) {
      (void)buses_.ports.write(io.port, std::span<const std::byte>(data, io.size));
    } else {
      (void)buses_.ports.read(io.port, std::span(data, io.size));
    }
  }
}

void Vcpu::serve_memory_access() {
  auto& access = area().mmio;
  const auto bytes = std::as_writable_bytes(
      std::span(access.data).first(std::min<std::size_t>(access.len, sizeof access.data)));
  if (access.is_write != 0) {
    (void)buses_.memory.write(access.phys_addr, bytes);
  } else {
    (void)buses_.memory.read(access.phys_addr, bytes);
  }
}

void Vcpu::end_with_failure(const std::string& what) {
  control_.end(EndReason::kFailure, fmt::format("{} (CPU {}); {}", what, id_, describe_state()));
}

std::string Vcpu::instruction_bytes(const kvm_regs& registers) {
  std::span<const std::byte> bytes;
  std::byte fetched[15];
  if (area().exit_reason == KVM_EXIT_INTERNAL_ERROR &&
      area().internal.suberror == KVM_INTERNAL_ERROR_EMULATION &&
      area().emulation_failure.ndata >= 1 &&
      (area().emulation_failure.flags & KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES) != 0) {
    const auto& failure = area().emulation_failure;
    bytes = std::as_bytes(std::span(failure.insn_bytes))
                .first(std::min<std::size_t>(failure.insn_size, sizeof failure.insn_bytes));
  } else {
    kvm_translation translation{};
    kvm_sregs system{};
    if (::ioctl(fd_.get(), KVM_GET_SREGS, &system) < 0) return "unknown";
    translation.linear_address = registers.rip + (system.cs.l != 0 ? 0 : system.cs.base);
    if (::ioctl(fd_.get(), KVM_TRANSLATE, &translation) < 0 || translation.valid == 0) {
      return "not readable";
    }
    const std::uint64_t to_page_end = 4096 - translation.physical_address % 4096;
    const auto size = std::min<std::uint64_t>(sizeof fetched, to_page_end);
    if (!memory_.read(translation.physical_address, std::span(fetched).first(size))) {
      return "not in memory";
    }
    bytes = std::span(fetched).first(size);
  }
  std::string text;
  for (std::byte byte : bytes) {
    fmt::format_to(std::back_inserter(text), "{}{:02x}", text.empty() ? "" : " ",
                   std::to_integer<unsigned>(byte));
  }
  return text;
}

std::string Vcpu::describe_state() {
  kvm_regs r{};
  kvm_sregs s{};
  if (::ioctl(fd_.get(), KVM_GET_REGS, &r) < 0 || ::ioctl(fd_.get(), KVM_GET_SREGS, &s) < 0) {
    return "its registers cannot be read";
  }
  return fmt::format(
      "instruction at {:#x}: {}\n"
      "  rax={:016x} rbx={:016x} rcx={:016x} rdx={:016x}\n"
      "  rsi={:016x} rdi={:016x} rbp={:016x} rsp={:016x}\n"
      "  r8 ={:016x} r9 ={:016x} r10={:016x} r11={:016x}\n"
      "  r12={:016x} r13={:016x} r14={:016x} r15={:016x}\n"
      "  rip={:016x} rflags={:08x} cs={:04x}(base {:x}, {}) ss={:04x} ds={:04x}\n"
      "  cr0={:08x} cr2={:016x} cr3={:016x} cr4={:08x} efer={:x}",
      r.rip, instruction_bytes(r), r.rax, r.rbx, r.rcx, r.rdx, r.rsi, r.rdi, r.rbp, r.rsp, r.r8,
      r.r9, r.r10, r.r11, r.r12, r.r13, r.r14, r.r15, r.rip, r.rflags, s.cs.selector, s.cs.base,
      s.cs.l != 0    ? "64 bits"
      : s.cs.db != 0 ? "32 bits"
                     : "16 bits",
      s.ss.selector, s.ds.selector, s.cr0, s.cr2, s.cr3, s.cr4, s.efer);
}

}  // namespace platter::run
