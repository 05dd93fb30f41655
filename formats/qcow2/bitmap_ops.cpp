// Adding, removing and changing persistent bitmaps. Each change works on a copy of the list, which
// then replaces it, on disk and in memory.
#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <functional>

#include "block/base/checked.h"
#include "formats/qcow2/bitmaps.h"
#include "formats/qcow2/driver.h"

namespace platter::qcow2 {

// Without the autoclear bit nothing would tell that a program unaware of bitmaps has written.
bool Bitmaps::supported() const { return driver_.core_.geometry.version >= 3; }

std::vector<BitmapInfo> Bitmaps::list() const {
  std::vector<BitmapInfo> list;
  list.reserve(bitmaps_.size());
  for (const Bitmap& bitmap : bitmaps_) {
    list.push_back({.name = bitmap.entry.name,
                    .granularity = std::uint64_t{1} << bitmap.entry.granularity_bits,
                    .enabled = bitmap.enabled(),
                    .inconsistent = bitmap.inconsistent()});
  }
  return list;
}

Result<std::size_t> Bitmaps::find(const List& list, const std::string& name) {
  const auto found =
      std::ranges::find_if(list, [&](const Bitmap& bitmap) { return bitmap.entry.name == name; });
  if (found == list.end()) return fail(ENOENT, "Dirty bitmap '{}' not found", name);
  return static_cast<std::size_t>(found - list.begin());
}

Result<void> Bitmaps::check_same_size(const DirtyBitmap& source) const {
  const std::uint64_t size = driver_.core_.header.size;
  if (source.size() == size) return {};
  return fail(EINVAL,
              "Bitmaps are of different sizes (destination size is {}, source size is {}) and "
              "can't be merged",
              size, source.size());
}

// Adding and removing
// ------------------------------------------------------------------------------------------------

Result<void> Bitmaps::check_size(std::uint64_t size, unsigned granularity_bits) const {
  // Its table would be empty, which the format does not allow.
  if (size == 0) return fail(EINVAL, "The disk is empty");
  const std::uint64_t cluster = driver_.core_.geometry.cluster_size();
  const std::uint64_t entries = bitmap_table_entries(size, granularity_bits, cluster);
  if (entries <= kMaxBitmapTableEntries && entries * cluster <= kMaxBitmapBytes) return {};
  return fail(EINVAL, "Too much space will be occupied by the bitmap. Use larger granularity");
}

Result<void> Bitmaps::check_new(const List& list, const BitmapEntry& entry) const {
  const Core& core = driver_.core_;
  const std::string& name = entry.name;
  const auto refusal = [&](const std::string& why) {
    return fail(EINVAL, "Can't make bitmap '{}' persistent in '{}': {}", name, node_name_, why);
  };
  if (!supported()) return refusal("Cannot store dirty bitmaps in qcow2 v2 files");
  const Result<void> fits = check_size(core.header.size, entry.granularity_bits);
  if (!fits) return refusal(fits.error().message());
  if (name.size() > kMaxBitmapName)
    return refusal(fmt::format("Name length exceeds maximum ({} characters)", kMaxBitmapName));
  if (list.size() >= kMaxBitmaps)
    return refusal("Maximum number of persistent bitmaps is already reached");
  std::vector<BitmapEntry> all;
  for (const Bitmap& bitmap : list) all.push_back(bitmap.entry);
  if (encode_bitmap_directory(all).size() + align_up(24 + name.size(), 8) > kMaxBitmapDirectorySize)
    return refusal("Not enough space in the bitmap directory");
  if (find(list, name)) return fail(EEXIST, "Bitmap already exists: {}", name);
  return {};
}

Task<Result<void>> Bitmaps::add(std::string name, std::uint64_t granularity, bool enabled) {
  if (name.empty()) co_return fail(EINVAL, "Bitmap name cannot be empty");
  if (granularity == 0)
    granularity = std::clamp<std::uint64_t>(driver_.core_.geometry.cluster_size(), 4096, 65536);
  if (granularity < 512 || granularity > std::uint64_t{1} << kMaxBitmapGranularityBits ||
      !is_power_of_two(granularity))
    co_return fail(EINVAL, "Granularity must be power of 2 and at least 512");
  BitmapEntry entry;
  entry.name = std::move(name);
  entry.granularity_bits = static_cast<unsigned>(std::countr_zero(granularity));
  entry.flags = enabled ? bitmap_flag::kAuto : 0;
  const auto work = [this, &entry] { return add_now(entry); };
  const std::function<Task<Result<void>>()> named(work);
  auto done = co_await driver_.exclusively(named, false);
  co_return done;
}

Task<Result<void>> Bitmaps::add_now(BitmapEntry entry) {
  const Result<void> fits = check_new(bitmaps_, entry);
  PLATTER_CO_TRY(fits);
  List next = bitmaps_;
  auto bits = std::make_shared<DirtyBitmap>(driver_.core_.header.size, entry.granularity_bits);
  next.push_back({.entry = std::move(entry), .bits = std::move(bits), .changed = true});
  auto replaced = co_await replace(std::move(next));
  co_return replaced;
}

Task<Result<void>> Bitmaps::add_copies(std::vector<BitmapCopy> copies) {
  const auto work = [this, &copies] { return add_copies_now(copies); };
  const std::function<Task<Result<void>>()> named(work);
  auto done = co_await driver_.exclusively(named, false);
  co_return done;
}

Task<Result<void>> Bitmaps::add_copies_now(std::vector<BitmapCopy> copies) {
  List next = bitmaps_;
  for (const BitmapCopy& copy : copies) {
    BitmapEntry entry;
    entry.name = copy.name;
    entry.granularity_bits = static_cast<unsigned>(std::countr_zero(copy.marked->granularity()));
    entry.flags = copy.enabled ? bitmap_flag::kAuto : 0;
    const Result<void> fits = check_new(next, entry);
    if (!fits) co_return forward_error(fits, "Failed to create bitmap {}", copy.name);
    const Result<void> same = check_same_size(*copy.marked);
    if (!same) co_return forward_error(same, "Failed to populate bitmap {}", copy.name);
    next.push_back({.entry = std::move(entry), .bits = copy.marked->clone(), .changed = true});
  }
  auto replaced = co_await replace(std::move(next));
  co_return replaced;
}

Task<Result<void>> Bitmaps::remove(std::string name) {
  const auto work = [this, &name] { return remove_now(name); };
  const std::function<Task<Result<void>>()> named(work);
  auto done = co_await driver_.exclusively(named, false);
  co_return done;
}

Task<Result<void>> Bitmaps::remove_now(std::string name) {
  const Result<std::size_t> which = find(bitmaps_, name);
  PLATTER_CO_TRY(which);
  List next = bitmaps_;
  next.erase(next.begin() + static_cast<std::ptrdiff_t>(*which));
  auto replaced = co_await replace(std::move(next));
  co_return replaced;
}

// Changing
// ------------------------------------------------------------------------------------------------

Task<Result<void>> Bitmaps::clear(std::string name) {
  const auto work = [this, &name] { return clear_now(name); };
  const std::function<Task<Result<void>>()> named(work);
  auto done = co_await driver_.exclusively(named, false);
  co_return done;
}

Task<Result<void>> Bitmaps::clear_now(std::string name) {
  const Result<std::size_t> which = find(bitmaps_, name);
  PLATTER_CO_TRY(which);
  const Result<void> can = usable(bitmaps_[*which]);
  PLATTER_CO_TRY(can);
  List next = bitmaps_;
  Bitmap& bitmap = next[*which];
  bitmap.bits =
      std::make_shared<DirtyBitmap>(driver_.core_.header.size, bitmap.entry.granularity_bits);
  bitmap.changed = true;
  auto replaced = co_await replace(std::move(next));
  co_return replaced;
}

Task<Result<void>> Bitmaps::set_enabled(std::string name, bool enabled) {
  const auto work = [this, &name, enabled] { return enable_now(name, enabled); };
  const std::function<Task<Result<void>>()> named(work);
  auto done = co_await driver_.exclusively(named, false);
  co_return done;
}

Task<Result<void>> Bitmaps::enable_now(std::string name, bool enabled) {
  const Result<std::size_t> which = find(bitmaps_, name);
  PLATTER_CO_TRY(which);
  const Result<void> can = usable(bitmaps_[*which]);
  PLATTER_CO_TRY(can);
  if (bitmaps_[*which].enabled() == enabled) co_return {};
  List next = bitmaps_;
  Bitmap& bitmap = next[*which];
  auto loaded = co_await load(bitmap);
  PLATTER_CO_TRY(loaded);
  // What was marked while it was enabled is not yet on disk.
  bitmap.changed = bitmap.flagged;
  bitmap.entry.flags ^= bitmap_flag::kAuto;
  auto replaced = co_await replace(std::move(next));
  co_return replaced;
}

Task<Result<void>> Bitmaps::merge(std::string name, std::shared_ptr<const DirtyBitmap> source) {
  const auto work = [this, &name, &source] { return merge_now(name, source); };
  const std::function<Task<Result<void>>()> named(work);
  auto done = co_await driver_.exclusively(named, false);
  co_return done;
}

Task<Result<void>> Bitmaps::merge_now(std::string name, std::shared_ptr<const DirtyBitmap> source) {
  const Result<std::size_t> which = find(bitmaps_, name);
  PLATTER_CO_TRY(which);
  const Result<void> can = usable(bitmaps_[*which]);
  PLATTER_CO_TRY(can);
  const Result<void> same = check_same_size(*source);
  PLATTER_CO_TRY(same);
  List next = bitmaps_;
  Bitmap& bitmap = next[*which];
  auto loaded = co_await load(bitmap);
  PLATTER_CO_TRY(loaded);
  std::shared_ptr<DirtyBitmap> merged = bitmap.bits->clone();
  merged->merge(*source);
  bitmap.bits = std::move(merged);
  bitmap.changed = true;
  auto replaced = co_await replace(std::move(next));
  co_return replaced;
}

Task<Result<std::shared_ptr<const DirtyBitmap>>> Bitmaps::contents(std::string name) {
  // A resize would replace it.
  auto alone = co_await driver_.operations_.lock();
  const Result<std::size_t> which = find(bitmaps_, name);
  PLATTER_CO_TRY(which);
  const Bitmap& bitmap = bitmaps_[*which];
  const Result<void> can = usable(bitmap);
  PLATTER_CO_TRY(can);
  std::shared_ptr<const DirtyBitmap> copy;
  if (bitmap.bits) {
    copy = bitmap.bits->clone();
  } else {
    const Core& core = driver_.core_;
    auto loaded = co_await load_bitmap(*core.file, core.geometry, bitmap.entry, core.header.size);
    PLATTER_CO_TRY(loaded);
    copy = std::move(*loaded);
  }
  co_return copy;
}

}  // namespace platter::qcow2
