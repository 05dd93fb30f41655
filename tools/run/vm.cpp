#include "tools/run/vm.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cerrno>
#include <span>

#include "tools/run/kernel_table.h"

namespace platter::run {
namespace {

// Addresses of four pages the kernel needs on processors without unrestricted guests: below the
// largest flash, above every device window.
constexpr std::uint64_t kTssAddress = 0xfeffd000;
constexpr std::uint64_t kIdentityMapAddress = 0xfeffc000;

int control(int fd, unsigned long request, void* argument) {
  int result;
  do {
    result = ::ioctl(fd, request, argument);
  } while (result < 0 && errno == EINTR);
  return result;
}
int control(int fd, unsigned long request, unsigned long argument = 0) {
  int result;
  do {
    result = ::ioctl(fd, request, argument);
  } while (result < 0 && errno == EINTR);
  return result;
}

Result<UniqueFd> open_system(const std::string& device) {
  UniqueFd fd(::open(device.c_str(), O_RDWR | O_CLOEXEC));
  if (!fd) {
    const int code = errno;
    const char* remedy =
        code == EACCES || code == EPERM ? " (is this user in the group that owns it?)"
        : code == ENOENT || code == ENXIO || code == ENODEV
            ? " (does this machine offer virtualisation, and is the kvm module loaded?)"
            : "";
    return fail(code, "could not open '{}': {}{}", device, errno_text(code), remedy);
  }
  const int version = control(fd.get(), KVM_GET_API_VERSION);
  if (version < 0) return fail_errno(errno, "'{}' is not a KVM device", device);
  if (version != KVM_API_VERSION) {
    return fail(ENOTSUP, "'{}' speaks KVM version {}, and this program {}", device, version,
                KVM_API_VERSION);
  }
  const auto missing = missing_capabilities(capability_table(), [&](unsigned number) {
    return control(fd.get(), KVM_CHECK_EXTENSION, static_cast<unsigned long>(number));
  });
  if (!missing.empty()) {
    return fail(ENOTSUP, "'{}' lacks {}", device, fmt::join(missing, ", "));
  }
  return fd;
}

}  // namespace

const std::vector<Capability>& capability_table() {
  static const std::vector<Capability> table{
      {KVM_CAP_IRQCHIP, "KVM_CAP_IRQCHIP", true},
      {KVM_CAP_USER_MEMORY, "KVM_CAP_USER_MEMORY", true},
      {KVM_CAP_READONLY_MEM, "KVM_CAP_READONLY_MEM", true},
      {KVM_CAP_SET_TSS_ADDR, "KVM_CAP_SET_TSS_ADDR", true},
      {KVM_CAP_EXT_CPUID, "KVM_CAP_EXT_CPUID", true},
      {KVM_CAP_PIT2, "KVM_CAP_PIT2", true},
      {KVM_CAP_IRQ_ROUTING, "KVM_CAP_IRQ_ROUTING", true},
      {KVM_CAP_IOEVENTFD, "KVM_CAP_IOEVENTFD", true},
      {KVM_CAP_IOEVENTFD_ANY_LENGTH, "KVM_CAP_IOEVENTFD_ANY_LENGTH", true},
      {KVM_CAP_IRQFD, "KVM_CAP_IRQFD", true},
      {KVM_CAP_IMMEDIATE_EXIT, "KVM_CAP_IMMEDIATE_EXIT", true},
      {KVM_CAP_TSC_DEADLINE_TIMER, "KVM_CAP_TSC_DEADLINE_TIMER", false},
  };
  return table;
}

Result<std::unique_ptr<Vm>> Vm::create(bool irqchip, const std::string& device) {
  auto system = open_system(device);
  PLATTER_TRY(system);
  std::unique_ptr<Vm> vm(new Vm());
  vm->system_ = std::move(*system);
  vm->vm_ = UniqueFd(control(vm->system_.get(), KVM_CREATE_VM));
  if (!vm->vm_) {
    return fail_errno(errno, "'{}' is there, but no machine could be made with it", device);
  }
  const int run_size = control(vm->system_.get(), KVM_GET_VCPU_MMAP_SIZE);
  if (run_size < 0) return fail_errno(errno, "KVM_GET_VCPU_MMAP_SIZE");
  vm->run_size_ = static_cast<std::size_t>(run_size);
  const int vcpus = control(vm->system_.get(), KVM_CHECK_EXTENSION,
                            static_cast<unsigned long>(KVM_CAP_MAX_VCPUS));
  vm->max_vcpus_ = vcpus > 0 ? static_cast<unsigned>(vcpus) : 4;
  if (control(vm->vm_.get(), KVM_SET_TSS_ADDR, kTssAddress) < 0) {
    return fail_errno(errno, "KVM_SET_TSS_ADDR");
  }
  std::uint64_t identity = kIdentityMapAddress;
  if (control(vm->vm_.get(), KVM_SET_IDENTITY_MAP_ADDR, &identity) < 0) {
    return fail_errno(errno, "KVM_SET_IDENTITY_MAP_ADDR");
  }
  if (irqchip) {
    if (control(vm->vm_.get(), KVM_CREATE_IRQCHIP) < 0) {
      return fail_errno(errno, "could not create the interrupt controllers");
    }
    kvm_pit_config pit{};
    pit.flags = KVM_PIT_SPEAKER_DUMMY;
    if (control(vm->vm_.get(), KVM_CREATE_PIT2, &pit) < 0) {
      return fail_errno(errno, "could not create the interval timer");
    }
  }
  return vm;
}

Result<void> Vm::map(const Memory& memory) {
  std::uint32_t slot = 0;
  for (const Bank& bank : memory.banks()) {
    kvm_userspace_memory_region region{};
    region.slot = slot++;
    region.flags = bank.kind == BankKind::kRom ? KVM_MEM_READONLY : 0U;
    region.guest_phys_addr = bank.address;
    region.memory_size = bank.size;
    region.userspace_addr = reinterpret_cast<std::uintptr_t>(bank.host);
    if (control(vm_.get(), KVM_SET_USER_MEMORY_REGION, &region) < 0) {
      return fail_errno(errno, "could not map memory bank '{}' at {:#x}", bank.name, bank.address);
    }
  }
  return {};
}

Result<UniqueFd> Vm::create_vcpu(unsigned id) {
  UniqueFd fd(control(vm_.get(), KVM_CREATE_VCPU, static_cast<unsigned long>(id)));
  if (!fd) return fail_errno(errno, "could not create virtual CPU {}", id);
  return fd;
}

Result<std::vector<kvm_cpuid_entry2>> Vm::supported_cpuid() const {
  const std::vector<kvm_cpuid_entry2> room(256);
  auto table = kernel_table(std::span(room));
  if (control(system_.get(), kGetSupportedCpuid, table.data()) < 0) {
    return fail_errno(errno, "KVM_GET_SUPPORTED_CPUID");
  }
  return table_entries<kvm_cpuid_entry2>(table);
}

bool Vm::has_tsc_deadline() const {
  return control(system_.get(), KVM_CHECK_EXTENSION,
                 static_cast<unsigned long>(KVM_CAP_TSC_DEADLINE_TIMER)) > 0;
}

Result<void> Vm::change_event(const IoEvent& event, int eventfd, std::uint32_t flags) {
  kvm_ioeventfd request{};
  request.addr = event.address;
  request.len = event.length;
  request.fd = eventfd;
  request.flags = flags;
  if (event.port) request.flags |= KVM_IOEVENTFD_FLAG_PIO;
  if (event.match) {
    request.flags |= KVM_IOEVENTFD_FLAG_DATAMATCH;
    request.datamatch = event.value;
  }
  if (control(vm_.get(), KVM_IOEVENTFD, &request) < 0) {
    return fail_errno(errno, "could not {} a doorbell at {} {:#x}",
                      flags & KVM_IOEVENTFD_FLAG_DEASSIGN ? "remove" : "add",
                      event.port ? "port" : "address", event.address);
  }
  return {};
}

Result<void> Vm::bind_event(const IoEvent& event, int eventfd) {
  return change_event(event, eventfd, 0);
}
Result<void> Vm::unbind_event(const IoEvent& event, int eventfd) {
  return change_event(event, eventfd, KVM_IOEVENTFD_FLAG_DEASSIGN);
}

Result<void> Vm::set_line(unsigned gsi, bool level) {
  kvm_irq_level request{};
  request.irq = gsi;
  request.level = level ? 1 : 0;
  if (control(vm_.get(), KVM_IRQ_LINE, &request) < 0) {
    return fail_errno(errno, "could not set interrupt line {}", gsi);
  }
  return {};
}

Result<void> Vm::attach_irqfd(unsigned gsi, int eventfd) {
  kvm_irqfd request{};
  request.fd = static_cast<std::uint32_t>(eventfd);
  request.gsi = gsi;
  if (control(vm_.get(), KVM_IRQFD, &request) < 0) {
    return fail_errno(errno, "could not attach an event descriptor to interrupt {}", gsi);
  }
  return {};
}

Result<void> Vm::detach_irqfd(unsigned gsi, int eventfd) {
  kvm_irqfd request{};
  request.fd = static_cast<std::uint32_t>(eventfd);
  request.gsi = gsi;
  request.flags = KVM_IRQFD_FLAG_DEASSIGN;
  if (control(vm_.get(), KVM_IRQFD, &request) < 0) {
    return fail_errno(errno, "could not detach an event descriptor from interrupt {}", gsi);
  }
  return {};
}

Result<void> Vm::set_routes(std::span<const kvm_irq_routing_entry> entries) {
  auto request = kernel_table(entries);
  if (control(vm_.get(), kSetGsiRouting, request.data()) < 0) {
    return fail_errno(errno, "KVM_SET_GSI_ROUTING");
  }
  return {};
}

Result<void> Vm::set_level_triggered(std::uint16_t irqs) {
  for (unsigned half = 0; half < 2; ++half) {
    kvm_irqchip chip{};
    chip.chip_id = half == 0 ? KVM_IRQCHIP_PIC_MASTER : KVM_IRQCHIP_PIC_SLAVE;
    if (control(vm_.get(), KVM_GET_IRQCHIP, &chip) < 0) return fail_errno(errno, "KVM_GET_IRQCHIP");
    chip.chip.pic.elcr = static_cast<std::uint8_t>(irqs >> (8 * half));
    if (control(vm_.get(), KVM_SET_IRQCHIP, &chip) < 0) return fail_errno(errno, "KVM_SET_IRQCHIP");
  }
  return {};
}

}  // namespace platter::run
