// Machine: everything of one virtual machine put together: started in a fixed order, taken down in
// the reverse one, whatever step failed.
//
// Threads: create() and run() from the main thread, whose SIGINT, SIGTERM and SIGHUP are blocked.
// It makes one thread for each vCPU and some for disk queues; vCPU threads never do disk I/O
// themselves, they only ring doorbells (in the kernel) or handle register accesses.
// Ownership: owns all of it.
// Errors: create() says what could not be made or opened.
#pragma once

#include <memory>
#include <vector>

#include "block/base/error.h"
#include "block/exec/executor_thread.h"
#include "tools/run/acpi.h"
#include "tools/run/boot.h"
#include "tools/run/bus.h"
#include "tools/run/console.h"
#include "tools/run/control.h"
#include "tools/run/cpuid.h"
#include "tools/run/disks.h"
#include "tools/run/fw_cfg.h"
#include "tools/run/kvm_platform.h"
#include "tools/run/memory.h"
#include "tools/run/options.h"
#include "tools/run/pci_host.h"
#include "tools/run/serial.h"
#include "tools/run/vcpu.h"
#include "tools/run/vm.h"
#include "virtio/blk.h"
#include "virtio/guest_memory.h"
#include "virtio/transport_mmio.h"
#include "virtio/transport_pci.h"

namespace platter::run {

// Where virtio-mmio devices are: one page each, from here.
inline constexpr std::uint64_t kMmioBase = 0xd0000000;
inline constexpr std::uint64_t kMmioStride = 0x1000;

class Machine {
 public:
  static Result<std::unique_ptr<Machine>> create(const RunOptions& options);
  ~Machine();
  Machine(const Machine&) = delete;
  Machine& operator=(const Machine&) = delete;

  // Runs until the end, then stops processors and devices and closes the disks. The reason is in
  // control(); the error, if any, is that of closing the disks.
  Result<void> run();
  const Control& control() const { return *control_; }

 private:
  struct Disk {
    std::unique_ptr<virtio::InterruptLine> line;
    std::unique_ptr<virtio::BlkDevice> device;
    std::unique_ptr<virtio::PciTransport> pci;    // one of these
    std::unique_ptr<virtio::MmioTransport> mmio;  // two
    unsigned slot = 0;                            // of pci
    std::uint64_t base = 0;                       // of mmio
  };

  explicit Machine(const RunOptions& options) : options_(options) {}
  Result<void> set_up();
  Result<void> add_memory();
  Result<void> add_ports();
  Result<void> add_disks();
  Result<void> add_disk(const DiskOptions& options);
  Result<void> connect_pci(Disk& disk);
  Result<void> connect_mmio(Disk& disk);
  Result<void> load();
  Result<void> load_for_firmware();
  Result<void> load_for_kernel();
  AcpiTables acpi() const;
  Result<void> add_vcpus();
  void watch();
  void stop_devices();

  const RunOptions options_;
  std::unique_ptr<Control> control_;
  UniqueFd debug_log_;
  Memory memory_;
  virtio::GuestMemory guest_memory_;
  std::unique_ptr<Vm> vm_;
  std::unique_ptr<Console> console_;
  Bus ports_;
  Bus mmio_;
  std::shared_ptr<Serial> serial_;
  std::shared_ptr<FwCfg> fw_cfg_;
  std::unique_ptr<KvmPlatform> platform_;
  std::vector<std::unique_ptr<SharedLevel>> pci_lines_;  // by IRQ; made when needed
  std::vector<std::unique_ptr<ExecutorThread>> io_threads_;
  std::unique_ptr<Disks> images_;
  std::vector<Disk> disks_;
  std::shared_ptr<PciHost> pci_host_;
  std::string mmio_arguments_;  // for the kernel command line
  std::vector<AcpiMmioDevice> mmio_devices_;
  EntryState entry_;
  std::vector<std::unique_ptr<Vcpu>> vcpus_;
};

}  // namespace platter::run
