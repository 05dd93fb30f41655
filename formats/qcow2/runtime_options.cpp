// The options of an open image: caches, lazy refcounts, what is discarded; and changing them.
#include <algorithm>

#include "block/base/checked.h"
#include "formats/qcow2/driver.h"

namespace platter::qcow2 {
namespace {

constexpr std::string_view kKeys[] = {
    "cache-size",           "l2-cache-size",  "l2-cache-entry-size",   "refcount-cache-size",
    "cache-clean-interval", "lazy-refcounts", "pass-discard-request",  "pass-discard-snapshot",
    "pass-discard-other",   "overlap-check",  "overlap-check.template"};
constexpr std::string_view kOverlaps[] = {"main-header",    "active-l1",      "active-l2",
                                          "refcount-table", "refcount-block", "snapshot-table",
                                          "inactive-l1",    "inactive-l2",    "bitmap-directory"};

// Overlaps with metadata are always looked for, so these choose nothing.
Result<void> take_overlap_checks(Options& options) {
  const std::optional<std::string> plain = options.take_string("overlap-check");
  const std::optional<std::string> named = options.take_string("overlap-check.template");
  if (plain && named && *plain != *named) {
    return fail(EINVAL,
                "Conflicting values for qcow2 options 'overlap-check' ('{}') and "
                "'overlap-check.template' ('{}')",
                *plain, *named);
  }
  const std::string mode = plain.value_or(named.value_or("cached"));
  if (mode != "none" && mode != "constant" && mode != "cached" && mode != "all") {
    return fail(EINVAL,
                "Unsupported value '{}' for qcow2 option 'overlap-check'. Allowed are any of the "
                "following: none, constant, cached, all",
                mode);
  }
  for (const std::string_view structure : kOverlaps) {
    const auto on = options.take_bool(fmt::format("overlap-check.{}", structure));
    PLATTER_TRY(on);
  }
  return {};
}

}  // namespace

Options take_runtime_keys(Options& options) {
  Options taken;
  const auto take = [&](std::string key) {
    if (auto value = options.take_string(key)) taken.set(std::move(key), std::move(*value));
  };
  for (const std::string_view key : kKeys) take(std::string(key));
  for (const std::string_view structure : kOverlaps)
    take(fmt::format("overlap-check.{}", structure));
  return taken;
}

Result<RuntimeOptions> take_runtime_options(Options& options, const Geometry& geometry,
                                            std::uint64_t l1_entries) {
  RuntimeOptions r;
  const auto cache = options.take_size("cache-size");
  PLATTER_TRY(cache);
  const auto l2 = options.take_size("l2-cache-size");
  PLATTER_TRY(l2);
  const auto entry = options.take_size("l2-cache-entry-size");
  PLATTER_TRY(entry);
  const auto refcounts = options.take_size("refcount-cache-size");
  PLATTER_TRY(refcounts);
  const auto interval = options.take_number("cache-clean-interval");
  PLATTER_TRY(interval);
  const auto lazy = options.take_bool("lazy-refcounts");
  PLATTER_TRY(lazy);
  const auto request = options.take_bool("pass-discard-request");
  PLATTER_TRY(request);
  const auto snapshot = options.take_bool("pass-discard-snapshot");
  PLATTER_TRY(snapshot);
  const auto other = options.take_bool("pass-discard-other");
  PLATTER_TRY(other);
  auto overlaps = take_overlap_checks(options);
  PLATTER_TRY(overlaps);

  r.l2_cache = l2->value_or(0);
  r.refcount_cache = refcounts->value_or(0);
  if (*cache) {
    if (*l2 && *refcounts) {
      return fail(
          EINVAL,
          "cache-size, l2-cache-size and refcount-cache-size may not be set at the same time");
    }
    if (r.l2_cache > **cache) return fail(EINVAL, "l2-cache-size may not exceed cache-size");
    if (r.refcount_cache > **cache)
      return fail(EINVAL, "refcount-cache-size may not exceed cache-size");
    const std::uint64_t all = l1_entries << geometry.cluster_bits;
    if (*l2) {
      r.refcount_cache = **cache - r.l2_cache;
    } else if (*refcounts) {
      r.l2_cache = **cache - r.refcount_cache;
    } else {
      r.l2_cache = std::min(all, **cache - **cache / 8);
      r.refcount_cache = **cache - r.l2_cache;
    }
  }
  if (*entry) {
    if (!is_power_of_two(**entry) || **entry < 512 || **entry > geometry.cluster_size()) {
      return fail(
          EINVAL,
          "L2 cache entry size must be a power of two between 512 and the cluster size ({})",
          geometry.cluster_size());
    }
    r.l2_cache_entry = **entry;
  }
  if (interval->value_or(0) > std::numeric_limits<std::uint32_t>::max())
    return fail(EINVAL, "Cache clean interval too big");
  r.cache_clean_interval = interval->value_or(r.cache_clean_interval);
  if (lazy->value_or(false) && geometry.version < 3) {
    return fail(EINVAL,
                "Lazy refcounts require a qcow2 image with at least qemu 1.1 compatibility level");
  }
  r.lazy_refcounts = *lazy;
  r.pass_discard_request = *request;
  r.pass_discard_snapshot = snapshot->value_or(true);
  r.pass_discard_other = other->value_or(false);
  return r;
}

Result<std::function<Task<Result<void>>()>> Qcow2Driver::plan_change(Options& options) {
  const Options changes = take_runtime_keys(options);
  if (changes.empty()) return std::function<Task<Result<void>>()>();
  Options given = given_;
  for (const auto& [key, value] : changes) given.set(key, value);
  // The two spellings of one option: the newer one counts.
  if (changes.has("overlap-check") && !changes.has("overlap-check.template"))
    given.take_string("overlap-check.template");
  if (changes.has("overlap-check.template") && !changes.has("overlap-check"))
    given.take_string("overlap-check");
  Options unread = given;
  auto now = take_runtime_options(unread, core_.geometry, core_.header.l1_size);
  PLATTER_TRY(now);
  return [this, given = std::move(given), now = *now] { return change_options(given, now); };
}

Task<Result<void>> Qcow2Driver::change_options(Options given, RuntimeOptions options) {
  if (!core_.writable) {
    // Its caches stay as large as they are until it is opened for writing.
    auto taken = co_await take_options(given, options);
    co_return taken;
  }
  // Tables are read anew, into caches of the new sizes.
  const auto work = [this, &given, &options]() { return take_options(given, options); };
  const std::function<Task<Result<void>>()> named(work);
  auto changed = co_await exclusively(named, true);
  co_return changed;
}

Task<Result<void>> Qcow2Driver::take_options(const Options& given, const RuntimeOptions& options) {
  options_ = options;
  given_ = given;
  start_shedding();
  choose_discards(discard_unmap_);
  co_return {};
}

}  // namespace platter::qcow2
