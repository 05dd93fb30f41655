// Vm: one KVM virtual machine: the kernel's side of memory, interrupts and event descriptors.
//
// Ownership: a Vm owns /dev/kvm's and the machine's descriptors; vCPU descriptors are handed out.
// Memory given to map() must outlive the Vm.
// Threads: every member function may be called from any thread once create() has returned.
// Errors: errno values with what KVM was asked for; a host without a usable /dev/kvm is told in
// one line with the usual remedies.
#pragma once

#include <linux/kvm.h>

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "block/base/error.h"
#include "block/base/unique_fd.h"
#include "tools/run/memory.h"
#include "tools/run/message_routes.h"

namespace platter::run {

// One line of the table of what a machine needs from KVM.
struct Capability {
  unsigned number;   // KVM_CAP_*
  const char* name;  // as in the kernel's documentation
  bool needed;       // false: used when there
};

// The needed ones that `check` (a callable from KVM_CAP_* to a number, 0 = lacking) does not have.
template <class Check>
std::vector<const char*> missing_capabilities(const std::vector<Capability>& table, Check&& check) {
  std::vector<const char*> missing;
  for (const Capability& entry : table) {
    if (entry.needed && check(entry.number) <= 0) missing.push_back(entry.name);
  }
  return missing;
}
const std::vector<Capability>& capability_table();

// An I/O address for an eventfd: any write of `length` bytes there (or, with `match`, only of
// `value`) signals it and does not leave the kernel.
struct IoEvent {
  std::uint64_t address = 0;
  unsigned length = 0;  // 0 (any), 1, 2, 4 or 8
  bool port = false;    // port space, otherwise memory space
  bool match = false;
  std::uint64_t value = 0;
};

class Vm {
 public:
  // Opens `device` (normally "/dev/kvm"), checks it, and makes a machine with the in-kernel
  // interrupt controllers and timer when `irqchip`.
  static Result<std::unique_ptr<Vm>> create(bool irqchip, const std::string& device = "/dev/kvm");
  Vm(const Vm&) = delete;
  Vm& operator=(const Vm&) = delete;

  // Makes every bank of `memory` visible to the guest.
  Result<void> map(const Memory& memory);

  Result<UniqueFd> create_vcpu(unsigned id);
  // Bytes of the kvm_run area of each vCPU.
  std::size_t run_size() const { return run_size_; }
  unsigned max_vcpus() const { return max_vcpus_; }
  Result<std::vector<kvm_cpuid_entry2>> supported_cpuid() const;
  // True when the local timer's TSC-deadline mode is emulated.
  bool has_tsc_deadline() const;

  Result<void> bind_event(const IoEvent& event, int eventfd);
  Result<void> unbind_event(const IoEvent& event, int eventfd);

  // Sets an interrupt line (GSI 0..23) of the in-kernel controllers.
  Result<void> set_line(unsigned gsi, bool level);
  // Each signal of the eventfd is an edge of the GSI.
  Result<void> attach_irqfd(unsigned gsi, int eventfd);
  Result<void> detach_irqfd(unsigned gsi, int eventfd);
  // The GSIs above the lines, for message-signalled interrupts.
  MessageRoutes& messages() { return messages_; }
  // Makes IRQs of the ISA controllers level-triggered (bit n = IRQ n).
  Result<void> set_level_triggered(std::uint16_t irqs);

  static constexpr unsigned kLines = MessageRoutes::kLines;

 private:
  Vm() = default;
  Result<void> change_event(const IoEvent& event, int eventfd, std::uint32_t flags);
  Result<void> set_routes(std::span<const kvm_irq_routing_entry> entries);

  UniqueFd system_;
  UniqueFd vm_;
  std::size_t run_size_ = 0;
  unsigned max_vcpus_ = 1;
  MessageRoutes messages_{
      [this](std::span<const kvm_irq_routing_entry> entries) { return set_routes(entries); }};
};

}  // namespace platter::run
