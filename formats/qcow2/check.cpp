#include "formats/qcow2/check.h"

#include <limits>

#include "formats/qcow2/checker.h"
#include "formats/qcow2/header_io.h"
#include "formats/qcow2/storage_io.h"

namespace platter::qcow2 {

Checker::Checker(BlockNode& file, Header& header, const CheckRequest& request, Entries entries)
    : file_(file),
      header_(header),
      request_(request),
      cancelled_(request.cancelled),
      g_(header.geometry()),
      counts_(g_.clusters_for(file.size())),
      entries_(entries) {}

Task<Result<void>> Checker::write_table(std::uint64_t offset, std::span<const std::byte> bytes) {
  const IoVec iov = IoVec::of_const(bytes);
  auto written = co_await file_.write(offset, iov);
  if (!written) co_return forward_error(written, "could not write the table at {:#x}", offset);
  co_return Result<void>{};
}

Task<Result<void>> Checker::write_header() {
  auto step = co_await file_.flush();
  PLATTER_CO_TRY(step);
  step = co_await put_header(file_, header_);
  if (!step) co_return forward_error(step, "could not write the header");
  step = co_await file_.flush();
  co_return step;
}

// QEMU's order of things: a first comparison changes nothing and tells whether the refcount
// structure itself can be trusted; only then is it mended in place, or made anew.
Task<Result<void>> Checker::repair_or_compare() {
  const bool fixing = repairs();
  const CheckResult before_comparison = result_;
  auto step = co_await compare(Fix{}, !fixing);
  PLATTER_CO_TRY(step);

  const bool renewing = request_.fix_errors && apart_ && snapshots_incomplete();
  if (renewing || !pending_.empty()) need_rebuild_ = true;
  if (need_rebuild_ && request_.fix_errors) {
    say("Rebuilding refcount structure");
    const CheckResult old = result_;
    const std::uint64_t table = header_.refcount_table_offset;
    const std::uint64_t snapshots = header_.snapshots_offset;
    if (renewing) step = co_await renew_snapshot_table();
    if (step) step = co_await rebuild();
    // (Not when the header may have been written.)
    if (!step && header_.refcount_table_offset == table) header_.snapshots_offset = snapshots;
    if (step) step = co_await write_pending();
    if (!step) co_return forward_error(step, "could not rebuild the refcount structure");
    cancelled_ = nullptr;
    result_.corruptions = 0;
    result_.leaks = 0;
    // Blocks that could not be read are no more part of it.
    result_.check_errors = before_comparison.check_errors;
    need_rebuild_ = false;
    // Allocated and fragmented clusters have been counted already.
    CheckResult recount = result_;
    step = co_await count_references(false);
    PLATTER_CO_TRY(step);
    recount.corruptions = result_.corruptions;
    recount.leaks = result_.leaks;
    // The old structure has become a leak, which is not the image's fault.
    step = co_await compare(Fix{.leaks = request_.fix_leaks, .errors = false}, true);
    PLATTER_CO_TRY(step);
    if (need_rebuild_) say("ERROR rebuilt refcount structure is still broken");
    recount.check_errors = result_.check_errors;
    const std::uint64_t fresh_leaks = request_.fix_leaks ? result_.leaks - recount.leaks : 0;
    result_ = recount;
    if (result_.corruptions < old.corruptions) {
      result_.corruptions_fixed += old.corruptions - result_.corruptions;
    }
    if (result_.leaks < old.leaks) result_.leaks_fixed += old.leaks - result_.leaks;
    result_.leaks += fresh_leaks;
    co_return Result<void>{};
  }
  if (!fixing) co_return Result<void>{};
  if (need_rebuild_) {
    say("ERROR need to rebuild refcount structures");
    co_return fail(EIO, "the refcount structure must be rebuilt, which repairs of leaks do not do");
  }
  // Also when nothing differs: the comparison leaves in memory what is on disk.
  result_ = before_comparison;
  cancelled_ = nullptr;
  step = co_await compare(Fix{.leaks = request_.fix_leaks, .errors = request_.fix_errors}, true);
  co_return step;
}

Task<Result<void>> Checker::mark_clean() {
  const std::uint64_t bits = incompatible::kDirty | incompatible::kCorrupt;
  if ((header_.incompatible_features & bits) == 0) co_return Result<void>{};
  header_.incompatible_features &= ~bits;
  auto written = co_await write_header();
  co_return written;
}

// Repairing by a count that is not complete would free what is in use; so would forgetting what a
// table that is gone told of, while a longer copy of the file, or the table, may still be found.
Result<void> Checker::may_repair() const {
  if (!repairs()) return {};
  if (!gone_.empty()) return fail(EIO, "{}: nothing was repaired", gone_);
  if (result_.check_errors != 0)
    return fail(EIO, "{} places could not be checked: nothing was repaired", result_.check_errors);
  return {};
}

Task<Result<CheckResult>> Checker::run() {
  const std::uint64_t most = std::numeric_limits<std::int32_t>::max();
  if (file_clusters() > most) {
    co_return fail(EFBIG, "the file has {} clusters, at most {} can be checked", file_clusters(),
                   most);
  }
  auto snapshots = co_await read_snapshot_table(file_, header_, false, TableBounds::kAnywhere);
  PLATTER_CO_TRY(snapshots);
  snapshots_ = std::move(snapshots->snapshots);
  snapshot_table_bytes_ = snapshots->bytes;

  result_.total_clusters = g_.clusters_for(header_.size);
  auto step = co_await load_refcount_table();
  PLATTER_CO_TRY(step);
  step = co_await count_references(request_.fix_errors);
  PLATTER_CO_TRY(step);
  step = may_repair();
  PLATTER_CO_TRY(step);
  if (entries_ == Entries::kLeave && mendable_)
    co_return fail(kCorrupt, "entries of its tables cannot be right, which check -r all mends");
  apart_ = tables_apart();
  if (request_.fix_errors && entries_ == Entries::kMend && apart_ &&
      (mendable_ || any_crowded() || !shared_tables_.empty())) {
    step = co_await mend();
    PLATTER_CO_TRY(step);
    step = may_repair();
    PLATTER_CO_TRY(step);
  }
  step = co_await repair_or_compare();
  PLATTER_CO_TRY(step);
  step = co_await check_copied();
  PLATTER_CO_TRY(step);
  result_.image_end_offset = (highest_cluster_ + 1) << g_.cluster_bits;
  if (repairs()) {
    if (result_.corruptions == 0 && result_.check_errors == 0) {
      step = co_await mark_clean();
      PLATTER_CO_TRY(step);
    }
    step = co_await file_.flush();
    PLATTER_CO_TRY(step);
  }
  co_return result_;
}

Task<Result<CheckResult>> check_image(BlockNode& file, Header& header,
                                      const CheckRequest& request) {
  Checker checker(file, header, request);
  auto result = co_await checker.run();
  co_return result;
}

Task<Result<void>> rebuild_refcounts(BlockNode& file, Header& header) {
  const CheckRequest request{.fix_leaks = true, .fix_errors = true, .report = {}};
  // What loses data is for the user to ask for.
  Checker checker(file, header, request, Checker::Entries::kLeave);
  auto result = co_await checker.run();
  if (!result) co_return forward_error(result, "could not repair the image's refcounts");
  if (result->corruptions != 0 || result->check_errors != 0) {
    co_return fail(kCorrupt, "the image has {} errors that cannot be repaired",
                   result->corruptions + result->check_errors);
  }
  co_return Result<void>{};
}

}  // namespace platter::qcow2
