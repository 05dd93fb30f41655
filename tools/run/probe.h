// Probe: what kind of /dev/kvm this is, found by measuring. Some hosts' KVM emulates ring 0 in
// software, thousands of times slower than a processor, and carries fewer instructions.
//
// Threads: any; takes some ten milliseconds where KVM is slow.
// Errors: why KVM cannot be used.
#pragma once

#include "block/base/error.h"

namespace platter::run {

struct ProbeResult {
  // Instructions a second of a short loop in ring 0, 64-bit mode.
  double instructions_per_second = 0;
  // Run by the processor itself, not emulated.
  bool hardware = false;
};

// Makes a throw-away machine and times it.
Result<ProbeResult> probe_kvm();

// The verdict on a measured speed.
ProbeResult judge_speed(double instructions_per_second);

}  // namespace platter::run
