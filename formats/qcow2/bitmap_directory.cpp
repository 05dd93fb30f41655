#include "formats/qcow2/bitmap_directory.h"

#include <unordered_set>

#include "block/base/bytes.h"
#include "block/base/checked.h"

namespace platter::qcow2 {

namespace {

constexpr std::uint8_t kDirtyTracking = 1;
constexpr std::size_t kFixedSize = 24;

Result<void> validate(const BitmapEntry& entry, std::size_t index, const Header& header) {
  if (entry.table_size == 0 || entry.table_size > kMaxBitmapTableEntries) {
    return fail(EINVAL, "bitmap directory entry {}: bitmap_table_size is {}, must be 1 to {}",
                index, entry.table_size, kMaxBitmapTableEntries);
  }
  if (entry.table_offset == 0 || !is_aligned(entry.table_offset, header.cluster_size()) ||
      entry.table_offset >= kMaxHostOffset) {
    return fail(EINVAL,
                "bitmap directory entry {}: bitmap_table_offset {:#x} is not a multiple of the "
                "cluster size {} above 0 and below {:#x}",
                index, entry.table_offset, header.cluster_size(), kMaxHostOffset);
  }
  if (entry.granularity_bits < kMinBitmapGranularityBits ||
      entry.granularity_bits > kMaxBitmapGranularityBits) {
    return fail(EINVAL, "bitmap directory entry {}: granularity_bits is {}, must be {} to {}",
                index, entry.granularity_bits, kMinBitmapGranularityBits,
                kMaxBitmapGranularityBits);
  }
  if ((entry.flags & ~bitmap_flag::kKnown) != 0) {
    return fail(EINVAL, "bitmap directory entry {}: reserved flags {:#x} are set", index,
                entry.flags & ~bitmap_flag::kKnown);
  }
  if (entry.name.empty() || entry.name.size() > kMaxBitmapName) {
    return fail(EINVAL, "bitmap directory entry {}: name_size is {}, must be 1 to {}", index,
                entry.name.size(), kMaxBitmapName);
  }
  const std::uint64_t bytes = std::uint64_t{entry.table_size} << header.cluster_bits;
  if (bytes > kMaxBitmapBytes) {
    return fail(EINVAL, "bitmap directory entry {}: {} table entries make {} bytes, at most {}",
                index, entry.table_size, bytes, kMaxBitmapBytes);
  }
  // bytes * 8 << granularity_bits is at most 2^63.
  if ((entry.flags & bitmap_flag::kInUse) == 0 && header.size > (bytes * 8)
                                                                    << entry.granularity_bits) {
    return fail(EINVAL,
                "bitmap directory entry {}: {} table entries do not cover a disk of {} bytes",
                index, entry.table_size, header.size);
  }
  return {};
}

}  // namespace

Result<std::vector<BitmapEntry>> parse_bitmap_directory(std::span<const std::byte> bytes,
                                                        const BitmapsExtension& extension,
                                                        const Header& header) {
  std::vector<BitmapEntry> entries;
  std::unordered_set<std::string> names;
  Reader in(bytes);
  while (in.remaining() != 0) {
    const std::size_t index = entries.size();
    if (index == extension.count) {
      return fail(EINVAL, "bitmap directory has more than the {} entries of nb_bitmaps",
                  extension.count);
    }
    const std::size_t start = in.position();
    BitmapEntry entry;
    entry.table_offset = in.be<std::uint64_t>();
    entry.table_size = in.be<std::uint32_t>();
    entry.flags = in.be<std::uint32_t>();
    const auto type = in.be<std::uint8_t>();
    entry.granularity_bits = in.be<std::uint8_t>();
    const auto name_size = in.be<std::uint16_t>();
    const auto extra_size = in.be<std::uint32_t>();
    const auto extra = in.bytes(extra_size);
    entry.name = text_of(in.bytes(name_size));
    in.skip(align_up(in.position() - start, 8) - (in.position() - start));
    if (!in.ok()) {
      return fail(EINVAL, "bitmap directory entry {} is longer than the directory of {} bytes",
                  index, bytes.size());
    }
    if (type != kDirtyTracking) {
      return fail(EINVAL, "bitmap directory entry {}: unknown type {}", index, type);
    }
    entry.extra.assign(extra.begin(), extra.end());
    auto valid = validate(entry, index, header);
    PLATTER_TRY(valid);
    if (!names.insert(entry.name).second) {
      return fail(EINVAL, "bitmap directory entry {}: its name is there twice", index);
    }
    entries.push_back(std::move(entry));
  }
  if (entries.size() != extension.count) {
    return fail(EINVAL, "bitmap directory has {} entries, nb_bitmaps says {}", entries.size(),
                extension.count);
  }
  return entries;
}

std::vector<std::byte> encode_bitmap_directory(const std::vector<BitmapEntry>& entries) {
  std::vector<std::byte> out;
  for (const BitmapEntry& entry : entries) {
    const std::size_t start = out.size();
    out.resize(start + align_up(kFixedSize + entry.extra.size() + entry.name.size(), 8));
    Writer w{std::span(out).subspan(start)};
    w.be(entry.table_offset);
    w.be(entry.table_size);
    w.be(entry.flags);
    w.be(kDirtyTracking);
    w.be(static_cast<std::uint8_t>(entry.granularity_bits));
    w.be(static_cast<std::uint16_t>(entry.name.size()));
    w.be(static_cast<std::uint32_t>(entry.extra.size()));
    w.bytes(entry.extra);
    w.bytes(std::as_bytes(std::span(entry.name)));
  }
  return out;
}

}  // namespace platter::qcow2
