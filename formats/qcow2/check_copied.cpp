// The last pass of the checker: the flags of active L1 and L2 entries that say "refcount is exactly
// one", against the refcounts on disk.
#include <algorithm>

#include "block/base/bytes.h"
#include "formats/qcow2/checker.h"
#include "formats/qcow2/storage_io.h"
#include "formats/qcow2/table_stream.h"

namespace platter::qcow2 {

// Of a cluster that the file does not hold (any more), whose references the passes before have not
// compared. Refcount blocks that were read are kept, up to a bound: hostile tables may ask for all
// of them in turn. Nothing when the bound is reached.
Task<Result<std::optional<std::uint64_t>>> Checker::stored_refcount(std::uint64_t cluster) {
  constexpr std::size_t kMaxBytes = std::size_t{8} << 20;
  const std::uint64_t index = cluster >> g_.refblock_bits();
  const std::uint64_t block =
      index < refcount_table_.size() ? refcount_table_[index] & kRefTableOffsetMask : 0;
  if (block == 0 || g_.in_cluster(block) != 0 || g_.cluster_index(block) >= file_clusters()) {
    co_return 0;
  }
  auto found = outside_blocks_.find(block);
  if (found == outside_blocks_.end()) {
    if ((outside_blocks_.size() + 1) << g_.cluster_bits > kMaxBytes) co_return std::nullopt;
    std::vector<std::byte> bytes(g_.cluster_size());
    auto read = co_await read_padded(file_, block, bytes);
    if (!read) co_return forward_error(read, "could not read the refcount block at {:#x}", block);
    found = outside_blocks_.emplace(block, std::move(bytes)).first;
  }
  co_return refcount_get(g_, found->second.data(), g_.refblock_index(cluster));
}

Task<Result<std::optional<std::uint64_t>>> Checker::refcount_now(std::uint64_t cluster) {
  if (cluster < counts_.clusters()) co_return counts_.get(cluster);
  auto stored = co_await stored_refcount(cluster);
  co_return stored;
}

// The flags of L1 entries. Changes `l1`, and writes it when a flag was mended.
Task<Result<void>> Checker::check_copied_l1(std::vector<std::uint64_t>& l1, bool fix) {
  bool changed = false;
  for (std::size_t i = 0; i < l1.size(); ++i) {
    std::uint64_t& entry = l1[i];
    const std::uint64_t table = l1_offset(entry);
    if (table == 0) continue;
    auto looked_up = co_await refcount_now(g_.cluster_index(table));
    PLATTER_CO_TRY(looked_up);
    if (!*looked_up) continue;
    const std::uint64_t refcount = **looked_up;
    if ((refcount == 1) == l1_copied(entry)) continue;
    say("{} OFLAG_COPIED L2 cluster: l1_index={} l1_entry={:x} refcount={}",
        fix ? "Repairing" : "ERROR", i, entry, refcount);
    if (fix) {
      entry = refcount == 1 ? entry | kCopied : entry & ~kCopied;
      changed = true;
      ++result_.corruptions_fixed;
    } else {
      ++result_.corruptions;
    }
  }
  // Refcounts that were mended must be durable before a flag promises them.
  if (fix) {
    auto flushed = co_await file_.flush();
    PLATTER_CO_TRY(flushed);
  }
  if (!changed) co_return Result<void>{};
  std::vector<std::byte> bytes(l1.size() * 8);
  for (std::size_t i = 0; i < l1.size(); ++i) store_be(bytes.data() + i * 8, l1[i]);
  auto written = co_await write_table(header_.l1_table_offset, bytes);
  co_return written;
}

// The flags of an L2 table's entries; true when one was mended in `table`.
Task<Result<bool>> Checker::check_copied_l2(std::span<std::byte> table, bool fix) {
  bool changed = false;
  for (std::size_t at = 0; at < table.size(); at += g_.l2_entry_size()) {
    std::byte* place = table.data() + at;
    const auto entry = load_be<std::uint64_t>(place);
    const std::uint64_t host = entry & kOffsetMask;
    if ((entry & kCompressedBit) != 0) continue;
    if (host == 0 && !(g_.external_data && (entry & kCopied) != 0)) continue;
    std::uint64_t refcount = 1;
    if (const std::uint64_t cluster = g_.cluster_index(host); !g_.external_data) {
      if (cluster < counts_.clusters()) [[likely]] {
        refcount = counts_.get(cluster);
      } else {
        auto looked_up = co_await stored_refcount(cluster);
        PLATTER_CO_TRY(looked_up);
        if (!*looked_up) continue;
        refcount = **looked_up;
      }
    }
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
  co_return changed;
}

// Whether something else may lie in `clusters` at `offset`, where nothing is to be written then.
bool Checker::is_shared_table(std::uint64_t offset, std::uint64_t length) const {
  const std::uint64_t first = g_.cluster_index(offset);
  const auto found = std::ranges::lower_bound(shared_tables_, first);
  return found != shared_tables_.end() && *found < first + g_.clusters_for(length);
}

Task<Result<void>> Checker::check_copied() {
  // Everything has the flag, every count is one, and the disk agrees: nothing can be wrong.
  if (all_copied_ && !shared_ && !uncounted_ && !mismatch_) co_return Result<void>{};
  // A repair of leaks alone mends flags too where the refcounts have turned out to be right.
  const bool fix = request_.fix_errors || (request_.fix_leaks && result_.check_errors == 0 &&
                                           result_.corruptions == 0 && result_.leaks == 0);
  auto l1 = co_await read_table(file_, "L1 table", header_.l1_table_offset, header_.l1_size);
  PLATTER_CO_TRY(l1);
  const bool fix_l1 = fix && !is_shared_table(header_.l1_table_offset, header_.l1_table_bytes());
  auto mended = co_await check_copied_l1(*l1, fix_l1);
  PLATTER_CO_TRY(mended);

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
    if (outcome = go_on(); !outcome) break;
    auto table = co_await stream.next();
    if (!table.read) {
      say("ERROR: Could not read L2 table: {}", table.read.error().message());
      ++result_.check_errors;
      outcome = std::move(table.read);
      break;
    }
    const bool fix_table = fix && !is_shared_table(offsets[i], g_.cluster_size());
    auto changed = co_await check_copied_l2(table.data, fix_table);
    if (!changed) outcome = forward_error(changed);
    if (changed && *changed) outcome = co_await write_table(offsets[i], table.data);
  }
  co_await stream.stop();
  PLATTER_CO_TRY(outcome);
  co_return Result<void>{};
}

}  // namespace platter::qcow2
