// The last pass of the checker: the flags of active L1 and L2 entries that say "refcount is exactly
// one", against the refcounts on disk.
#include <algorithm>

#include "block/base/bytes.h"
#include "formats/qcow2/checker.h"
#include "formats/qcow2/storage_io.h"
#include "formats/qcow2/table_stream.h"

namespace platter::qcow2 {

Task<Result<void>> Checker::check_copied() {
  // Everything has the flag, every count is one, and the disk agrees: nothing can be wrong.
  if (all_copied_ && !shared_ && !uncounted_ && !mismatch_) co_return Result<void>{};
  // A repair of leaks alone mends flags too where the refcounts have turned out to be right.
  const bool fix = request_.fix_errors ||
                   (request_.fix_leaks && result_.check_errors == 0 && result_.corruptions == 0 &&
                    result_.leaks == 0);
  std::vector<std::uint64_t> offsets;
  bool l1_changed = false;
  for (std::size_t i = 0; i < active_l1_.size(); ++i) {
    std::uint64_t& entry = active_l1_[i];
    const std::uint64_t table = l1_offset(entry);
    if (table == 0) continue;
    const std::uint64_t refcount = counts_.get(g_.cluster_index(table));
    if ((refcount == 1) != l1_copied(entry)) {
      say("{} OFLAG_COPIED L2 cluster: l1_index={} l1_entry={:x} refcount={}",
          fix ? "Repairing" : "ERROR", i, entry, refcount);
      if (fix) {
        entry = refcount == 1 ? entry | kCopied : entry & ~kCopied;
        l1_changed = true;
        ++result_.corruptions_fixed;
      } else {
        ++result_.corruptions;
      }
    }
    if (g_.in_cluster(table) == 0 && g_.cluster_index(table) < file_clusters()) {
      offsets.push_back(table);
    }
  }
  // One table is looked at once, however often a hostile L1 points at it.
  std::vector<std::uint64_t> sorted = offsets;
  std::sort(sorted.begin(), sorted.end());
  if (const auto end = std::unique(sorted.begin(), sorted.end()); end != sorted.end()) {
    sorted.erase(end, sorted.end());
    offsets = std::move(sorted);
  }
  // Refcounts that were mended must be durable before a flag promises them.
  if (fix) {
    auto flushed = co_await file_.flush();
    PLATTER_CO_TRY(flushed);
  }

  TableStream stream(file_, g_.cluster_size(), offsets);
  Result<void> outcome;
  for (std::size_t i = 0; i < offsets.size() && outcome; ++i) {
    auto table = co_await stream.next();
    if (!table.read) {
      say("ERROR: Could not read L2 table: {}", table.read.error().message());
      ++result_.check_errors;
      outcome = std::move(table.read);
      break;
    }
    bool changed = false;
    for (std::size_t at = 0; at < table.data.size(); at += g_.l2_entry_size()) {
      std::byte* place = table.data.data() + at;
      const auto entry = load_be<std::uint64_t>(place);
      const std::uint64_t host = entry & kOffsetMask;
      if ((entry & kCompressedBit) != 0) continue;
      if (host == 0 && !(g_.external_data && (entry & kCopied) != 0)) continue;
      const std::uint64_t refcount = g_.external_data ? 1 : counts_.get(g_.cluster_index(host));
      if ((refcount == 1) == ((entry & kCopied) != 0)) continue;
      say("{} OFLAG_COPIED data cluster: l2_entry={:x} refcount={}", fix ? "Repairing" : "ERROR",
          entry, refcount);
      if (fix) {
        store_be(place, refcount == 1 ? entry | kCopied : entry & ~kCopied);
        changed = true;
        ++result_.corruptions_fixed;
      } else {
        ++result_.corruptions;
      }
    }
    if (changed) outcome = co_await write_table(offsets[i], table.data);
  }
  co_await stream.stop();
  PLATTER_CO_TRY(outcome);
  if (l1_changed) {
    std::vector<std::byte> bytes(active_l1_.size() * 8);
    for (std::size_t i = 0; i < active_l1_.size(); ++i) store_be(bytes.data() + i * 8, active_l1_[i]);
    auto written = co_await write_table(header_.l1_table_offset, bytes);
    PLATTER_CO_TRY(written);
  }
  co_return Result<void>{};
}

}  // namespace platter::qcow2
