// The bitmap directory of a qcow2 image: one entry for each persistent bitmap (qcow2 specification,
// "Bitmaps").
//
// Threads: pure functions over values.
// Errors: one line that names the entry, the field, its value and the limit.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "block/base/error.h"
#include "formats/qcow2/layout.h"

namespace platter::qcow2 {

namespace bitmap_flag {
inline constexpr std::uint32_t kInUse = 1;
inline constexpr std::uint32_t kAuto = 2;
inline constexpr std::uint32_t kExtraDataCompatible = 4;
inline constexpr std::uint32_t kKnown = 7;
}  // namespace bitmap_flag

// QEMU's bounds.
inline constexpr std::uint32_t kMaxBitmapTableEntries = 0x8000000;
inline constexpr std::uint64_t kMaxBitmapBytes = 0x20000000;
inline constexpr unsigned kMinBitmapGranularityBits = 9;
inline constexpr unsigned kMaxBitmapGranularityBits = 31;
inline constexpr std::size_t kMaxBitmapName = 1023;

struct BitmapEntry {
  std::uint64_t table_offset = 0;  // bytes, cluster aligned
  std::uint32_t table_size = 0;    // entries of 8 bytes
  std::uint32_t flags = 0;         // bitmap_flag
  unsigned granularity_bits = 16;
  std::string name;              // text from the image
  std::vector<std::byte> extra;  // kept
  bool operator==(const BitmapEntry&) const = default;
};

// Parses and validates the whole directory: `bytes` are directory_size bytes at directory_offset,
// and must be used up exactly by `extension.count` entries.
Result<std::vector<BitmapEntry>> parse_bitmap_directory(std::span<const std::byte> bytes,
                                                        const BitmapsExtension& extension,
                                                        const Header& header);

std::vector<std::byte> encode_bitmap_directory(const std::vector<BitmapEntry>& entries);

}  // namespace platter::qcow2
