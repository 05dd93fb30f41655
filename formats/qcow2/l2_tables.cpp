#include "formats/qcow2/l2_tables.h"

#include <algorithm>
#include <thread>

#include "block/base/checked.h"
#include "formats/qcow2/host_clusters.h"
#include "formats/qcow2/storage_io.h"

namespace platter::qcow2 {
namespace {

constexpr std::uint64_t kL1Piece = 64;             // entries: a sector
constexpr std::uint64_t kL1ReadPiece = 128 << 10;  // entries: 1 MiB
constexpr std::uint64_t kDefaultL2Bytes = std::uint64_t{32} << 20;
constexpr std::uint64_t kLargeSlice = 64 << 10;  // where the cache holds all tables anyway
constexpr std::uint64_t kSmallSlice = 4 << 10;   // where look-ups miss: what one miss reads
constexpr std::uint64_t kMaxSlices = std::uint64_t{4} << 20;
constexpr std::uint64_t kMinL2Slices = 2;
constexpr std::uint64_t kMaxShownAgain = std::uint64_t{1} << 20;  // L2 entries
constexpr std::uint64_t kComparedAtOnce = 64 << 10;               // L1 entries

// As C writes "%#x": nothing in front of a zero.
std::string hex(std::uint64_t number) { return number == 0 ? "0" : fmt::format("{:#x}", number); }

}  // namespace

// Opening ----------------------------------------------------------------------------------------

void L2Tables::configure_slices(CacheSizes sizes) {
  const Geometry& g = core_.geometry;
  const std::uint64_t all = l1_.size() << g.cluster_bits;
  const std::uint64_t bytes = sizes.bytes != 0 ? sizes.bytes : kDefaultL2Bytes;
  std::uint64_t slice = sizes.entry_bytes != 0 ? sizes.entry_bytes
                        : all <= bytes         ? kLargeSlice
                                               : kSmallSlice;
  slice = std::min(slice, g.cluster_size());
  while (slice < g.cluster_size() && all / slice > kMaxSlices) slice *= 2;
  slice_entries_ = slice >> g.l2_entry_bits();
  slice_shift_ = g.cluster_bits + static_cast<unsigned>(std::countr_zero(slice_entries_));
}

Task<Result<void>> L2Tables::open(CacheSizes sizes, std::function<Task<Result<void>>()> clean) {
  L1Table table(core_.header.l1_size);
  const auto take = [&table](std::uint64_t i, std::uint64_t entry) { table.fill(i, entry); };
  auto read = co_await stream_l1(core_.header.l1_table_offset, table.size(), take);
  PLATTER_CO_TRY(read);
  MutexLock lock(core_.mutex());
  l1_ = std::move(table);
  l1_table_offset_ = core_.header.l1_table_offset;
  dirty_l1_.clear();
  repeats_.store(Repeats::kUnknown);
  configure_slices(sizes);
  const std::uint64_t slice_bytes = slice_entries_ << core_.geometry.l2_entry_bits();
  const std::uint64_t bytes = sizes.bytes != 0 ? sizes.bytes : kDefaultL2Bytes;
  const std::uint64_t count = l1_.size() * (core_.geometry.cluster_size() / slice_bytes);
  TableCache::Config config{
      .slice_bytes = slice_bytes,
      .slice_count = count,
      .capacity = std::max(kMinL2Slices, std::min(count, bytes / slice_bytes)),
      .load_event = FaultEvent::kL2Load};
  cache_.configure(
      config, *core_.file, [this](std::uint64_t slice) { return locate(slice); }, std::move(clean));
  co_return {};
}

Task<Result<void>> L2Tables::stream_l1(
    std::uint64_t offset, std::uint64_t entries,
    const std::function<void(std::uint64_t, std::uint64_t)>& take) {
  const Buffer buffer(std::min(entries, kL1ReadPiece) * 8);
  for (std::uint64_t first = 0; first < entries; first += kL1ReadPiece) {
    const std::uint64_t count = std::min(kL1ReadPiece, entries - first);
    // (The checker also opens an image whose table has been cut off.)
    auto fetched = co_await read_padded(*core_.file, offset + first * 8, buffer.span(0, count * 8));
    if (!fetched) co_return forward_error(fetched, "could not read the L1 table");
    for (std::uint64_t i = 0; i < count; ++i)
      take(first + i, load_be<std::uint64_t>(buffer.data() + i * 8));
  }
  co_return {};
}

Task<Result<std::vector<std::uint64_t>>> L2Tables::read_l1(std::uint64_t offset,
                                                           std::uint64_t entries) {
  std::vector<std::uint64_t> table(entries);
  const auto take = [&table](std::uint64_t i, std::uint64_t entry) { table[i] = entry; };
  auto read = co_await stream_l1(offset, entries, take);
  PLATTER_CO_TRY(read);
  co_return table;
}

void L2Tables::replace_l1(std::uint64_t offset, const std::vector<std::uint64_t>& entries) {
  l1_table_offset_ = offset;
  l1_ = L1Table(entries.size());
  for (std::size_t i = 0; i < entries.size(); ++i) l1_.fill(i, entries[i]);
  dirty_l1_.clear();
  repeats_.store(Repeats::kUnknown);
}

void L2Tables::set_l1(std::uint64_t i, std::uint64_t entry) {
  l1_.store(i, entry);
  dirty_l1_.insert(i / kL1Piece);
}

std::vector<L2Tables::L1Piece> L2Tables::take_dirty_l1() {
  std::vector<L1Piece> pieces;
  pieces.reserve(dirty_l1_.size());
  for (const std::uint64_t piece : dirty_l1_) {
    const std::uint64_t first = piece * kL1Piece;
    const std::uint64_t count = std::min(kL1Piece, l1_.size() - first);
    L1Piece one{first, Buffer(count * 8)};
    for (std::uint64_t i = 0; i < count; ++i)
      store_be(one.bytes.data() + i * 8, l1_.load(first + i));
    pieces.push_back(std::move(one));
  }
  dirty_l1_.clear();
  return pieces;
}

void L2Tables::put_back(const std::vector<L1Piece>& pieces) {
  for (const L1Piece& piece : pieces) dirty_l1_.insert(piece.first / kL1Piece);
}

// Among so many neighbours at a time, so that it takes little memory: a table may come again once
// in each such part, of which L1 has 64 at most.
bool L2Tables::find_repeats() const {
  const std::uint64_t most = kMaxShownAgain >> core_.geometry.l2_bits();
  std::uint64_t again = 0;
  std::vector<std::uint64_t> tables;
  for (std::uint64_t i = 0; i < l1_.size() && again <= most;) {
    tables.clear();
    for (const std::uint64_t end = std::min(i + kComparedAtOnce, l1_.size()); i < end; ++i) {
      if (const std::uint64_t table = l1_offset(l1_.load(i)); table != 0) tables.push_back(table);
    }
    if (!std::ranges::is_sorted(tables)) std::ranges::sort(tables);
    for (std::size_t k = 1; k < tables.size(); ++k) {
      if (tables[k] == tables[k - 1]) ++again;
    }
  }
  repeats_.store(again > most ? Repeats::kYes : Repeats::kNo, std::memory_order_relaxed);
  return again > most;
}

// Looking up -------------------------------------------------------------------------------------

std::uint64_t L2Tables::locate(std::uint64_t slice) const {
  const std::uint64_t per_table = slices_per_table();
  const std::uint64_t i = slice / per_table;
  if (i >= l1_.size()) return 0;
  const std::uint64_t table = l1_offset(l1(i));
  if (table == 0 || core_.geometry.in_cluster(table) != 0) return 0;
  return table + (slice % per_table) * cache_.slice_bytes();
}

bool L2Tables::try_lookup(std::uint64_t offset, std::uint64_t length, bool for_write,
                          Mapping& mapping) const {
  const bool in_place = for_write && ours(offset);
  const TableCache::Slice* slice = cache_.peek(slice_of(offset));
  if (slice) [[likely]]
    return answer(*slice, offset, length, in_place, mapping);
  const Geometry& g = core_.geometry;
  std::uint64_t i = g.l1_index(offset);
  if (i < l1_.size() && l1_offset(l1(i)) != 0) return false;
  // Nothing here, nor in the tables that follow without one.
  std::uint64_t end = (i + 1) * g.l2_coverage();
  while (end - offset < length && ++i < l1_.size() && l1_offset(l1(i)) == 0) end += g.l2_coverage();
  mapping = Mapping{};
  mapping.length = std::min(length, end - offset);
  return true;
}

bool L2Tables::answer(const TableCache::Slice& slice, std::uint64_t offset, std::uint64_t length,
                      bool ours, Mapping& mapping) const {
  const Geometry& g = core_.geometry;
  const std::uint64_t in_cluster = g.in_cluster(offset);
  mapping = Mapping{};
  const L2Entry whole = entry(slice, entry_of(offset));
  const ClusterState state = classify(g, whole.word, whole.bitmap);
  if (std::holds_alternative<InvalidEntry>(state)) return false;
  if (const auto* packed = std::get_if<CompressedCluster>(&state)) {
    mapping.kind = Mapping::Kind::kCompressed;
    mapping.node = core_.file.get();
    mapping.host_offset = packed->host;
    mapping.packed_length = packed->length;
    mapping.unit_offset = offset - in_cluster;
    mapping.unit_length = g.cluster_size();
    mapping.length = std::min(length, g.cluster_size() - in_cluster);
    return true;
  }
  mapping.node = &core_.data_node();
  if (g.extended_l2) {
    answer_units(slice, offset, length, mapping);
  } else {
    answer_clusters(slice, whole.word, state, offset, length, mapping);
  }
  mapping.in_place = mapping.in_place && ours;
  return !mapping.in_place || g.external_data ||
         !core_.metadata.overlaps(mapping.host_offset, mapping.length);
}

void L2Tables::answer_clusters(const TableCache::Slice& slice, std::uint64_t word,
                               const ClusterState& state, std::uint64_t offset,
                               std::uint64_t length, Mapping& mapping) const {
  const Geometry& g = core_.geometry;
  const std::uint64_t first = entry_of(offset);
  const std::uint64_t in_cluster = g.in_cluster(offset);
  std::uint64_t step = g.cluster_size();  // from one entry to the next of the same run
  if (const auto* data = std::get_if<DataCluster>(&state)) {
    mapping.kind = Mapping::Kind::kData;
    mapping.host_offset = data->host + in_cluster;
    mapping.in_place = data->copied;
  } else if (const auto* zero = std::get_if<ZeroCluster>(&state)) {
    mapping.kind = Mapping::Kind::kZero;
    mapping.has_host = zero->host != 0 || (g.external_data && zero->copied);
    mapping.host_offset = zero->host + in_cluster;
    if (!mapping.has_host) step = 0;
  } else {
    step = 0;
  }
  std::uint64_t covered = g.cluster_size() - in_cluster;
  for (std::uint64_t i = first + 1; covered < length && i < slice_entries_; ++i) {
    if (slice.word(i) != word + (i - first) * step) break;
    covered += g.cluster_size();
  }
  mapping.length = std::min(length, covered);
}

void L2Tables::answer_units(const TableCache::Slice& slice, std::uint64_t offset,
                            std::uint64_t length, Mapping& mapping) const {
  const Geometry& g = core_.geometry;
  const auto kind_of = [](const ClusterUnits& units, std::uint64_t i) {
    if (((units.allocated >> i) & 1) != 0) return Mapping::Kind::kData;
    return ((units.zero >> i) & 1) != 0 ? Mapping::Kind::kZero : Mapping::Kind::kBacking;
  };
  const std::uint64_t first = entry_of(offset);
  const std::uint64_t in_cluster = g.in_cluster(offset);
  std::uint64_t unit = in_cluster / g.subcluster_size();
  ClusterUnits units = units_of(g, entry(slice, first));
  const ClusterUnits start = units;
  mapping.kind = kind_of(units, unit);
  mapping.has_host = mapping.kind != Mapping::Kind::kData && start.has_host;
  mapping.in_place = mapping.kind == Mapping::Kind::kData && start.copied;
  mapping.host_offset = start.host + in_cluster;
  const bool placed = mapping.kind == Mapping::Kind::kData || mapping.has_host;
  std::uint64_t covered = g.subcluster_size() - in_cluster % g.subcluster_size();
  for (std::uint64_t i = first; covered < length; covered += g.subcluster_size()) {
    if (++unit == kSubclusters) {
      if (++i == slice_entries_) break;
      unit = 0;
      units = units_of(g, entry(slice, i));
      if (!units.valid || units.compressed) break;
      if (placed && (!units.has_host || units.copied != start.copied ||
                     units.host != start.host + ((i - first) << g.cluster_bits))) {
        break;
      }
      if (mapping.kind != Mapping::Kind::kData && units.has_host != start.has_host) break;
    }
    if (kind_of(units, unit) != mapping.kind) break;
  }
  mapping.length = std::min(length, covered);
}

Task<Result<Mapping>> L2Tables::lookup(std::uint64_t offset, std::uint64_t length, bool for_write) {
  while (true) {
    Mapping mapping;
    if (try_lookup(offset, length, for_write, mapping)) co_return mapping;
    const bool in_place = for_write && ours(offset);
    auto pin = co_await cache_.load(slice_of(offset));
    PLATTER_CO_TRY(pin);
    TableCache::Slice* slice = pin->get();
    if (slice && answer(*slice, offset, length, in_place, mapping)) co_return mapping;
    // No table where one was a moment ago is not wrong; a table at a wrong place or a wrong entry
    // is.
    const std::uint64_t i = core_.geometry.l1_index(offset);
    if (!slice && core_.geometry.in_cluster(l1_offset(l1(i))) == 0) continue;
    auto error = co_await complain(offset, slice, for_write);
    co_return std::unexpected<Error>(error);
  }
}

Task<Error> L2Tables::complain(std::uint64_t offset, TableCache::Slice* slice, bool for_write) {
  const Geometry& g = core_.geometry;
  const std::uint64_t i = g.l1_index(offset);
  const std::uint64_t table = l1_offset(l1(i));
  std::string what;
  if (!slice) {
    what = fmt::format("L2 table offset {} unaligned (L1 index: {})", hex(table), hex(i));
  } else {
    const std::uint64_t first = entry_of(offset);
    const L2Entry whole = entry(*slice, first);
    const ClusterUnits units = units_of(g, whole);
    const std::string place =
        fmt::format("(L2 offset: {}, L2 index: {})", hex(table), hex(g.l2_index(offset)));
    if (units.valid) {
      // It is this cluster or one that follows it in the file.
      std::uint64_t cluster = g.cluster_index(units.host);
      const std::uint64_t end = cluster + slice_entries();
      while (cluster < end && !core_.metadata.contains(cluster)) ++cluster;
      auto overlapping = co_await core_.overlap(cluster);
      co_return overlapping;
    }
    if (g.extended_l2 && g.in_cluster(whole.word & kOffsetMask) == 0) {
      what = fmt::format("Invalid L2 entry {} {}", hex(whole.word), place);
    } else if (for_write && (whole.word & kCopied) != 0) {
      what = fmt::format("Data cluster offset {} unaligned (guest offset: {})",
                         hex(whole.word & kOffsetMask), hex(g.cluster_start(offset)));
    } else {
      what = fmt::format("Cluster allocation offset {} unaligned {}", hex(whole.word & kOffsetMask),
                         place);
    }
  }
  auto error = co_await core_.corruption(std::move(what), true);
  co_return error;
}

// Changing ---------------------------------------------------------------------------------------

TableCache::Slice* L2Tables::writable_slice(std::uint64_t offset) const {
  const std::uint64_t i = core_.geometry.l1_index(offset);
  if (!l1_copied(l1(i)) || l1_offset(l1(i)) == 0) return nullptr;
  return cache_.peek(slice_of(offset));
}

L2Entry L2Tables::entry(const TableCache::Slice& slice, std::uint64_t index) const {
  if (!core_.geometry.extended_l2) return {slice.word(index), 0};
  while (true) {
    const std::uint32_t before = slice.version.load();
    if ((before & 1) != 0) {
      std::this_thread::yield();
      continue;
    }
    const L2Entry both{slice.word(index * 2), slice.word(index * 2 + 1)};
    if (slice.version.load() == before) return both;
  }
}

void L2Tables::set_copied(TableCache::Slice& slice, std::uint64_t index, bool copied) {
  const std::uint64_t size = core_.geometry.l2_entry_size();
  const std::uint64_t i = index * (size / 8);
  const std::uint64_t word = slice.word(i);
  slice.set_word_quietly(i, copied ? word | kCopied : word & ~kCopied);
  cache_.mark_dirty(slice, index * size, 8);
}

std::vector<std::uint64_t> L2Tables::freeze() {
  std::vector<std::uint64_t> entries(l1_.size());
  for (std::uint64_t i = 0; i < l1_.size(); ++i) {
    entries[i] = l1(i) & ~kCopied;
    if (entries[i] != l1(i)) set_l1(i, entries[i]);
  }
  return entries;
}

void L2Tables::set_entry(TableCache::Slice& slice, std::uint64_t index, L2Entry entry) {
  if (core_.geometry.extended_l2) {
    slice.version.fetch_add(1);
    slice.set_word(index * 2, entry.word);
    slice.set_word(index * 2 + 1, entry.bitmap);
    slice.version.fetch_add(1);
  } else {
    slice.set_word(index, entry.word);
  }
  const std::uint64_t size = core_.geometry.l2_entry_size();
  cache_.mark_dirty(slice, index * size, size);
}

}  // namespace platter::qcow2
