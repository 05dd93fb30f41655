// What a repair does to entries of L1 and L2 tables that cannot be right.
//
// A bit that says nothing is cleared. What leads nowhere is lost: a reader gets zeroes for it, not
// the backing file's data, which was overwritten once. Where two things lie in the same cluster,
// nobody knows whose the bytes are: one gets a copy of them, and no write to it hits the other any
// more. An L2 table moves before it is mended; what lies in one of the header's tables moves, too.
// Where two of the header's tables do so, nothing is mended.
// Places that nobody refers to are written first, then a refcount structure that counts them, and
// only then entries that lead there; all else only takes references away, so that an interrupted
// repair leaves leaks and what has not been repaired yet. No such place is one that an entry leads
// to outside the file, as long as it was.
#include <algorithm>

#include "block/base/bytes.h"
#include "formats/qcow2/checker.h"
#include "formats/qcow2/storage_io.h"
#include "formats/qcow2/table_stream.h"

namespace platter::qcow2 {
namespace {

// Of entries that wait for the refcount structure; the others are for the next repair.
constexpr std::size_t kMaxPending = std::size_t{1} << 20;

}  // namespace

// Looking for work -------------------------------------------------------------------------------

bool Checker::in_header_or_l1(std::uint64_t table) const {
  const std::uint64_t l1 = header_.l1_table_offset;
  return g_.cluster_index(table) == 0 ||
         (table >= l1 && table < align_up(l1 + header_.l1_table_bytes(), g_.cluster_size()));
}

std::vector<std::uint64_t> Checker::find_shared_tables() const {
  std::vector<std::uint64_t> found;
  const std::uint64_t end = std::max(fixed_.clusters(), l2_.clusters());
  for (std::uint64_t c = 0; c < end;) {
    const std::uint64_t chunk = c / RefcountMap::kChunk;
    const std::uint64_t chunk_end = std::min((chunk + 1) * RefcountMap::kChunk, end);
    if (!fixed_.chunk(chunk).empty() || !l2_.chunk(chunk).empty()) {
      for (; c < chunk_end; ++c) {
        const std::uint64_t tables = std::max(fixed_.get(c), l2_.get(c));
        if (tables == 0) continue;
        // (Where counts cannot pass 1, two are an overflow.)
        if (counts_.get(c) > tables || overflowed_.contains(c)) found.push_back(c);
      }
    }
    c = chunk_end;
  }
  return found;
}

// Counts cannot say that two share it, and it is data that does.
bool Checker::crowded(std::uint64_t cluster) const {
  return g_.max_refcount() == 1 && overflowed_.contains(cluster) && fixed_.get(cluster) == 0 &&
         l2_.get(cluster) == 0;
}

bool Checker::any_crowded() const {
  return std::ranges::any_of(overflowed_, [this](std::uint64_t c) { return crowded(c); });
}

// No two of the tables that stay where they are lie in one cluster. Otherwise what is written for
// one of them would be read from the other.
bool Checker::tables_apart() const {
  for (std::uint64_t c = 0; c < fixed_.clusters(); ++c) {
    if (fixed_.chunk(c / RefcountMap::kChunk).empty()) {
      c = (c / RefcountMap::kChunk + 1) * RefcountMap::kChunk - 1;
    } else if (fixed_.get(c) > 1) {
      return false;
    }
  }
  return true;
}

// Pending entries --------------------------------------------------------------------------------

std::span<const Checker::Pending> Checker::pending_in(std::uint64_t offset,
                                                      std::uint64_t length) const {
  const auto before = [](const Pending& a, std::uint64_t at) { return a.offset < at; };
  const auto first = std::lower_bound(pending_.begin(), pending_.end(), offset, before);
  const auto last = std::lower_bound(first, pending_.end(), offset + length, before);
  return {first, last};
}

Task<Result<void>> Checker::write_pending() {
  // First those that part data from tables.
  for (const bool shared : {false, true}) {
    for (const Pending& one : pending_) {
      if (copies_.contains(g_.cluster_index(one.offset)) != shared) continue;
      std::byte bytes[8];
      store_be(bytes, one.entry);
      auto written = co_await write_table(one.offset, bytes);
      PLATTER_CO_TRY(written);
    }
    auto flushed = co_await file_.flush();
    PLATTER_CO_TRY(flushed);
  }
  pending_.clear();
  fresh_.clear();
  co_return Result<void>{};
}

// Writes a cluster to a place that nobody refers to, and gives its offset.
Task<Result<std::uint64_t>> Checker::put_away(std::span<const std::byte> bytes) {
  const std::uint64_t cluster = find_free(1);
  if (cluster == 0) co_return fail(ENOSPC, "no free cluster");
  auto written = co_await write_table(cluster << g_.cluster_bits, bytes);
  PLATTER_CO_TRY(written);
  counts_.set(cluster, 1);
  fresh_[cluster] = 0;
  co_return cluster << g_.cluster_bits;
}

// One more reference to what was put away at `host`, or at the place of another one like it.
Task<Result<std::uint64_t>> Checker::refer_to(std::uint64_t host) {
  std::uint64_t& references = fresh_[g_.cluster_index(host)];
  if (references < g_.max_refcount()) {
    ++references;
    co_return host;
  }
  std::vector<std::byte> bytes(g_.cluster_size());
  auto read = co_await read_padded(file_, host, bytes);
  PLATTER_CO_TRY(read);
  auto place = co_await put_away(bytes);
  PLATTER_CO_TRY(place);
  fresh_[g_.cluster_index(*place)] = 1;
  co_return *place;
}

// L1 ---------------------------------------------------------------------------------------------

// An L2 table that says of all clusters that they are lost.
Task<Result<std::uint64_t>> Checker::lost_table() {
  if (lost_table_ == 0) {
    std::vector<std::byte> bytes(g_.cluster_size());
    for (std::size_t at = 0; at < bytes.size(); at += g_.l2_entry_size()) {
      if (g_.extended_l2) {
        store_be(bytes.data() + at + 8, kAllZero);
      } else {
        store_be(bytes.data() + at, zero_entry(0, false));
      }
    }
    auto place = co_await put_away(bytes);
    PLATTER_CO_TRY(place);
    lost_table_ = *place;
  }
  auto place = co_await refer_to(lost_table_);
  if (place) lost_table_ = *place;
  co_return place;
}

// Adds the tables that the L1 table leads to, when all is done, to `tables`.
Task<Result<void>> Checker::mend_l1(std::uint64_t offset, std::uint64_t entries,
                                    std::vector<std::uint64_t>& tables) {
  auto l1 = co_await read_table(file_, "L1 table", offset, entries);
  PLATTER_CO_TRY(l1);
  bool changed = false;
  for (std::uint64_t i = 0; i < entries; ++i) {
    std::uint64_t& entry = (*l1)[i];
    if (entry == 0) continue;
    // What may be data is changed when that has got its copy.
    const bool later = copies_.contains(g_.cluster_index(offset + i * 8));
    if (later && pending_.size() >= kMaxPending) continue;
    const std::uint64_t old = entry;
    const std::uint64_t table = l1_offset(entry);
    const bool aligned = g_.in_cluster(table) == 0;
    bool moved = false;
    if (table == 0) {
      entry = 0;
    } else if (!aligned || table >= end_ || in_header_or_l1(table)) {
      if (!may_lose() || pending_.size() >= kMaxPending) continue;
      if (header_.backing_file.empty()) {
        entry = 0;
      } else {
        auto place = co_await lost_table();
        PLATTER_CO_TRY(place);
        pending_.push_back({offset + i * 8, l1_entry(*place, false)});
      }
    } else if (const auto copied = table_copies_.find(g_.cluster_index(table));
               copied != table_copies_.end()) {
      // (A table that is in something else's cluster is not written to.)
      if (pending_.size() >= kMaxPending) continue;
      auto place = co_await refer_to(copied->second);
      PLATTER_CO_TRY(place);
      copied->second = *place;
      tables.push_back(*place);
      pending_.push_back({offset + i * 8, l1_entry(*place, false)});
      moved = true;
    } else {
      tables.push_back(table);
      entry &= ~kL1Reserved;
      if (entry == old) continue;
    }
    const bool lost = table != 0 && (entry == 0 || entry == old);
    say("Repairing l1_index={} l1_entry={:x}: {}", i, old,
        table == 0      ? "flags without a table are cleared"
        : moved         ? "the table lies in something else and is copied elsewhere"
        : !lost         ? "reserved bits are cleared"
        : !aligned      ? "the table is unaligned and lost"
        : table >= end_ ? "the table lies outside the file and is lost"
                        : "the table would lie in the header or the L1 table and is lost");
    ++result_.corruptions_fixed;
    if (later && entry != old) {
      pending_.push_back({offset + i * 8, entry});
      entry = old;
    }
    changed = changed || entry != old;
  }
  if (!changed) co_return Result<void>{};
  std::vector<std::byte> bytes(entries * 8);
  for (std::size_t i = 0; i < entries; ++i) store_be(bytes.data() + i * 8, (*l1)[i]);
  auto written = co_await write_table(offset, bytes);
  co_return written;
}

// L2 ---------------------------------------------------------------------------------------------

Checker::Mending Checker::lose_cluster(std::uint64_t entry, std::uint64_t bitmap,
                                       std::string_view why) const {
  if (!may_lose()) return {entry, bitmap, {}};
  if (!g_.extended_l2) return {g_.version >= 3 ? zero_entry(0, false) : 0, 0, why};
  if ((entry & kCompressedBit) != 0) return {0, kAllZero, why};
  const std::uint64_t zero = bitmap >> 32 | (bitmap & 0xffffffff);
  return {0, zero << 32, why};
}

Checker::Mending Checker::mend_packed(std::uint64_t entry, std::uint64_t bitmap) const {
  if (g_.external_data)
    return lose_cluster(entry, bitmap, "packed data in an image with a data file is lost");
  const ClusterState state = classify(g_, entry & ~kCopied);
  const auto* packed = std::get_if<CompressedCluster>(&state);
  if (!packed || packed->host >= end_)
    return lose_cluster(entry, bitmap, "packed data outside the file is lost");
  if (in_header_or_l1(g_.cluster_start(packed->host)))
    return lose_cluster(entry, bitmap, "packed data in the header or the L1 table is lost");
  const std::uint64_t claimed = packed->host + packed->length;
  const std::uint64_t end = std::min(claimed, end_);
  Mending mending{entry & ~kCopied, 0, {}};
  if (mending.entry != entry) mending.why = "the copied flag of packed data is cleared";
  if (bitmap != 0) mending.why = "the subclusters of packed data are cleared";
  if (end < claimed) {
    mending.entry = compressed_entry(g_, packed->host, end - packed->host);
    mending.why = "packed data ends where the file does";
  }
  return mending;
}

Checker::Mending Checker::mend_plain(std::uint64_t entry, std::uint64_t bitmap) {
  Mending mending{entry & ~l2_reserved_bits(g_, entry), bitmap, {}};
  if (mending.entry != entry) mending.why = "reserved bits are cleared";
  const std::uint64_t host = entry & kOffsetMask;
  const auto allocated = static_cast<std::uint32_t>(bitmap);
  const auto zero = static_cast<std::uint32_t>(bitmap >> 32);
  if (host == 0 && !(g_.external_data && (entry & kCopied) != 0)) {
    if (allocated == 0) return mending;
    return {mending.entry, (bitmap >> 32 | allocated) << 32,
            "subclusters without a cluster are lost"};
  }
  if ((allocated & zero) != 0) {
    mending.bitmap = std::uint64_t{zero & ~allocated} << 32 | allocated;
    mending.why = "subclusters both allocated and zero are allocated";
  }
  if (g_.external_data) return mending;
  const std::uint64_t cluster = g_.cluster_index(host);
  const bool leads_nowhere = g_.in_cluster(host) != 0 || host >= end_;
  const bool parted = crowded(cluster);
  if (!leads_nowhere && !parted && fixed_.get(cluster) == 0) return mending;
  const bool has_data = g_.extended_l2 ? allocated != 0 : g_.version < 3 || (entry & kZeroBit) == 0;
  if (!has_data) {
    return {g_.extended_l2 ? 0 : zero_entry(0, false), mending.bitmap,
            "preallocated space that cannot be is given up"};
  }
  if (leads_nowhere) {
    return lose_cluster(entry, mending.bitmap,
                        host >= end_ ? "data outside the file is lost" : "unaligned data is lost");
  }
  // One of them may stay.
  if (parted && kept_.insert(cluster).second) return mending;
  mending.why = parted ? "data in the place of other data is copied elsewhere"
                       : "data in a table is copied elsewhere";
  mending.copy = true;
  return mending;
}

// True when the table has changed in memory.
Task<Result<bool>> Checker::mend_l2_table(std::uint64_t offset, std::span<std::byte> table) {
  bool changed = false;
  for (std::size_t at = 0; at < table.size(); at += g_.l2_entry_size()) {
    std::byte* const place = table.data() + at;
    const auto entry = load_be<std::uint64_t>(place);
    const std::uint64_t bitmap = g_.extended_l2 ? load_be<std::uint64_t>(place + 8) : 0;
    if (entry == 0 && bitmap == 0) continue;
    const Mending mending =
        (entry & kCompressedBit) != 0 ? mend_packed(entry, bitmap) : mend_plain(entry, bitmap);
    if (mending.why.empty()) continue;
    if (mending.copy) {
      const std::uint64_t cluster = g_.cluster_index(entry & kOffsetMask);
      const auto copied = copies_.find(cluster);
      if (copied == copies_.end() || pending_.size() >= kMaxPending) continue;
      auto host = co_await refer_to(copied->second);
      PLATTER_CO_TRY(host);
      copied->second = *host;
      const std::uint64_t flags = mending.entry & ~kOffsetMask & ~kCopied;
      pending_.push_back({offset + at, *host | flags});
    } else {
      store_be(place, mending.entry);
    }
    if (g_.extended_l2) store_be(place + 8, mending.bitmap);
    changed = true;
    say("Repairing l2_entry={:x} at {:#x}: {}", entry, offset + at, mending.why);
    ++result_.corruptions_fixed;
  }
  co_return changed;
}

Task<Result<void>> Checker::mend_l2_tables(std::vector<std::uint64_t> tables) {
  std::sort(tables.begin(), tables.end());
  tables.erase(std::unique(tables.begin(), tables.end()), tables.end());
  TableStream stream(file_, g_.cluster_size(), tables);
  Result<void> outcome;
  for (std::size_t i = 0; i < tables.size() && outcome; ++i) {
    auto table = co_await stream.next();
    outcome = std::move(table.read);
    if (!outcome) break;
    auto changed = co_await mend_l2_table(tables[i], table.data);
    if (!changed) {
      outcome = forward_error(changed);
    } else if (*changed) {
      outcome = co_await write_table(tables[i], table.data);
    }
  }
  co_await stream.stop();
  co_return outcome;
}

// All of it --------------------------------------------------------------------------------------

Task<Result<void>> Checker::mend() {
  cancelled_ = nullptr;
  end_ = align_up(file_.size(), g_.cluster_size());
  std::vector<std::byte> bytes(g_.cluster_size());
  for (const std::uint64_t cluster : shared_tables_) {
    auto read = co_await read_padded(file_, cluster << g_.cluster_bits, bytes);
    PLATTER_CO_TRY(read);
    for (auto* copies : {&copies_, &table_copies_}) {
      if ((copies == &copies_ ? fixed_ : l2_).get(cluster) == 0) continue;
      auto place = co_await put_away(bytes);
      PLATTER_CO_TRY(place);
      (*copies)[cluster] = *place;
    }
  }
  for (const std::uint64_t cluster : overflowed_) {
    if (!crowded(cluster)) continue;
    auto read = co_await read_padded(file_, cluster << g_.cluster_bits, bytes);
    PLATTER_CO_TRY(read);
    auto place = co_await put_away(bytes);
    PLATTER_CO_TRY(place);
    copies_[cluster] = *place;
  }
  std::vector<std::uint64_t> tables;
  auto step = co_await mend_l1(header_.l1_table_offset, header_.l1_size, tables);
  PLATTER_CO_TRY(step);
  for (const Snapshot& s : snapshots_) {
    if (g_.in_cluster(s.l1_table_offset) != 0 || s.l1_size > kMaxL1Bytes / 8) continue;
    if (!range_within(s.l1_table_offset, std::uint64_t{s.l1_size} * 8, end_)) continue;
    step = co_await mend_l1(s.l1_table_offset, s.l1_size, tables);
    PLATTER_CO_TRY(step);
  }
  step = co_await mend_l2_tables(std::move(tables));
  PLATTER_CO_TRY(step);
  std::sort(pending_.begin(), pending_.end(),
            [](const Pending& a, const Pending& b) { return a.offset < b.offset; });
  step = co_await file_.flush();
  PLATTER_CO_TRY(step);

  // Counted again, as it will be; what cannot be mended has been said.
  result_.corruptions = 0;
  need_rebuild_ = false;
  all_copied_ = true;
  shared_ = false;
  uncounted_ = false;
  muted_ = true;
  step = co_await count_references(true);
  muted_ = false;
  co_return step;
}

}  // namespace platter::qcow2
