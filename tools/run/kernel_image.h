// What a kernel file is: pure parsers from bytes to validated descriptions. Loading is boot.h's.
//
// Threads: pure functions; a result holds offsets into the bytes, not the bytes.
// Errors: EINVAL naming the field, its value and its limit; ENOEXEC when the file is of neither
// kind.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "block/base/error.h"

namespace platter::run {

// An executable for bare x86-64 (or 32-bit) with physical load addresses.
struct ElfImage {
  struct Segment {
    std::uint64_t file_offset = 0;
    std::uint64_t file_size = 0;    // bytes in the file
    std::uint64_t address = 0;      // guest-physical
    std::uint64_t memory_size = 0;  // bytes in memory; the rest of them is zero
  };
  std::vector<Segment> segments;  // at least one
  std::uint64_t entry = 0;        // e_entry
  // Entry of the PVH protocol: 32-bit code, from the note XEN_ELFNOTE_PHYS32_ENTRY.
  std::optional<std::uint32_t> pvh_entry;
};
Result<ElfImage> parse_elf(std::span<const std::byte> file);

// A Linux bzImage (specs: linux x86/boot.rst), protocol 2.06 or newer.
struct BzImage {
  std::uint16_t protocol = 0;       // 0x020f is 2.15
  std::uint64_t kernel_offset = 0;  // of the protected-mode part in the file
  std::uint64_t kernel_size = 0;
  std::uint32_t load_address = 0;      // of the protected-mode part
  std::uint32_t init_size = 0;         // bytes needed from load_address; 0 when not told
  std::uint32_t initrd_max = 0;        // highest address an initrd may occupy
  std::uint32_t command_line_max = 0;  // bytes without the terminator
  bool has_64bit_entry = false;        // at load_address + 0x200
  std::uint32_t header_end = 0;        // the setup header is [0x1f1, header_end) of the file
};
Result<BzImage> parse_bzimage(std::span<const std::byte> file);

bool looks_like_elf(std::span<const std::byte> file);
bool looks_like_bzimage(std::span<const std::byte> file);

}  // namespace platter::run
