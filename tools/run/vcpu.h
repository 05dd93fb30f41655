// Vcpu: one virtual processor and the thread that runs it.
//
// Threads: create(), set-up, start() and stop_all() from the main thread; the run loop in its own.
// Port and memory accesses that leave the kernel are served there through the buses.
// Ownership: owns the vCPU descriptor and its kvm_run area; refers to the Vm, the buses and the
// Control, which outlive it. stop_all() before destruction.
// Errors: set-up fails with what KVM refused. When the guest does what KVM cannot carry, the run
// loop ends the machine with one message: where, which instruction bytes, and the registers.
#pragma once

#include <linux/kvm.h>
#include <pthread.h>

#include <memory>
#include <semaphore>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "block/base/error.h"
#include "tools/run/boot.h"
#include "tools/run/bus.h"
#include "tools/run/control.h"
#include "tools/run/vm.h"

namespace platter::run {

class Vcpu {
 public:
  struct Buses {
    const Bus& ports;
    const Bus& memory;
  };

  static Result<std::unique_ptr<Vcpu>> create(Vm& vm, const Memory& memory, unsigned id,
                                              Buses buses, Control& control);
  ~Vcpu();
  Vcpu(const Vcpu&) = delete;
  Vcpu& operator=(const Vcpu&) = delete;

  Result<void> set_cpuid(std::span<const kvm_cpuid_entry2> table);
  // The state the boot processor starts in; others wait for the guest to start them.
  Result<void> set_entry(const EntryState& entry);

  // Fails with EAGAIN when there can be no more threads.
  Result<void> start();
  // Makes the run loops of a machine's processors return, of those that were started, and waits for
  // them: together, since one may wait for what another one does. Control::end() was called before.
  static void stop_all(std::span<const std::unique_ptr<Vcpu>> vcpus);

  // Runs on the calling thread until an exit to user space and gives its reason (KVM_EXIT_*);
  // for the probe.
  Result<unsigned> run_once();

 private:
  Vcpu(const Memory& memory, unsigned id, Buses buses, Control& control)
      : memory_(memory), id_(id), buses_(buses), control_(control) {}
  void run();
  void run_loop();
  // Serves one exit; false: the machine has come to its end.
  bool serve_exit();
  void serve_port_access();
  void serve_memory_access();
  void end_with_failure(const std::string& what);
  std::string describe_state();
  std::string instruction_bytes(const kvm_regs& registers);
  kvm_run& area() { return *run_; }

  const Memory& memory_;
  const unsigned id_;
  const Buses buses_;
  Control& control_;
  UniqueFd fd_;
  kvm_run* run_ = nullptr;
  std::size_t run_size_ = 0;
  std::thread thread_;
  std::binary_semaphore left_{0};  // released by the thread when it has left the run loop
  bool has_left_ = false;          // stop_all() has seen that
};

}  // namespace platter::run
