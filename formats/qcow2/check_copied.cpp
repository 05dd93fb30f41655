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
  auto l1 = co_await read_table(file_, "L1 table", header_.l1_table_offset, header_.l1_size);
  PLATTER_CO_TRY(l1);
  bool l1_changed = false;
  for (std::size_t i = 0; i < l1->size(); ++i) {
    std::uint64_t& entry = (*l1)[i];
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
  }
  // Refcounts that were mended must be durable before a flag promises them.
  if (fix) {
    auto flushed = co_await file_.flush();
    PLATTER_CO_TRY(flushed);
  }
  if (l1_changed) {
    std::vector<std::byte> bytes(l1->size() * 8);
    for (std::size_t i = 0; i < l1->size(); ++i) store_be(bytes.data() + i * 8, (*l1)[i]);
    auto written = co_await write_table(header_.l1_table_offset, bytes);
    PLATTER_CO_TRY(written);
  }

  // From here on the list of L2 tables. One that a hostile L1 points at often is looked at once.
  std::vector<std::uint64_t>& offsets = *l1;
  for (std::uint64_t& entry : offsets) entry = l1_offset(entry);
  std::erase_if(offsets, [this](std::uint64_t table) {
    return table == 0 || g_.in_cluster(table) != 0 || g_.cluster_index(table) >= file_clusters();
  });
  if (l2_repeated_) {
    std::sort(offsets.begin(), offsets.end());
    offsets.erase(std::unique(offsets.begin(), offsets.end()), offsets.end());
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
  co_return Result<void>{};
}

}  // namespace platter::qcow2
