#include "tools/run/cpuid.h"

#include <bit>

namespace platter::run {
namespace {

constexpr std::uint32_t kLeaf1EcxMonitor = 1U << 3, kLeaf1EcxCx16 = 1U << 13,
                        kLeaf1EcxTscDeadline = 1U << 24, kLeaf1EcxXsave = 1U << 26,
                        kLeaf1EcxOsxsave = 1U << 27, kLeaf1EcxAvx = 1U << 28,
                        kLeaf1EcxHypervisor = 1U << 31;
constexpr std::uint32_t kLeaf1EdxHyperThreading = 1U << 28;

}  // namespace

std::vector<kvm_cpuid_entry2> guest_cpuid(std::vector<kvm_cpuid_entry2> supported,
                                          const CpuidRequest& request) {
  const bool basic = request.model == CpuModel::kBasic;
  std::vector<kvm_cpuid_entry2> table;
  table.reserve(supported.size());
  for (kvm_cpuid_entry2 entry : supported) {
    if (basic && entry.function > 1 && entry.function < 0x40000000) continue;
    switch (entry.function) {
      case 0:
        if (basic) entry.eax = 1;
        break;
      case 1: {
        const std::uint32_t logical = request.cpus > 255 ? 255 : request.cpus;
        entry.ebx = (entry.ebx & 0x0000ffff) | (request.cpu << 24) | (logical << 16);
        entry.ecx |= kLeaf1EcxHypervisor;
        entry.ecx &= ~(kLeaf1EcxMonitor | kLeaf1EcxOsxsave);
        if (request.tsc_deadline) entry.ecx |= kLeaf1EcxTscDeadline;
        if (basic) entry.ecx &= ~(kLeaf1EcxCx16 | kLeaf1EcxXsave | kLeaf1EcxAvx);
        if (request.cpus > 1) {
          entry.edx |= kLeaf1EdxHyperThreading;
        } else {
          entry.edx &= ~kLeaf1EdxHyperThreading;
        }
        break;
      }
      case 4:
        // One thread to a core, all of them in one package.
        entry.eax &= 0x00003fff;
        if (request.cpus > 1) {
          entry.eax |= (static_cast<std::uint32_t>(std::bit_ceil(request.cpus)) - 1) << 26;
        }
        break;
      case 0x0b:
      case 0x1f:
        entry.edx = request.cpu;
        if (entry.index == 0) {
          entry.eax = 0;
          entry.ebx = 1;
          entry.ecx = 0x100;
        } else if (entry.index == 1) {
          entry.eax = static_cast<std::uint32_t>(std::bit_width(request.cpus - 1));
          entry.ebx = request.cpus;
          entry.ecx = 0x201;
        }
        break;
      case 0x80000008:
        entry.ecx &= ~0xf0ffU;  // the number of cores comes from the leaves above
        break;
      case 0x8000001e:
        entry.eax = request.cpu;  // local APIC id
        entry.ebx = request.cpu;  // core id; one thread to a core
        entry.ecx = 0;
        break;
      default:
        break;
    }
    table.push_back(entry);
  }
  return table;
}

}  // namespace platter::run
