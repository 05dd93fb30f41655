// Checker: one run of check_image(), cut into the passes that the .cpp files check_*.cpp hold.
//
// Threads: one coroutine at a time.
#pragma once

#include <fmt/format.h>

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "formats/qcow2/check.h"
#include "formats/qcow2/refcount_map.h"
#include "formats/qcow2/snapshot_table.h"

namespace platter::qcow2 {

class Checker {
 public:
  // What a repair does with entries that cannot be right (check_mend.cpp).
  enum class Entries : bool { kLeave, kMend };

  Checker(BlockNode& file, Header& header, const CheckRequest& request,
          Entries entries = Entries::kMend);

  Task<Result<CheckResult>> run();
  // Counts all references, for another structure that is to take the place of what the header leads
  // to; an error of the image is one here (`before`: what must wait for its repair). Leaks are not
  // counted.
  Task<Result<void>> count_for_change(std::string_view before);
  // After the header leads to the new structure: the old one is free.
  Task<Result<void>> free_old_structure();
  // check_width.cpp: see change_refcount_width().
  Task<Result<void>> change_width(unsigned order);
  // check_snapshots.cpp: see complete_snapshots().
  Task<Result<void>> complete(std::uint32_t version);

 private:
  enum class Active : bool { kNo, kYes };

  // check.cpp
  // A hostile image can make a finding of every eight bytes: beyond this they are only counted.
  static constexpr std::uint64_t kMaxLines = 100000;
  template <class... Args>
  void say(fmt::format_string<Args...> text, Args&&... args) {
    if (!request_.report || muted_ || lines_ > kMaxLines) return;
    if (++lines_ > kMaxLines) {
      request_.report("Too many findings: the others are only counted");
      return;
    }
    request_.report(fmt::format(text, std::forward<Args>(args)...));
  }
  // What stops a pass that has changed nothing yet that the passes after it would have to follow
  // up.
  Result<void> go_on() const {
    if (is_set(cancelled_)) return fail(ECANCELED, "cancelled");
    return {};
  }
  std::uint64_t file_clusters() const { return g_.clusters_for(file_.size()); }
  Task<Result<void>> write_table(std::uint64_t offset, std::span<const std::byte> bytes);
  Task<Result<void>> write_header();
  bool repairs() const { return request_.fix_leaks || request_.fix_errors; }
  Result<void> may_repair() const;
  Task<Result<void>> repair_or_compare();
  Task<Result<void>> mark_clean();

  // check_references.cpp: counts what the tables refer to.
  Task<Result<void>> count_references(bool fix);
  // Counts `times` references to every cluster of a range; false when the range is not in the file.
  bool count(std::uint64_t offset, std::uint64_t length, std::uint64_t times = 1);
  // A repair, which makes the file longer, puts nothing where a reference leads that leaves it.
  void claim_outside(std::uint64_t offset, std::uint64_t length, std::uint64_t times);
  std::uint64_t reach() const;
  // The same for a table, into fixed_ or l2_ as well.
  bool count_table(std::uint64_t offset, std::uint64_t length, RefcountMap& kind);
  // Gives the L2 tables' places, in order; sets l2_repeated_ when one may be there twice.
  Task<Result<std::vector<std::uint64_t>>> count_l1(std::uint64_t offset, std::uint64_t entries,
                                                    Active active);
  // Changes nothing in them: that they are tables is not known before all is counted.
  Task<Result<void>> count_l2_tables(std::vector<std::uint64_t> tables, Active active);
  void count_l2_table(std::span<const std::byte> table, std::uint64_t times, Active active);
  void count_l2_entry(const std::byte* at, std::uint64_t times, Active active,
                      std::uint64_t& next_contiguous);
  Task<Result<void>> count_snapshots();
  Task<Result<void>> count_bitmaps();
  Task<Result<void>> count_refcount_blocks(bool fix);

  // check_mend.cpp: mends entries, and counts again. Entries that lead to what was put away for
  // them are kept in memory until the refcount structure counts that.
  struct Pending {
    std::uint64_t offset = 0;  // in the file
    std::uint64_t entry = 0;
  };
  struct Mending {
    std::uint64_t entry = 0;
    std::uint64_t bitmap = 0;
    std::string_view why;  // empty: nothing to mend
    bool copy = false;     // the entry gets a copy of the cluster that it names
  };
  static constexpr std::uint64_t kAllZero = ~std::uint64_t{0} << 32;  // all subclusters
  Task<Result<void>> mend();
  Task<Result<void>> mend_l1(std::uint64_t offset, std::uint64_t entries,
                             std::vector<std::uint64_t>& tables);
  Task<Result<void>> mend_l2_tables(std::vector<std::uint64_t> tables);
  Task<Result<bool>> mend_l2_table(std::uint64_t offset, std::span<std::byte> table);
  Mending mend_packed(std::uint64_t entry, std::uint64_t bitmap) const;
  Mending mend_plain(std::uint64_t entry, std::uint64_t bitmap);
  Mending lose_cluster(std::uint64_t entry, std::uint64_t bitmap, std::string_view why) const;
  // Version 2 cannot say that a cluster over a backing file reads as zeroes.
  bool may_lose() const { return g_.version >= 3 || header_.backing_file.empty(); }
  bool in_header_or_l1(std::uint64_t table) const;
  std::vector<std::uint64_t> find_shared_tables() const;
  bool crowded(std::uint64_t cluster) const;
  bool any_crowded() const;
  bool tables_apart() const;
  Task<Result<std::uint64_t>> put_away(std::span<const std::byte> bytes);
  Task<Result<std::uint64_t>> refer_to(std::uint64_t host);
  Task<Result<std::uint64_t>> lost_table();
  std::span<const Pending> pending_in(std::uint64_t offset, std::uint64_t length) const;
  Task<Result<void>> write_pending();

