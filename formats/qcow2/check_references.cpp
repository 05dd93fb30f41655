// The counting pass of the checker: every reference that the image's tables make.
#include <algorithm>
#include <optional>

#include "block/base/bytes.h"
#include "formats/qcow2/checker.h"
#include "formats/qcow2/storage_io.h"
#include "formats/qcow2/table_stream.h"

namespace platter::qcow2 {

bool Checker::count(std::uint64_t offset, std::uint64_t length, std::uint64_t times) {
  if (length == 0) return true;
  // The last cluster need not be there in full, but the reference must reach into the file.
  const std::uint64_t size = file_.size();
  const std::uint64_t limit =
      std::min(align_up(std::min(size, kMaxHostOffset * 2), g_.cluster_size()), kMaxHostOffset * 2);
  const bool inside = range_within(offset, length, limit);
  if (!inside) {
    say("ERROR: counting reference for region exceeding the end of the file by one cluster or "
        "more: offset {:#x} size {:#x}",
        offset, length);
    ++result_.corruptions;
    uncounted_ = true;
    if (!repairs()) return false;
    // What is there of it is in use.
    claim_outside(offset, length, times);
    if (offset >= limit) return false;
    length = std::min(length, limit - offset);
  }
  const std::uint64_t last = g_.cluster_index(offset + length - 1);
  for (std::uint64_t cluster = g_.cluster_index(offset); cluster <= last; ++cluster) {
    bool overflow = false;
    const std::uint64_t now = counts_.add(cluster, times, g_.max_refcount(), overflow);
    if (now > 1) shared_ = true;
    if (overflow) [[unlikely]] {
      ++result_.corruptions;
      if (!overflowed_.insert(cluster).second) continue;
      say("ERROR: overflow cluster offset={:#x}", cluster << g_.cluster_bits);
      say("Use qemu-img amend to increase the refcount entry width or qemu-img convert to create a "
          "clean copy if the image cannot be opened for writing");
    }
  }
  return inside;
}

void Checker::claim_outside(std::uint64_t offset, std::uint64_t length, std::uint64_t times) {
  // (Longer ones are tables, of which nothing is kept.)
  if (offset >= reach() || length > 2 * g_.cluster_size() || !file_.driver().can_grow()) return;
  const std::uint64_t last = g_.cluster_index(offset + length - 1);
  for (std::uint64_t cluster = g_.cluster_index(offset); cluster <= last; ++cluster) {
    bool overflow = false;
    if (cluster >= file_clusters()) outside_.add(cluster, times, g_.max_refcount(), overflow);
  }
}

// No image of such a disk is longer: what leads further leads nowhere, and the file will not grow
// so far.
std::uint64_t Checker::reach() const {
  constexpr std::uint64_t kMaxClusters = std::uint64_t{1} << 25;
  constexpr std::uint64_t kMaxBytes = std::uint64_t{4} << 40;
  const std::uint64_t most = std::min(kMaxClusters << g_.cluster_bits, kMaxBytes);
  const std::uint64_t disks = std::min(header_.size, most) * (snapshots_.size() + 1);
  return std::min(align_up(std::min(file_.size(), most), g_.cluster_size()) + disks, most);
}

bool Checker::count_table(std::uint64_t offset, std::uint64_t length, RefcountMap& kind) {
  if (!count(offset, length)) return false;
  if (length == 0) return true;
  bool overflow = false;
  const std::uint64_t last = g_.cluster_index(offset + length - 1);
  for (std::uint64_t cluster = g_.cluster_index(offset); cluster <= last; ++cluster) {
    kind.grow(cluster + 1);
    kind.add(cluster, 1, std::max<std::uint64_t>(g_.max_refcount(), 2), overflow);
  }
  return true;
}

Task<Result<std::vector<std::uint64_t>>> Checker::count_l1(std::uint64_t offset,
                                                           std::uint64_t entries, Active active) {
  // (What the file's last cluster lacks of it would read as no entries.)
  if (entries != 0 && !range_within(offset, entries * 8, file_.size()))
    gone_ = active == Active::kYes ? kCutOff : kSnapshotGone;
  if (!count_table(offset, entries * 8, fixed_)) co_return std::vector<std::uint64_t>{};
  auto l1 = co_await read_table(file_, "L1 table", offset, entries);
  if (!l1) {
    say("ERROR: I/O error in check_refcounts_l1");
    ++result_.check_errors;
    co_return forward_error(l1);
  }
  for (const Pending& one : pending_in(offset, entries * 8)) {
    (*l1)[(one.offset - offset) / 8] = one.entry;
  }
  // The table becomes the list of L2 tables in place: it can have 4 Mi entries.
  std::size_t found = 0;
  for (const std::uint64_t entry : *l1) {
    if (entry == 0) continue;
    if ((entry & kL1Reserved) != 0) {
      say("ERROR found L1 entry with reserved bits set: {:x}", entry);
      ++result_.corruptions;
      mendable_ = true;
    }
    const std::uint64_t table = l1_offset(entry);
    const bool aligned = g_.in_cluster(table) == 0;
    const bool there =
        aligned ? count_table(table, g_.cluster_size(), l2_) : count(table, g_.cluster_size());
    if (!aligned || !there || in_header_or_l1(table)) mendable_ = true;
    if (!aligned) {
      say("ERROR l2_offset={:x}: Table is not cluster aligned; L1 entry corrupted", table);
      ++result_.corruptions;
      continue;
    }
    if (active == Active::kYes && !l1_copied(entry)) all_copied_ = false;
    if (!there || table == 0) continue;
    if (counts_.get(g_.cluster_index(table)) > 1) l2_repeated_ = true;
    (*l1)[found++] = table;
  }
  l1->resize(found);
  co_return std::move(*l1);
}

// A table that is referenced several times is read once and counted so often: snapshots share most
// of their tables, and a hostile L1 can point everywhere at the same one.
Task<Result<void>> Checker::count_l2_tables(std::vector<std::uint64_t> tables, Active active) {
  std::vector<std::uint32_t> times;
  if (l2_repeated_) {
    std::sort(tables.begin(), tables.end());
    std::size_t distinct = 0;
    for (const std::uint64_t table : tables) {
      if (distinct != 0 && tables[distinct - 1] == table) {
        ++times.back();
      } else {
        tables[distinct++] = table;
        times.push_back(1);
      }
    }
    tables.resize(distinct);
  }
  TableStream stream(file_, g_.cluster_size(), tables);
  Result<void> outcome;
  for (std::size_t i = 0; i < tables.size() && outcome; ++i) {
    if (outcome = go_on(); !outcome) break;
    auto table = co_await stream.next();
    if (!table.read) {
      say("ERROR: I/O error in check_refcounts_l2");
      ++result_.check_errors;
      outcome = std::move(table.read);
      break;
    }
    for (const Pending& one : pending_in(tables[i], g_.cluster_size())) {
      store_be(table.data.data() + (one.offset - tables[i]), one.entry);
    }
    count_l2_table(table.data, times.empty() ? 1 : times[i], active);
  }
  co_await stream.stop();
  co_return outcome;
}

void Checker::count_l2_table(std::span<const std::byte> table, std::uint64_t times, Active active) {
  std::uint64_t next_contiguous = 0;
  const unsigned step = static_cast<unsigned>(g_.l2_entry_size());
  for (std::size_t at = 0; at < table.size(); at += step) {
    const std::byte* entry = table.data() + at;
    if (load_be<std::uint64_t>(entry) == 0 &&
        (step == 8 || load_be<std::uint64_t>(entry + 8) == 0)) {
      continue;
    }
    count_l2_entry(entry, times, active, next_contiguous);
  }
}

void Checker::count_l2_entry(const std::byte* at, std::uint64_t times, Active active,
                             std::uint64_t& next_contiguous) {
  const auto entry = load_be<std::uint64_t>(at);
  const std::uint64_t bitmap = g_.extended_l2 ? load_be<std::uint64_t>(at + 8) : 0;
  const std::uint64_t reserved = l2_reserved_bits(g_, entry);
  if (reserved != 0) {
    say("ERROR found l2 entry with reserved bits set: {:x}", entry);
    ++result_.corruptions;
    mendable_ = true;
  }
  if ((entry & kCompressedBit) != 0) {
    if ((entry & kCopied) != 0) {
      say("ERROR: coffset={:#x}: copied flag must never be set for compressed clusters",
          entry & g_.compressed_offset_mask());
      ++result_.corruptions;
      mendable_ = true;
    }
    if (g_.external_data) {
      say("ERROR compressed cluster {} with data file, entry={:#x}",
          (entry & kOffsetMask) >> g_.cluster_bits, entry);
      ++result_.corruptions;
      mendable_ = true;
      return;
    }
    if (bitmap != 0) {
      say("ERROR compressed cluster {} with non-zero subcluster allocation bitmap, entry={:#x}",
          (entry & kOffsetMask) >> g_.cluster_bits, entry);
      ++result_.corruptions;
      mendable_ = true;
      if (!repairs()) return;
    }
    const ClusterState state = classify(g_, entry & ~kCopied);
    if (const auto* packed = std::get_if<CompressedCluster>(&state)) {
      if (!count(packed->host, packed->length, times)) mendable_ = true;
    } else {
      say("ERROR compressed cluster offset of entry {:x} is too large", entry);
      ++result_.corruptions;
      mendable_ = true;
    }
    if (active == Active::kYes) {
      ++result_.allocated_clusters;
      ++result_.compressed_clusters;
      // Packed clusters share sectors with their neighbours: fragmented by nature.
      ++result_.fragmented_clusters;
    }
    return;
  }

  const std::uint64_t host = entry & kOffsetMask;
  const auto allocated = static_cast<std::uint32_t>(bitmap);
  const bool has_host = host != 0 || (g_.external_data && (entry & kCopied) != 0);
  if (!has_host) {
    if (allocated != 0) {
      say("ERROR: Unallocated cluster has non-zero subcluster allocation map");
      ++result_.corruptions;
      mendable_ = true;
    }
    return;
  }
  if ((allocated & static_cast<std::uint32_t>(bitmap >> 32)) != 0) {
    say("ERROR offset={:x}: Allocated cluster has corrupted subcluster allocation bitmap", host);
    ++result_.corruptions;
    mendable_ = true;
    // (QEMU calls what it names a leak. A repair takes it for what it is: in use.)
    if (!repairs()) return;
  }
  if (g_.in_cluster(host) != 0) {
    const bool has_data =
        g_.extended_l2 ? allocated != 0 : g_.version < 3 || (entry & kZeroBit) == 0;
    say("ERROR offset={:x}: {} cluster is not properly aligned; L2 entry corrupted.", host,
        has_data ? "Data" : "Preallocated");
    ++result_.corruptions;
    mendable_ = true;
  }
  if (active == Active::kYes) {
    ++result_.allocated_clusters;
    if (next_contiguous != 0 && host != next_contiguous) ++result_.fragmented_clusters;
    next_contiguous = host + g_.cluster_size();
    if ((entry & kCopied) == 0) all_copied_ = false;
  }
  if (!g_.external_data && !count(host, g_.cluster_size(), times)) mendable_ = true;
}

Task<Result<void>> Checker::count_snapshots() {
  std::vector<std::uint64_t> tables;
  if (g_.external_data && !snapshots_.empty()) {
    say("ERROR {} snapshots in image with data file", snapshots_.size());
    ++result_.corruptions;
  }
  for (const Snapshot& s : snapshots_) {
    if (s.incomplete) {
      say("{} snapshot table entry {} is incomplete", request_.fix_errors ? "Repairing" : "ERROR",
          &s - snapshots_.data());
      ++result_.corruptions;
    }
    if (g_.in_cluster(s.l1_table_offset) != 0) {
      say("ERROR snapshot {} ({}) l1_offset={:#x}: L1 table is not cluster aligned; snapshot table "
          "entry corrupted",
          s.id, s.name, s.l1_table_offset);
      ++result_.corruptions;
      gone_ = kSnapshotGone;
      continue;
    }
    if (s.l1_size > kMaxL1Bytes / 8) {
      say("ERROR snapshot {} ({}) l1_size={:#x}: L1 table is too large; snapshot table entry "
          "corrupted",
          s.id, s.name, s.l1_size);
      ++result_.corruptions;
      gone_ = kSnapshotGone;
      continue;
    }
    // Following tables that lie in each other could take for ever, and repairing by what half of
    // them say would free what the other half uses.
    const std::uint64_t clusters = g_.clusters_for(std::uint64_t{s.l1_size} * 8);
    const std::uint64_t first = g_.cluster_index(s.l1_table_offset);
    bool overlaps = false;
    for (std::uint64_t i = 0; i < clusters && !overlaps; ++i)
      overlaps = counts_.get(first + i) != 0;
    if (overlaps) {
      say("ERROR snapshot {} ({}) l1_offset={:#x}: L1 table overlaps other metadata or data", s.id,
          s.name, s.l1_table_offset);
      ++result_.corruptions;
      ++result_.check_errors;
      continue;
    }
    auto found = co_await count_l1(s.l1_table_offset, s.l1_size, Active::kNo);
    PLATTER_CO_TRY(found);
    tables.insert(tables.end(), found->begin(), found->end());
  }
  auto counted = co_await count_l2_tables(std::move(tables), Active::kNo);
  co_return counted;
}

Task<Result<void>> Checker::count_bitmaps() {
  if (!header_.extensions.bitmaps) co_return Result<void>{};
  const BitmapsExtension extension = *header_.extensions.bitmaps;
  if (!count_table(extension.directory_offset, extension.directory_size, fixed_))
    co_return Result<void>{};
  auto directory = co_await read_bitmap_directory(file_, header_);
  if (!directory) {
    say("ERROR {}", directory.error().message());
    ++result_.corruptions;
    ++result_.check_errors;
    co_return Result<void>{};
  }
  for (const BitmapEntry& bitmap : *directory) {
    if (!count_table(bitmap.table_offset, std::uint64_t{bitmap.table_size} * 8, fixed_)) continue;
    auto table = co_await read_table(file_, "bitmap table", bitmap.table_offset, bitmap.table_size);
    if (!table) {
      ++result_.check_errors;
      co_return forward_error(table);
    }
    for (const std::uint64_t entry : *table) {
      constexpr std::uint64_t kReservedTableBits = 0xff00'0000'0000'01fe;
      const std::uint64_t offset = entry & kOffsetMask;
      if ((entry & kReservedTableBits) != 0 || g_.in_cluster(offset) != 0 ||
          (offset != 0 && (entry & 1) != 0)) {
        say("ERROR bitmap table entry {:x} of bitmap at {:#x} is corrupted", entry,
            bitmap.table_offset);
        ++result_.corruptions;
        continue;
      }
      if (offset != 0) count(offset, g_.cluster_size());
    }
  }
  co_return Result<void>{};
}

Task<Result<void>> Checker::count_refcount_blocks(bool fix) {
  for (std::size_t i = 0; i < refcount_table_.size(); ++i) {
    const std::uint64_t entry = refcount_table_[i];
    if (entry == 0) continue;
    const std::uint64_t offset = entry & kRefTableOffsetMask;
    if (offset != entry) {
      say("ERROR refcount table entry {} has reserved bits set", i);
      ++result_.corruptions;
      need_rebuild_ = true;
      continue;
    }
    if (g_.in_cluster(offset) != 0) {
      say("ERROR refcount block {} is not cluster aligned; refcount table entry corrupted", i);
      ++result_.corruptions;
      need_rebuild_ = true;
      continue;
    }
    if (g_.cluster_index(offset) >= file_clusters()) {
      // QEMU enlarges the file to reach the block; a new structure is the smaller surprise.
      say("{} refcount block {} is outside image", fix ? "Repairing" : "ERROR", i);
      ++result_.corruptions;
      if (fix) need_rebuild_ = true;
      continue;
    }
    count(offset, g_.cluster_size());
    const std::uint64_t references = counts_.get(g_.cluster_index(offset));
    if (references != 1) {
      say("ERROR refcount block {} refcount={}", i, references);
      ++result_.corruptions;
      need_rebuild_ = true;
    } else if (repairs() && overflowed_.contains(g_.cluster_index(offset))) {
      need_rebuild_ = true;
    }
  }
  co_return Result<void>{};
}

Task<Result<void>> Checker::count_references(bool fix) {
  result_.allocated_clusters = 0;
  result_.compressed_clusters = 0;
  result_.fragmented_clusters = 0;
  counts_.clear();
  fixed_.clear();
  l2_.clear();
  outside_.clear();
  overflowed_.clear();
  l2_repeated_ = false;
  count_table(0, g_.cluster_size(), fixed_);
  auto tables = co_await count_l1(header_.l1_table_offset, header_.l1_size, Active::kYes);
  PLATTER_CO_TRY(tables);
  auto step = co_await count_l2_tables(std::move(*tables), Active::kYes);
  PLATTER_CO_TRY(step);
  step = co_await count_snapshots();
  PLATTER_CO_TRY(step);
  count_table(header_.snapshots_offset, snapshot_table_bytes_, fixed_);
  // (The padding of the last entry need not be there.)
  if (snapshot_table_bytes_ != 0 &&
      !range_within(header_.snapshots_offset, snapshot_table_bytes_, file_.size() + 7)) {
    gone_ = kCutOff;
  }
  count(header_.refcount_table_offset, header_.refcount_table_bytes());
  if (const auto& encryption = header_.extensions.encryption) {
    count_table(encryption->offset, encryption->length, fixed_);
  }
  step = co_await count_bitmaps();
  PLATTER_CO_TRY(step);
  step = co_await count_refcount_blocks(fix);
  // What shares a cluster with the refcount table may stay there, the table not.
  const std::uint64_t first = g_.cluster_index(header_.refcount_table_offset);
  const std::uint64_t clusters = header_.refcount_table_bytes() >> g_.cluster_bits;
  for (std::uint64_t i = 0; fix && i < clusters; ++i) {
    if (counts_.get(first + i) > 1 || overflowed_.contains(first + i)) need_rebuild_ = true;
  }
  if (repairs()) shared_tables_ = find_shared_tables();
  co_return step;
}

}  // namespace platter::qcow2
