// The checker's way to refcounts of another width: count all references, make a structure of the
// new width beside the old one, and let the header point to it.
#include "block/base/checked.h"
#include "formats/qcow2/check.h"
#include "formats/qcow2/checker.h"

namespace platter::qcow2 {

Task<Result<void>> Checker::count_for_change(std::string_view before) {
  auto counted = co_await run();
  PLATTER_CO_TRY(counted);
  if (result_.corruptions != 0 || result_.check_errors != 0) {
    co_return fail(kCorrupt, "the image has {} errors: repair it before {}",
                   result_.corruptions + result_.check_errors, before);
  }
  auto step = co_await count_references(false);
  co_return step;
}

Task<Result<void>> Checker::free_old_structure() {
  cancelled_ = nullptr;  // what is left must be done
  auto step = co_await count_references(false);
  PLATTER_CO_TRY(step);
  step = co_await compare(Fix{.leaks = true, .errors = false}, true);
  PLATTER_CO_TRY(step);
  step = co_await file_.flush();
  co_return step;
}

Task<Result<void>> Checker::change_width(unsigned order) {
  auto step = co_await count_for_change("its refcounts are changed");
  PLATTER_CO_TRY(step);
  Geometry wanted = g_;
  wanted.refcount_order = order;
  for (std::uint64_t cluster = 0; cluster < counts_.clusters(); ++cluster) {
    const std::uint64_t count = counts_.get(cluster);
    if (count <= wanted.max_refcount()) continue;
    co_return fail(EINVAL,
                   "Cannot decrease refcount entry width to {} bits: Cluster at offset {:#x} has a "
                   "refcount of {}",
                   wanted.refcount_bits(), cluster << g_.cluster_bits, count);
  }
  g_ = wanted;
  const unsigned before = header_.refcount_order;
  header_.refcount_order = order;
  const std::uint64_t table = header_.refcount_table_offset;
  step = co_await rebuild();
  if (!step) {
    if (header_.refcount_table_offset == table) header_.refcount_order = before;
    co_return forward_error(step, "could not write the new refcounts");
  }
  step = co_await free_old_structure();
  co_return step;
}

Task<Result<void>> change_refcount_width(BlockNode& file, Header& header, unsigned order,
                                         const std::atomic<bool>* cancelled) {
  CheckRequest request{};
  request.cancelled = cancelled;
  Checker checker(file, header, request);
  auto changed = co_await checker.change_width(order);
  co_return changed;
}

}  // namespace platter::qcow2
