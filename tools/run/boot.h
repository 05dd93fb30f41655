// Boot: puts a kernel, its initrd and command line, or a firmware image, into guest memory, and
// says in which state the first processor starts.
//
// Threads: set-up time only, before any vCPU runs.
// Errors: name the file and what does not fit.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "block/base/error.h"
#include "tools/run/memory.h"

namespace platter::run {

// Where execution starts.
struct EntryState {
  enum class Mode : std::uint8_t {
    kReset,      // the processor's reset vector: firmware
    kProtected,  // 32 bits, flat, no paging: PVH and the 32-bit boot protocol
    kLong,       // 64 bits, identity-mapped: the 64-bit boot protocol
  };
  Mode mode = Mode::kReset;
  std::uint64_t rip = 0;
  std::uint64_t rbx = 0;  // PVH: the start info
  std::uint64_t rsi = 0;  // Linux: the zero page
};

struct KernelRequest {
  std::string kernel;
  std::optional<std::string> initrd;
  std::string command_line;
  std::uint64_t acpi_root = 0;  // where the ACPI root pointer lies; 0 when there is none
};

// Guest-physical places the loader uses, all in the first 640 KiB (free at entry by both
// protocols).
inline constexpr std::uint64_t kGdtAddress = 0x500;
inline constexpr std::uint64_t kStartInfoAddress = 0x6000;
inline constexpr std::uint64_t kZeroPageAddress = 0x7000;
inline constexpr std::uint64_t kPageTableAddress = 0x9000;  // six pages
inline constexpr std::uint64_t kCommandLineAddress = 0x20000;
inline constexpr std::uint64_t kMaxCommandLine = 0x10000;  // bytes with the terminator
inline constexpr std::uint64_t kBaseMemoryEnd = 0x9fc00;   // above: the MP floating pointer
inline constexpr std::uint64_t kHighMemory = 0x100000;

// The descriptor table and identity map (first 4 GiB) that EntryState::Mode::kLong starts with.
Result<void> prepare_long_mode(const Memory& memory);

Result<EntryState> load_kernel(const Memory& memory, const KernelRequest& request);

// Adds the firmware's flash bank below 4 GiB and copies it to the end of the first MiB, where
// SeaBIOS finds itself already shadowed.
Result<EntryState> load_firmware(Memory& memory, const std::string& file);

}  // namespace platter::run
