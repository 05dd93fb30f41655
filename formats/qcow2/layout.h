// The qcow2 header: bytes of the first cluster to a validated value and back (qcow2 specification,
// "Header"). Every number of a Header that came out of parse_header() is within its bound, every
// table offset is cluster aligned, and every table lies in the file: users need not check again.
//
// Threads: pure functions over values.
// Errors: one line that names the field, its value and the limit. EINVAL for what breaks the
// format, EFBIG for what is too large, ENOTSUP for versions and features that we do not know.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "block/base/error.h"
#include "formats/qcow2/geometry.h"
#include "formats/qcow2/header_extensions.h"

namespace platter::qcow2 {

inline constexpr std::uint32_t kMagic = 0x514649fb;  // "QFI\xfb"
inline constexpr unsigned kMinExtendedL2ClusterBits = 14;
inline constexpr std::uint32_t kHeaderV2Size = 72;
inline constexpr std::uint32_t kHeaderV3Size = 104;
// What we write for version 3: with compression_type, padded to 8.
inline constexpr std::uint32_t kHeaderWrittenSize = 112;
// QEMU's bounds, which we share so that each opens what the other makes.
inline constexpr std::uint32_t kMaxBackingNameBytes = 1023;
inline constexpr std::uint32_t kMaxSnapshots = 65536;

namespace incompatible {
inline constexpr std::uint64_t kDirty = 1;
inline constexpr std::uint64_t kCorrupt = 2;
inline constexpr std::uint64_t kDataFile = 4;
inline constexpr std::uint64_t kCompressionType = 8;
inline constexpr std::uint64_t kExtendedL2 = 16;
inline constexpr std::uint64_t kKnown = 31;
}  // namespace incompatible
namespace compatible {
inline constexpr std::uint64_t kLazyRefcounts = 1;
}  // namespace compatible
namespace autoclear {
inline constexpr std::uint64_t kBitmaps = 1;
inline constexpr std::uint64_t kDataFileRaw = 2;
inline constexpr std::uint64_t kKnown = 3;
}  // namespace autoclear

enum class CryptMethod : std::uint32_t { kNone = 0, kAes = 1, kLuks = 2 };

// How compressed clusters are packed: the numbers are those of the header field.
enum class CompressionType : std::uint8_t { kZlib = 0, kZstd = 1 };

struct Header {
  std::uint32_t version = 3;  // 2 or 3
  unsigned cluster_bits = 16;
  std::uint64_t size = 0;  // virtual disk size in bytes
  CryptMethod crypt_method = CryptMethod::kNone;
  std::uint32_t l1_size = 0;  // entries
  std::uint64_t l1_table_offset = 0;
  std::uint64_t refcount_table_offset = 0;
  std::uint32_t refcount_table_clusters = 0;
  // Why no refcount table is there to go by; empty: it can be used. The fields stay as they are on
  // disk, so that a header which is written for another reason keeps them.
  std::string refcount_table_fault;
  std::uint32_t nb_snapshots = 0;
  std::uint64_t snapshots_offset = 0;
  std::uint64_t incompatible_features = 0;
  std::uint64_t compatible_features = 0;
  std::uint64_t autoclear_features = 0;
  unsigned refcount_order = 4;
  CompressionType compression_type = CompressionType::kZlib;
  // Header fields after compression_type and its padding, which we do not know and keep.
  std::vector<std::byte> unknown_fields;
  Extensions extensions;
  std::string backing_file;  // as stored; empty: none

  Geometry geometry() const {
    return {version, cluster_bits, refcount_order, extended_l2(), has_data_file()};
  }
  std::uint64_t cluster_size() const { return std::uint64_t{1} << cluster_bits; }
  // 0 when it cannot be used.
  std::uint64_t refcount_table_bytes() const {
    if (!refcount_table_fault.empty()) return 0;
    return std::uint64_t{refcount_table_clusters} << cluster_bits;
  }
  std::uint64_t l1_table_bytes() const { return std::uint64_t{l1_size} * 8; }
  bool dirty() const { return (incompatible_features & incompatible::kDirty) != 0; }
  bool corrupt() const { return (incompatible_features & incompatible::kCorrupt) != 0; }
  bool has_data_file() const { return (incompatible_features & incompatible::kDataFile) != 0; }
  bool extended_l2() const { return (incompatible_features & incompatible::kExtendedL2) != 0; }
  bool lazy_refcounts() const { return (compatible_features & compatible::kLazyRefcounts) != 0; }
  bool data_file_raw() const { return (autoclear_features & autoclear::kDataFileRaw) != 0; }

  bool operator==(const Header&) const = default;
};

// The cluster size in bytes that a file which starts with `head` (32 bytes are enough) claims, so
// that its first cluster can be read. Checks magic, version and cluster_bits.
Result<std::uint64_t> probe_cluster_size(std::span<const std::byte> head);

// Whether a table that lies beyond the end of the file is refused, or left for the checker to
// count.
enum class TableBounds : bool { kInFile, kAnywhere };

// Parses and validates a header. `first_cluster` is the first cluster, or the whole file when that
// is shorter; `file_size` in bytes bounds every table. Unknown incompatible features are refused
// with the names the image gives them; the dirty and corrupt bits are left for the caller to judge.
Result<Header> parse_header(std::span<const std::byte> first_cluster, std::uint64_t file_size);

// The whole first cluster for `header`, zero padded. ENOSPC when extensions and the backing file
// name do not fit. The name lies at `name_offset` (bytes, at least header_area_size()), or right
// behind the extensions when that is 0.
Result<std::vector<std::byte>> encode_header(const Header& header, std::uint64_t name_offset = 0);
// Bytes of the fields and extensions of `header`.
std::uint64_t header_area_size(const Header& header);

// A table's place: cluster aligned, not empty of clusters, not above kMaxHostOffset, `entries`
// entries of `entry_size` bytes within `max_bytes`. Messages start with `name` ("Active L1 table").
Result<void> validate_table(std::string_view name, std::uint64_t offset, std::uint64_t entries,
                            std::uint64_t entry_size, std::uint64_t max_bytes,
                            std::uint64_t cluster_size);

// The same, and the table ends within the file's last, perhaps partial, cluster.
Result<void> validate_table_in_file(std::string_view name, std::uint64_t offset,
                                    std::uint64_t entries, std::uint64_t entry_size,
                                    std::uint64_t max_bytes, std::uint64_t cluster_size,
                                    std::uint64_t file_size);

}  // namespace platter::qcow2
