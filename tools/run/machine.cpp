#include "tools/run/machine.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <ctime>
#include <thread>

#include "tools/run/cmos.h"
#include "tools/run/end_signals.h"
#include "tools/run/mptable.h"
#include "tools/run/ports.h"
#include "tools/run/probe.h"
#include "tools/run/report.h"

namespace platter::run {
namespace {

// ISA interrupts that nothing else here uses, for virtio-mmio devices.
constexpr std::array<unsigned, 8> kMmioInterrupts{5, 6, 7, 12, 14, 15, 3, 13};
constexpr int kFullPortWait = 20;  // milliseconds
constexpr std::uint32_t kStorageClass = 0x010000;

// What an earlier run has left in a log goes when the machine starts, not when it cannot. (Only of
// a file: nothing lies in a terminal or pipe.)
void empty_log(const UniqueFd& log) {
  if (log) static_cast<void>(::ftruncate(log.get(), 0));
}

}  // namespace

Result<std::unique_ptr<Machine>> Machine::create(const RunOptions& options) {
  std::unique_ptr<Machine> machine(new Machine(options));
  auto done = machine->set_up();
  if (!done) {
    machine->stop_devices();
    return forward_error(done);
  }
  return machine;
}

Machine::~Machine() {
  // The host is shared with the port bus, and must be gone before the functions it refers to.
  ports_.remove(PciHost::kBase);
  pci_host_.reset();
}

Result<void> Machine::set_up() {
  auto control = Control::create();
  PLATTER_TRY(control);
  control_ = std::move(*control);
  auto vm = Vm::create(true);
  PLATTER_TRY(vm);
  vm_ = std::move(*vm);
  if (options_.cpus > vm_->max_vcpus()) {
    return fail(EINVAL, "KVM offers at most {} virtual CPUs", vm_->max_vcpus());
  }
  platform_ = std::make_unique<KvmPlatform>(*vm_);
  for (Result<void> (Machine::*step)() :
       {&Machine::add_memory, &Machine::add_ports, &Machine::add_disks, &Machine::load,
        &Machine::add_vcpus}) {
    auto done = (this->*step)();
    PLATTER_TRY(done);
  }
  return {};
}

Result<void> Machine::add_memory() {
  auto added = memory_.add_ram(options_.memory);
  PLATTER_TRY(added);
  for (const Bank& bank : memory_.banks()) {
    auto known = guest_memory_.add(bank.address, std::span(bank.host, bank.size),
                                   virtio::GuestMemory::Kind::kRam, bank.name);
    PLATTER_TRY(known);
  }
  return {};
}

Result<void> Machine::add_ports() {
  auto console = Console::open(options_.serial);
  PLATTER_TRY(console);
  console_ = std::move(*console);
  serial_ = std::make_shared<Serial>(
      [this](std::byte byte) { console_->write(byte); },
      // The line exists since the machine was made, so KVM does not refuse.
      [this](bool level) { (void)vm_->set_line(Serial::kCom1Irq, level); });
  auto added = ports_.add(Serial::kCom1, Serial::kPorts, "serial port", serial_);
  PLATTER_TRY(added);

  Cmos::Config cmos{memory_.low_ram_size(), memory_.high_ram_size(), options_.cpus};
  added = ports_.add(Cmos::kBase, Cmos::kPorts, "real-time clock",
                     std::make_shared<Cmos>(cmos, [] { return std::time(nullptr); }));
  PLATTER_TRY(added);

  pci_host_ = std::make_shared<PciHost>(mmio_, *control_);
  added = ports_.add(PciHost::kBase, PciHost::kPorts, "PCI host", pci_host_);
  PLATTER_TRY(added);

  std::function<void(std::byte)> debug;
  if (options_.debug_log) {
    debug_log_ =
        UniqueFd(::open(options_.debug_log->c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0666));
    if (!debug_log_) return fail_errno(errno, "could not open '{}'", *options_.debug_log);
    debug = [fd = debug_log_.get(), control = control_.get()](std::byte byte) {
      // A processor that is to stop must not wait for a reader again, byte after byte.
      if (control->ended()) return;
      [[maybe_unused]] const auto written = ::write(fd, &byte, 1);
    };
  }
  return add_legacy_ports(ports_, *control_, std::move(debug));
}

Result<void> Machine::add_disks() {
  // The first one is the control executor too: it opens and closes the images.
  const unsigned threads = io_thread_count(options_, std::thread::hardware_concurrency());
  for (unsigned i = 0; i < threads; ++i) {
    auto thread = ExecutorThread::start();
    PLATTER_TRY(thread);
    io_threads_.push_back(std::move(*thread));
  }
  images_ = std::make_unique<Disks>(io_threads_.front()->executor());
  pci_lines_.resize(Vm::kLines);
  for (const DiskOptions& disk : options_.disks) {
    auto added = add_disk(disk);
    PLATTER_TRY(added);
  }
  return vm_->set_level_triggered(kLevelInterrupts);
}

Result<void> Machine::add_disk(const DiskOptions& options) {
  auto node = images_->open(options);
  PLATTER_TRY(node);
  virtio::BlkOptions blk;
  blk.queues = options.queues;
  blk.serial = options.serial;
  blk.read_only = options.read_only;
  blk.discard = options.discard;
  blk.writeback =
      options.cache != CacheMode::kWritethrough && options.cache != CacheMode::kDirectsync;
  // Disks start at different threads, so that several disks of one queue spread as well.
  std::vector<Executor*> executors;
  for (std::size_t i = 0; i < io_threads_.size(); ++i) {
    executors.push_back(&io_threads_[(i + disks_.size()) % io_threads_.size()]->executor());
  }
  auto device = virtio::BlkDevice::create(guest_memory_, **node, blk, std::move(executors));
  if (!device) return forward_error(device, "could not make a disk of '{}'", options.name);
  (*device)->set_reporter([name = options.name](const Error& error) {
    report(STDERR_FILENO, fmt::format("platter run: disk '{}': {}", name, error.message()));
  });
  disks_.emplace_back();
  Disk& disk = disks_.back();
  disk.device = std::move(*device);
  return options.bus == DiskBus::kPci ? connect_pci(disk) : connect_mmio(disk);
}

Result<void> Machine::connect_pci(Disk& disk) {
  // The slot decides the interrupt, and the transport wants its line at once: ask for the next one.
  const unsigned gsi = PciHost::interrupt_of(pci_host_->next_slot());
  auto& level = pci_lines_[gsi];
  if (!level) level = std::make_unique<SharedLevel>(*vm_, gsi);
  disk.line = level->connect();
  disk.pci =
      std::make_unique<virtio::PciTransport>(*disk.device, *platform_, *disk.line, kStorageClass);
  auto slot = pci_host_->plug(*disk.pci);
  PLATTER_TRY(slot);
  disk.slot = *slot;
  return {};
}

Result<void> Machine::connect_mmio(Disk& disk) {
  const std::size_t number = mmio_devices_.size();
  if (number >= kMmioInterrupts.size()) {
    return fail(ENOSPC, "more than {} virtio-mmio disks", kMmioInterrupts.size());
  }
  const unsigned gsi = kMmioInterrupts[number];
  const std::uint64_t base = kMmioBase + number * kMmioStride;
  mmio_devices_.push_back({static_cast<std::uint32_t>(base),
                           static_cast<std::uint32_t>(virtio::MmioTransport::kSize), gsi});
  auto line = EdgeLine::create(*vm_, gsi);
  PLATTER_TRY(line);
  disk.line = std::move(*line);
  disk.base = base;
  disk.mmio = std::make_unique<virtio::MmioTransport>(*disk.device, *platform_, *disk.line, base);
  mmio_arguments_ +=
      fmt::format(" virtio_mmio.device={:#x}@{:#x}:{}", virtio::MmioTransport::kSize, base, gsi);
  virtio::MmioTransport* transport = disk.mmio.get();
  return mmio_.add(base, virtio::MmioTransport::kSize, "virtio-mmio disk",
                   std::make_shared<CallbackDevice>(
                       [transport](std::uint64_t offset, std::span<std::byte> data) {
                         transport->read(offset, data);
                       },
                       [transport](std::uint64_t offset, std::span<const std::byte> data) {
                         transport->write(offset, data);
                       }));
}

Result<void> Machine::load() {
  auto loaded = options_.kernel ? load_for_kernel() : load_for_firmware();
  PLATTER_TRY(loaded);
  return vm_->map(memory_);
}

AcpiTables Machine::acpi() const {
  return acpi_tables({.cpus = options_.cpus, .mmio = mmio_devices_});
}

Result<void> Machine::load_for_firmware() {
  auto entry = load_firmware(memory_, options_.firmware);
  PLATTER_TRY(entry);
  entry_ = *entry;
  fw_cfg_ = std::make_shared<FwCfg>(memory_);
  fw_cfg_->add_number(FwCfg::kCpuCount, static_cast<std::uint16_t>(options_.cpus));
  fw_cfg_->add_number(FwCfg::kMaxCpus, static_cast<std::uint16_t>(options_.cpus));
  fw_cfg_->add_number(FwCfg::kBootMenu, 0);
  std::string boot_order;
  for (const Disk& disk : disks_) {
    if (disk.pci) boot_order += fmt::format("/pci@i0cf8/scsi@{:x}/disk@0,0\n", disk.slot);
    if (disk.mmio) boot_order += fmt::format("/virtio-mmio@{:016x}/disk@0,0\n", disk.base);
  }
  boot_order.push_back('\0');
  auto added = fw_cfg_->add_file("bootorder", boot_order);
  PLATTER_TRY(added);
  added = fw_cfg_->add_file("etc/e820", e820_table(memory_));
  PLATTER_TRY(added);
  added = fw_cfg_->add_file_number("etc/show-boot-menu", 0);
  PLATTER_TRY(added);
  if (options_.serial != "none") {
    // What firmware and boot loaders print through the BIOS comes out of the serial port.
    added = fw_cfg_->add_file_number("etc/sercon-port", Serial::kCom1);
    PLATTER_TRY(added);
  }
  AcpiTables tables = acpi();
  added = fw_cfg_->add_file(kTableLoaderFile, acpi_loader_script(tables));
  PLATTER_TRY(added);
  added = fw_cfg_->add_file(kAcpiRootFile, std::move(tables.root));
  PLATTER_TRY(added);
  added = fw_cfg_->add_file(kAcpiTablesFile, std::move(tables.tables));
  PLATTER_TRY(added);
  return ports_.add(FwCfg::kBase, FwCfg::kPorts, "firmware configuration", fw_cfg_);
}

Result<void> Machine::load_for_kernel() {
  KernelRequest request{*options_.kernel, options_.initrd, options_.append + mmio_arguments_,
                        kAcpiRootAddress};
  auto entry = load_kernel(memory_, request);
  PLATTER_TRY(entry);
  entry_ = *entry;
  std::vector<PciInterrupt> interrupts;
  for (const Disk& disk : disks_) {
    if (!disk.pci) continue;
    interrupts.push_back({static_cast<std::uint8_t>(disk.slot), 0,
                          static_cast<std::uint8_t>(PciHost::interrupt_of(disk.slot))});
  }
  auto written = memory_.write(kMpTableAddress, mp_table(options_.cpus, interrupts));
  PLATTER_TRY(written);
  written = memory_.write(kMpPointerAddress, mp_floating_pointer(kMpTableAddress));
  PLATTER_TRY(written);
  AcpiTables tables = acpi();
  place_acpi_tables(tables, kAcpiTablesAddress);
  if (tables.tables.size() > kAcpiEnd - kAcpiTablesAddress) {
    return fail(ENOSPC, "{} bytes of ACPI tables do not fit", tables.tables.size());
  }
  written = memory_.write(kAcpiRootAddress, tables.root);
  PLATTER_TRY(written);
  written = memory_.write(kAcpiTablesAddress, tables.tables);
  PLATTER_TRY(written);
  return pci_host_->assign_resources();
}

Result<void> Machine::add_vcpus() {
  CpuidRequest request;
  request.cpus = options_.cpus;
  request.tsc_deadline = vm_->has_tsc_deadline();
  if (options_.cpu == CpuChoice::kAuto) {
    auto probed = probe_kvm();
    PLATTER_TRY(probed);
    request.model = probed->hardware ? CpuModel::kHost : CpuModel::kBasic;
  } else {
    request.model = options_.cpu == CpuChoice::kHost ? CpuModel::kHost : CpuModel::kBasic;
  }
  auto supported = vm_->supported_cpuid();
  PLATTER_TRY(supported);
  for (unsigned id = 0; id < options_.cpus; ++id) {
    auto vcpu = Vcpu::create(*vm_, memory_, id, {ports_, mmio_}, *control_);
    PLATTER_TRY(vcpu);
    request.cpu = id;
    const auto table = guest_cpuid(*supported, request);
    auto set = (*vcpu)->set_cpuid(table);
    PLATTER_TRY(set);
    if (id == 0) {
      auto entered = (*vcpu)->set_entry(entry_);
      PLATTER_TRY(entered);
    }
    vcpus_.push_back(std::move(*vcpu));
  }
  return {};
}

Result<void> Machine::run() {
  console_->begin();
  empty_log(debug_log_);
  for (const auto& vcpu : vcpus_) {
    const auto started = vcpu->start();
    if (started) continue;
    control_->end(EndReason::kFailure, started.error().message());
    break;
  }
  watch();
  Vcpu::stop_all(vcpus_);
  stop_devices();
  return images_->close();
}

void Machine::stop_devices() {
  for (const Disk& disk : disks_) {
    if (disk.device) disk.device->stop_and_wait();
  }
}

void Machine::watch() {
  const sigset_t signals = end_signals();
  const UniqueFd signal_fd(::signalfd(-1, &signals, SFD_CLOEXEC));
  if (!signal_fd) {
    control_->end(EndReason::kFailure, "could not watch for signals: " + errno_text(errno));
  }
  while (!control_->ended()) {
    // A terminal is always listened to, for Ctrl-A X. Piped input waits while the port is full;
    // when the guest fetches some nobody tells, so it is asked again soon.
    const std::size_t room = console_->is_terminal() ? Serial::kMaxPending : serial_->room();
    std::array<pollfd, 3> watched{{{control_->fd(), POLLIN, 0},
                                   {signal_fd.get(), POLLIN, 0},
                                   {room > 0 ? console_->input_fd() : -1, POLLIN, 0}}};
    if (::poll(watched.data(), watched.size(), room > 0 ? -1 : kFullPortWait) < 0) continue;
    if (watched[1].revents != 0) {
      signalfd_siginfo info{};
      if (::read(signal_fd.get(), &info, sizeof info) == sizeof info) {
        control_->end(info.ssi_signo == SIGINT ? EndReason::kInterrupt : EndReason::kTerminate);
      }
    }
    if (watched[2].revents != 0) {
      const Typed typed = console_->read(room);
      (void)serial_->receive(typed.for_guest);
      if (typed.quit) control_->end(EndReason::kUser);
    }
  }
}

}  // namespace platter::run
