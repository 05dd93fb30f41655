// The processor that the guest sees.
//
// Threads: pure functions.
#pragma once

#include <linux/kvm.h>

#include <cstdint>
#include <vector>

namespace platter::run {

enum class CpuModel : std::uint8_t {
  kHost,  // all that KVM supports here
  // What a KVM that emulates ring 0 in software can carry: no basic leaf above 1, so that leaves 7
  // and 0xD (whose features such a KVM shows whatever it was given) are out of sight.
  kBasic,
};

struct CpuidRequest {
  CpuModel model = CpuModel::kHost;
  unsigned cpu = 0;   // its local APIC id
  unsigned cpus = 1;  // of the machine
  bool tsc_deadline = false;
};

// The table for one vCPU, from what KVM_GET_SUPPORTED_CPUID said.
std::vector<kvm_cpuid_entry2> guest_cpuid(std::vector<kvm_cpuid_entry2> supported,
                                          const CpuidRequest& request);

}  // namespace platter::run
