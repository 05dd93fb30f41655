// The header extensions of a qcow2 image: what follows the header fields in the first cluster
// (qcow2 specification, "Header extensions").
//
// Threads: pure functions over values.
// Errors: one line that names the extension, its value and the limit.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "block/base/error.h"
#include "formats/qcow2/feature_names.h"

namespace platter::qcow2 {

namespace extension {
inline constexpr std::uint32_t kEnd = 0;
inline constexpr std::uint32_t kBackingFormat = 0xe2792aca;
inline constexpr std::uint32_t kFeatureNames = 0x6803f857;
inline constexpr std::uint32_t kBitmaps = 0x23852875;
inline constexpr std::uint32_t kEncryption = 0x0537be77;
inline constexpr std::uint32_t kDataFile = 0x44415441;
}  // namespace extension

// Bitmaps extension: where the bitmap directory lies. Bounded when parsed.
struct BitmapsExtension {
  std::uint32_t count = 0;
  std::uint64_t directory_size = 0;    // bytes
  std::uint64_t directory_offset = 0;  // bytes, cluster aligned
  bool operator==(const BitmapsExtension&) const = default;
};
inline constexpr std::uint32_t kMaxBitmaps = 65535;
inline constexpr std::uint64_t kMaxBitmapDirectorySize = std::uint64_t{1024} * kMaxBitmaps;

// Full disk encryption header pointer.
struct EncryptionPointer {
  std::uint64_t offset = 0;  // bytes, cluster aligned
  std::uint64_t length = 0;  // bytes
  bool operator==(const EncryptionPointer&) const = default;
};

// An extension that we do not know: kept byte for byte when the header is written again.
struct UnknownExtension {
  std::uint32_t type = 0;
  std::vector<std::byte> data;
  bool operator==(const UnknownExtension&) const = default;
};

struct Extensions {
  std::optional<std::string> backing_format;
  std::optional<std::string> data_file;
  std::vector<FeatureName> feature_names;
  std::optional<BitmapsExtension> bitmaps;
  // There is a bitmaps extension, but a program unaware of bitmaps has written to the image since:
  // it means nothing, and is gone with the next header that is written.
  bool stale_bitmaps = false;
  std::optional<EncryptionPointer> encryption;
  std::vector<UnknownExtension> unknown;
  bool operator==(const Extensions&) const = default;
};

// What the checks of extensions need to know of the header.
struct ExtensionContext {
  std::uint64_t cluster_size = 0;
  std::uint32_t crypt_method = 0;
  bool bitmaps_consistent = false;  // autoclear bit 0
};

// Parses `area`: the bytes from the end of the header fields to the backing file name, or to the
// end of the first cluster when there is none. An area without end marker ends where it is full.
Result<Extensions> parse_extensions(std::span<const std::byte> area,
                                    const ExtensionContext& context);

// The area's bytes, with end marker, padded to a multiple of 8.
std::vector<std::byte> encode_extensions(const Extensions& extensions);

}  // namespace platter::qcow2
