#include "formats/qcow2/bitmap_store.h"

#include <algorithm>

#include "block/base/bytes.h"
#include "block/base/checked.h"
#include "formats/qcow2/storage_io.h"

namespace platter::qcow2 {
namespace {

constexpr std::uint64_t kAllOnes = 1;
constexpr std::uint64_t kReserved = 0xff00'0000'0000'01fe;
constexpr std::uint64_t kStorePiece = std::uint64_t{1} << 20;

Result<void> check_entry(const BitmapEntry& bitmap, std::size_t index, std::uint64_t entry,
                         const Geometry& g, std::uint64_t file_end) {
  const std::uint64_t offset = entry & kOffsetMask;
  if ((entry & kReserved) != 0 || (offset != 0 && (entry & kAllOnes) != 0)) {
    return fail(EINVAL, "bitmap '{}': bitmap table entry {} is {:#x}: reserved bits are set",
                bitmap.name, index, entry);
  }
  if (g.in_cluster(offset) != 0) {
    return fail(EINVAL,
                "bitmap '{}': bitmap table entry {}: offset {:#x} is not a multiple of the cluster "
                "size {}",
                bitmap.name, index, offset, g.cluster_size());
  }
  if (offset >= file_end) {
    return fail(EINVAL, "bitmap '{}': bitmap table entry {}: offset {:#x} is behind the file's end",
                bitmap.name, index, offset);
  }
  return {};
}

}  // namespace

std::uint64_t bitmap_table_entries(std::uint64_t size, unsigned granularity_bits,
                                   std::uint64_t cluster_size) {
  const std::uint64_t bits = div_round_up(size, std::uint64_t{1} << granularity_bits);
  return std::max<std::uint64_t>(1, div_round_up(div_round_up(bits, 8), cluster_size));
}

Task<Result<std::vector<std::uint64_t>>> read_bitmap_table(BlockNode& file, const Geometry& g,
                                                           const BitmapEntry& entry) {
  const std::uint64_t file_end = align_up(file.size(), g.cluster_size());
  if (entry.table_offset >= file_end ||
      std::uint64_t{entry.table_size} * 8 > file_end - entry.table_offset) {
    co_return fail(
        EINVAL,
        "bitmap '{}': bitmap_table_offset {:#x} and bitmap_table_size {} reach behind the "
        "file's end",
        entry.name, entry.table_offset, entry.table_size);
  }
  auto table = co_await read_table(file, "bitmap table", entry.table_offset, entry.table_size);
  if (!table) co_return forward_error(table, "bitmap '{}'", entry.name);
  std::vector<std::uint64_t> named;
  for (std::size_t i = 0; i < table->size(); ++i) {
    const Result<void> valid = check_entry(entry, i, (*table)[i], g, file_end);
    PLATTER_CO_TRY(valid);
    if (const std::uint64_t offset = (*table)[i] & kOffsetMask) named.push_back(offset);
  }
  std::sort(named.begin(), named.end());
  const auto twice = std::adjacent_find(named.begin(), named.end());
  if (twice != named.end()) {
    co_return fail(EINVAL, "bitmap '{}': two bitmap table entries name the cluster at {:#x}",
                   entry.name, *twice);
  }
  co_return table;
}

Task<Result<std::unique_ptr<DirtyBitmap>>> load_bitmap(BlockNode& file, const Geometry& g,
                                                       const BitmapEntry& entry,
                                                       std::uint64_t size) {
  const std::uint64_t wanted = bitmap_table_entries(size, entry.granularity_bits, g.cluster_size());
  if (entry.table_size != wanted) {
    co_return fail(EINVAL, "bitmap '{}': bitmap_table_size is {}, a disk of {} bytes needs {}",
                   entry.name, entry.table_size, size, wanted);
  }
  auto table = co_await read_bitmap_table(file, g, entry);
  PLATTER_CO_TRY(table);
  auto bits = std::make_unique<DirtyBitmap>(size, entry.granularity_bits);
  const std::uint64_t cluster = g.cluster_size();
  Buffer buffer;
  for (std::size_t i = 0; i < table->size();) {
    const std::uint64_t first = i * cluster;
    const std::uint64_t offset = (*table)[i] & kOffsetMask;
    if (offset == 0) {
      if ((*table)[i] == kAllOnes) bits->load_ones(first, cluster);
      ++i;
      continue;
    }
    // Neighbours in one request.
    std::size_t count = 1;
    while (i + count < table->size() && (count + 1) * cluster <= kStorePiece &&
           (*table)[i + count] == offset + count * cluster) {
      ++count;
    }
    const std::uint64_t length = std::min(count * cluster, bits->bytes() - first);
    if (buffer.size() == 0) buffer = Buffer(std::max(kStorePiece, cluster));
    const std::span<std::byte> bytes = buffer.span(0, length);
    auto read = co_await read_padded(file, offset, bytes);
    if (!read) co_return forward_error(read, "could not read bitmap '{}'", entry.name);
    bits->load(first, bytes);
    i += count;
  }
  co_return std::move(bits);
}

Task<Result<void>> store_bitmap(Core& core, HostClusters& clusters, const DirtyBitmap& bits,
                                BitmapEntry& entry, Placed& placed) {
  const Geometry& g = core.geometry;
  const std::uint64_t cluster = g.cluster_size();
  std::vector<std::uint64_t> table(
      bitmap_table_entries(bits.size(), entry.granularity_bits, cluster));
  std::vector<std::uint64_t> dirty;
  for (std::uint64_t i = 0; i < table.size(); ++i) {
    if (bits.any(i * cluster, cluster)) dirty.push_back(i);
  }
  Buffer buffer;
  for (std::size_t at = 0; at < dirty.size();) {
    const std::uint64_t most = std::max<std::uint64_t>(1, kStorePiece / cluster);
    auto place = co_await clusters.reserve(std::min<std::uint64_t>(most, dirty.size() - at));
    PLATTER_CO_TRY(place);
    const std::uint64_t count = place->count();
    if (buffer.size() < count * cluster) buffer = Buffer(count * cluster);
    for (std::uint64_t i = 0; i < count; ++i) {
      bits.store(dirty[at + i] * cluster, buffer.span(i * cluster, cluster));
      table[dirty[at + i]] = place->host() + i * cluster;
    }
    const std::uint64_t host = place->host();
    placed.places.push_back(std::move(*place));
    auto written = co_await core.file->write(host, IoVec(buffer.span(0, count * cluster)));
    PLATTER_CO_TRY(written);
    at += count;
  }
  auto place = co_await clusters.reserve_exactly(g.clusters_for(table.size() * 8));
  PLATTER_CO_TRY(place);
  const Buffer bytes = Buffer::zeroed(place->count() * cluster);
  for (std::size_t i = 0; i < table.size(); ++i) store_be(bytes.data() + i * 8, table[i]);
  entry.table_offset = place->host();
  entry.table_size = static_cast<std::uint32_t>(table.size());
  placed.places.push_back(std::move(*place));
  auto written = co_await core.file->write(entry.table_offset, bytes.iov());
  co_return written;
}

}  // namespace platter::qcow2