  // check_snapshots.cpp
  bool snapshots_incomplete() const;
  Task<Result<void>> renew_snapshot_table();

  // check_refcounts.cpp: compares with the refcounts on disk, mends them, or makes new ones.
  Task<Result<void>> load_refcount_table();
  struct Fix {
    bool leaks = false;
    bool errors = false;
  };
  static_assert(std::is_trivially_destructible_v<Fix>);  // see tests/layering/operands.cpp
  // Leaves in counts_ what is on disk afterwards.
  Task<Result<void>> compare(Fix fix, bool adopt);
  bool compare_block(std::uint64_t block_index, std::span<std::byte> block, Fix fix, bool adopt);
  bool compare_cluster(std::uint64_t cluster, std::byte* block, Fix fix, bool adopt);
  void compare_missing_block(std::uint64_t block_index, Fix fix, bool adopt);
  Task<Result<void>> rebuild();
  std::uint64_t find_free(std::uint64_t clusters) const;

  // check_copied.cpp: compares the "refcount is one" flags of the active tables.
  Task<Result<void>> check_copied();
  bool is_shared_table(std::uint64_t offset, std::uint64_t length) const;
  Task<Result<void>> check_copied_l1(std::vector<std::uint64_t>& l1, bool fix);
  Task<Result<bool>> check_copied_l2(std::span<std::byte> table, bool fix);
  Task<Result<std::optional<std::uint64_t>>> refcount_now(std::uint64_t cluster);
  Task<Result<std::optional<std::uint64_t>>> stored_refcount(std::uint64_t cluster);

  BlockNode& file_;
  Header& header_;
  const CheckRequest& request_;
  const std::atomic<bool>* cancelled_;  // nullptr once a repair has begun to write
  Geometry g_;
  CheckResult result_;
  RefcountMap counts_;
  std::vector<std::uint64_t> refcount_table_;
  std::vector<Snapshot> snapshots_;
  std::uint64_t snapshot_table_bytes_ = 0;
  std::uint64_t highest_cluster_ = 0;
  std::uint64_t lines_ = 0;
  bool muted_ = false;
  const Entries entries_;
  bool mendable_ = false;  // some entry cannot be right
  bool apart_ = false;     // tables_apart(), as it was found
  std::uint64_t end_ = 0;  // of the file when mending began, in whole clusters
  // References to L2 tables, and to all other tables but those of the refcounts, which can be made
  // anew elsewhere.
  RefcountMap l2_{0};
  RefcountMap fixed_{0};  // at most the highest refcount; at least 2 where there are two
  // References to clusters behind the end of the file.
  RefcountMap outside_{0};
  // Clusters of tables that something of another kind refers to as well, in order.
  std::vector<std::uint64_t> shared_tables_;
  // By cluster of fixed_ (and crowded ones), and of l2_: where its copy lies.
  std::unordered_map<std::uint64_t, std::uint64_t> copies_;
  std::unordered_map<std::uint64_t, std::uint64_t> table_copies_;
  std::unordered_map<std::uint64_t, std::uint64_t> fresh_;  // clusters put away: references
  std::uint64_t lost_table_ = 0;
  std::vector<Pending> pending_;  // in order of offsets once all are known
  std::unordered_map<std::uint64_t, std::vector<std::byte>> outside_blocks_;  // by offset
  std::unordered_set<std::uint64_t> overflowed_;  // clusters that have been reported
  std::unordered_set<std::uint64_t> kept_;        // crowded ones whose one entry stays
  bool l2_repeated_ = false;
  bool need_rebuild_ = false;
  bool mismatch_ = false;  // some refcount differed from its references
  // What the pass over copied flags can be spared for: no active entry lacks the flag, no cluster
  // is shared, and no reference left the file.
  bool all_copied_ = true;
  bool shared_ = false;
  bool uncounted_ = false;
  // A table that no other table tells of, and that is not wholly there.
  static constexpr std::string_view kCutOff =
      "the file was cut off within its L1 or snapshot table";
  static constexpr std::string_view kSnapshotGone = "the L1 table of a snapshot is not in the file";
  std::string_view gone_;
};

}  // namespace platter::qcow2
