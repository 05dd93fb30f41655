#include "formats/qcow2/header_extensions.h"

#include <algorithm>

#include "block/base/bytes.h"
#include "block/base/checked.h"

namespace platter::qcow2 {

namespace {

// QEMU keeps the format name in 16 bytes; a longer one would make an image that it refuses.
constexpr std::size_t kMaxBackingFormat = 15;
constexpr std::size_t kMaxDataFile = 1023;

Result<BitmapsExtension> parse_bitmaps(std::span<const std::byte> data,
                                       std::uint64_t cluster_size) {
  Reader in(data);
  BitmapsExtension bitmaps;
  bitmaps.count = in.be<std::uint32_t>();
  const auto reserved = in.be<std::uint32_t>();
  bitmaps.directory_size = in.be<std::uint64_t>();
  bitmaps.directory_offset = in.be<std::uint64_t>();
  if (!in.ok() || in.remaining() != 0) {
    return fail(EINVAL, "bitmaps_ext: Invalid extension length {}, expected 24", data.size());
  }
  if (reserved != 0) {
    return fail(EINVAL, "bitmaps_ext: Reserved field is not zero ({:#x})", reserved);
  }
  if (bitmaps.count > kMaxBitmaps) {
    return fail(EINVAL, "bitmaps_ext: image has {} bitmaps, exceeding the supported maximum of {}",
                bitmaps.count, kMaxBitmaps);
  }
  if (bitmaps.count == 0) {
    return fail(EINVAL, "found bitmaps extension with zero bitmaps");
  }
  if (!is_aligned(bitmaps.directory_offset, cluster_size) || bitmaps.directory_offset == 0) {
    return fail(EINVAL,
                "bitmaps_ext: invalid bitmap directory offset {:#x}, must be a multiple of the "
                "cluster size {}",
                bitmaps.directory_offset, cluster_size);
  }
  if (bitmaps.directory_size > kMaxBitmapDirectorySize) {
    return fail(EINVAL,
                "bitmaps_ext: bitmap directory size ({}) exceeds the maximum supported size ({})",
                bitmaps.directory_size, kMaxBitmapDirectorySize);
  }
  return bitmaps;
}

Result<EncryptionPointer> parse_encryption(std::span<const std::byte> data,
                                           const ExtensionContext& context) {
  constexpr std::uint32_t kLuks = 2;
  if (context.crypt_method != kLuks) {
    return fail(EINVAL, "CRYPTO header extension only expected with LUKS encryption method, not {}",
                context.crypt_method);
  }
  if (data.size() != 16) {
    return fail(EINVAL, "CRYPTO header extension size {}, but expected size 16", data.size());
  }
  Reader in(data);
  EncryptionPointer pointer;
  pointer.offset = in.be<std::uint64_t>();
  pointer.length = in.be<std::uint64_t>();
  if (!is_aligned(pointer.offset, context.cluster_size)) {
    return fail(EINVAL, "Encryption header offset '{}' is not a multiple of cluster size '{}'",
                pointer.offset, context.cluster_size);
  }
  return pointer;
}

Result<void> parse_one(Extensions& out, std::uint32_t type, std::span<const std::byte> data,
                       const ExtensionContext& context) {
  switch (type) {
    case extension::kBackingFormat:
      if (data.size() > kMaxBackingFormat) {
        return fail(EINVAL, "ext_backing_format: len={} too large (>={})", data.size(),
                    kMaxBackingFormat + 1);
      }
      out.backing_format = text_of(data);
      return {};
    case extension::kFeatureNames:
      out.feature_names = parse_feature_names(data);
      return {};
    case extension::kEncryption: {
      auto pointer = parse_encryption(data, context);
      PLATTER_TRY(pointer);
      out.encryption = *pointer;
      return {};
    }
    case extension::kBitmaps: {
      if (!context.bitmaps_consistent) {
        out.stale_bitmaps = true;
        return {};
      }
      auto bitmaps = parse_bitmaps(data, context.cluster_size);
      PLATTER_TRY(bitmaps);
      out.bitmaps = *bitmaps;
      return {};
    }
    case extension::kDataFile:
      if (data.size() > kMaxDataFile) {
        return fail(EINVAL, "External data file name too long: {} bytes, at most {}", data.size(),
                    kMaxDataFile);
      }
      out.data_file = text_of(data);
      return {};
    default:
      out.unknown.push_back({type, {data.begin(), data.end()}});
      return {};
  }
}

void append(std::vector<std::byte>& out, std::uint32_t type, std::span<const std::byte> data) {
  const std::size_t start = out.size();
  out.resize(start + 8 + align_up(data.size(), 8));
  store_be(out.data() + start, type);
  store_be(out.data() + start + 4, static_cast<std::uint32_t>(data.size()));
  std::copy(data.begin(), data.end(), out.begin() + static_cast<std::ptrdiff_t>(start + 8));
}

}  // namespace

Result<Extensions> parse_extensions(std::span<const std::byte> area,
                                    const ExtensionContext& context) {
  Extensions out;
  Reader in(area);
  while (in.remaining() >= 8) {
    const std::size_t at = in.position();
    const auto type = in.be<std::uint32_t>();
    const auto length = in.be<std::uint32_t>();
    if (type == extension::kEnd) break;
    if (length > in.remaining()) {
      return fail(EINVAL,
                  "Header extension too large: type {:#x} at byte {} of the extension area has "
                  "length {}, {} bytes are left",
                  type, at, length, in.remaining());
    }
    const auto data = in.bytes(length);
    auto parsed = parse_one(out, type, data, context);
    PLATTER_TRY(parsed);
    in.skip(std::min<std::size_t>(align_up(std::size_t{length}, 8) - length, in.remaining()));
  }
  return out;
}

std::vector<std::byte> encode_extensions(const Extensions& extensions) {
  std::vector<std::byte> out;
  if (extensions.backing_format) {
    append(out, extension::kBackingFormat, std::as_bytes(std::span(*extensions.backing_format)));
  }
  if (extensions.data_file) {
    append(out, extension::kDataFile, std::as_bytes(std::span(*extensions.data_file)));
  }
  if (extensions.encryption) {
    std::byte data[16];
    Writer w(data);
    w.be(extensions.encryption->offset);
    w.be(extensions.encryption->length);
    append(out, extension::kEncryption, data);
  }
  if (!extensions.feature_names.empty()) {
    append(out, extension::kFeatureNames, encode_feature_names(extensions.feature_names));
  }
  if (extensions.bitmaps) {
    std::byte data[24];
    Writer w(data);
    w.be(extensions.bitmaps->count);
    w.be(std::uint32_t{0});
    w.be(extensions.bitmaps->directory_size);
    w.be(extensions.bitmaps->directory_offset);
    append(out, extension::kBitmaps, data);
  }
  for (const UnknownExtension& e : extensions.unknown) append(out, e.type, e.data);
  append(out, extension::kEnd, {});
  return out;
}

}  // namespace platter::qcow2
