#include "formats/qcow2/bitmaps.h"

#include <algorithm>
#include <set>

#include "block/base/checked.h"
#include "formats/qcow2/driver.h"
#include "formats/qcow2/storage_io.h"

namespace platter::qcow2 {

// Opening
// ------------------------------------------------------------------------------------------------

Task<Result<void>> Bitmaps::open(std::string node_name) {
  node_name_ = std::move(node_name);
  const Core& core = driver_.core_;
  if (!core.header.extensions.bitmaps) co_return {};
  auto entries = co_await read_bitmap_directory(*core.file, core.header);
  PLATTER_CO_TRY(entries);
  directory_ = *core.header.extensions.bitmaps;
  bitmaps_.reserve(entries->size());
  for (BitmapEntry& entry : *entries) bitmaps_.push_back({.entry = std::move(entry), .bits = {}});
  co_return {};
}

std::vector<BitmapEntry> Bitmaps::entries() const {
  std::vector<BitmapEntry> entries;
  entries.reserve(bitmaps_.size());
  for (const Bitmap& bitmap : bitmaps_) {
    entries.push_back(bitmap.entry);
    if (running_ && bitmap.tracked() && ready_.load(std::memory_order_acquire))
      entries.back().flags |= bitmap_flag::kInUse;
  }
  return entries;
}

void Bitmaps::list_metadata() const {
  if (bitmaps_.empty()) return;
  MetadataMap& map = driver_.core_.metadata;
  map.add(directory_.directory_offset, directory_.directory_size);
  for (const Bitmap& bitmap : bitmaps_)
    map.add(bitmap.entry.table_offset, std::uint64_t{bitmap.entry.table_size} * 8);
}

Result<void> Bitmaps::usable(const Bitmap& bitmap) {
  if (bitmap.inconsistent()) {
    return fail(EINVAL,
                "Bitmap '{}' is inconsistent and cannot be used: "
                "Try block-dirty-bitmap-remove to delete this bitmap from disk",
                bitmap.entry.name);
  }
  if (bitmap.foreign()) {
    return fail(ENOTSUP, "Bitmap '{}' has extra data of unknown meaning and cannot be used",
                bitmap.entry.name);
  }
  return {};
}

Task<Result<void>> Bitmaps::load(Bitmap& bitmap) {
  if (bitmap.bits) co_return {};
  const Core& core = driver_.core_;
  const std::uint64_t bytes = std::uint64_t{bitmap.entry.table_size} << core.geometry.cluster_bits;
  if (loaded_bytes_ + bytes > kMaxLoadedBitmapBytes) {
    co_return fail(EFBIG, "bitmap '{}': the bitmaps in memory would take {} bytes, at most {}",
                   bitmap.entry.name, loaded_bytes_ + bytes, kMaxLoadedBitmapBytes);
  }
  auto bits = co_await load_bitmap(*core.file, core.geometry, bitmap.entry, core.header.size);
  PLATTER_CO_TRY(bits);
  bitmap.bits = std::move(*bits);
  loaded_bytes_ += bytes;
  co_return {};
}

Task<Result<void>> Bitmaps::load_enabled() {
  for (Bitmap& bitmap : bitmaps_) {
    if (!bitmap.tracked()) continue;
    // It would have to be kept true.
    const Result<void> can = usable(bitmap);
    PLATTER_CO_TRY(can);
    auto loaded = co_await load(bitmap);
    PLATTER_CO_TRY(loaded);
  }
  co_return {};
}

// Marking
// ------------------------------------------------------------------------------------------------

void Bitmaps::track() {
  tracked_.clear();
  loaded_bytes_ = 0;
  bool ready = true;
  for (const Bitmap& bitmap : bitmaps_) {
    if (bitmap.bits) loaded_bytes_ += bitmap.bits->bytes();
    if (!running_ || !bitmap.tracked()) continue;
    tracked_.push_back(bitmap.bits.get());
    ready = ready && bitmap.flagged;
  }
  ready_.store(ready, std::memory_order_release);
  driver_.set_notes_changes(!tracked_.empty());
}

void Bitmaps::start() {
  running_ = true;
  track();
}

void Bitmaps::stop() {
  running_ = false;
  for (Bitmap& bitmap : bitmaps_) bitmap.bits.reset();
  track();
}

bool Bitmaps::note(std::uint64_t offset, std::uint64_t length) {
  for (DirtyBitmap* const bits : tracked_) bits->set(offset, length);
  return ready_.load(std::memory_order_acquire);
}

Task<Result<void>> Bitmaps::prepare() {
  auto guard = co_await flagging_.lock();
  if (ready_.load(std::memory_order_acquire)) co_return {};
  auto flagged = co_await flag();
  if (flagged) ready_.store(true, std::memory_order_release);
  co_return flagged;
}

Task<Result<void>> Bitmaps::flag() {
  Core& core = driver_.core_;
  if (core.poisoned.load()) co_return driver_.core_.given_up();
  std::vector<BitmapEntry> entries;
  bool changes = false;
  for (const Bitmap& bitmap : bitmaps_) {
    entries.push_back(bitmap.entry);
    if (bitmap.tracked()) entries.back().flags |= bitmap_flag::kInUse;
    changes = changes || (bitmap.tracked() && !bitmap.flagged);
  }
  if (header_uncertain_) {
    auto guard = co_await core.header_mutex.lock();
    auto settled = co_await core.publish_header();
    PLATTER_CO_TRY(settled);
    header_uncertain_ = false;
  }
  if (!changes) co_return {};
  // Only flags change: whatever part of this reaches the disk leaves a whole directory.
  const std::vector<std::byte> bytes = encode_bitmap_directory(entries);
  const IoVec iov = IoVec::of_const(bytes);
  auto written = co_await core.file->write(directory_.directory_offset, iov);
  if (written) written = co_await core.file->flush();
  if (!written) co_return forward_error(written, "could not flag bitmaps as in use");
  for (Bitmap& bitmap : bitmaps_) bitmap.flagged = bitmap.tracked();
  co_return {};
}

// Storing
// ------------------------------------------------------------------------------------------------

Task<Result<void>> Bitmaps::store() {
  const auto stale = [](const Bitmap& bitmap) { return bitmap.flagged || bitmap.changed; };
  if (std::ranges::none_of(bitmaps_, stale)) co_return {};
  auto replaced = co_await replace(bitmaps_);
  co_return replaced;
}

Task<std::vector<Bitmaps::Run>> Bitmaps::clusters_of(BitmapEntry entry) {
  const Core& core = driver_.core_;
  const Geometry& g = core.geometry;
  std::vector<Run> runs;
  auto table = co_await read_bitmap_table(*core.file, g, entry);
  // What cannot be told is left to the checker: it is only space.
  if (!table) co_return runs;
  runs.push_back(
      {entry.table_offset, g.clusters_for(std::uint64_t{entry.table_size} * 8) << g.cluster_bits});
  for (const std::uint64_t word : *table) {
    const std::uint64_t host = word & kOffsetMask;
    if (host == 0 || core.metadata.contains(g.cluster_index(host))) continue;
    if (runs.back().host + runs.back().length == host && runs.size() > 1) {
      runs.back().length += g.cluster_size();
    } else {
      runs.push_back({host, g.cluster_size()});
    }
  }
  co_return runs;
}

Task<Result<void>> Bitmaps::write_directory(Change& change) {
  if (change.next.empty()) co_return {};
  Core& core = driver_.core_;
  std::vector<BitmapEntry> entries;
  for (const Bitmap& bitmap : change.next) entries.push_back(bitmap.entry);
  const std::vector<std::byte> bytes = encode_bitmap_directory(entries);
  const std::uint64_t clusters = core.geometry.clusters_for(bytes.size());
  auto reserved = co_await driver_.clusters_.reserve_exactly(clusters);
  PLATTER_CO_TRY(reserved);
  change.place.count = static_cast<std::uint32_t>(entries.size());
  change.place.directory_size = bytes.size();
  change.place.directory_offset = reserved->host();
  const Buffer copy = Buffer::zeroed(clusters << core.geometry.cluster_bits);
  std::memcpy(copy.data(), bytes.data(), bytes.size());
  change.placed.places.push_back(std::move(*reserved));
  auto written = co_await core.file->write(change.place.directory_offset, copy.iov());
  co_return written;
}

// An image whose enabled bitmaps do not fit in memory could not be opened for writing any more.
Result<void> Bitmaps::check_memory(const List& next) const {
  const Geometry& g = driver_.core_.geometry;
  std::uint64_t bytes = 0;
  for (const Bitmap& bitmap : next) {
    if (!bitmap.tracked()) continue;
    bytes +=
        bitmap_table_entries(bitmap.bits->size(), bitmap.entry.granularity_bits, g.cluster_size())
        << g.cluster_bits;
  }
  if (bytes <= kMaxLoadedBitmapBytes) return {};
  return fail(EFBIG, "the enabled bitmaps would take {} bytes of memory, at most {}", bytes,
              kMaxLoadedBitmapBytes);
}

Task<Result<void>> Bitmaps::stage(Change& change) {
  Core& core = driver_.core_;
  const Geometry& g = core.geometry;
  if (core.poisoned.load()) co_return driver_.core_.given_up();
  const Result<void> fits = check_memory(change.next);
  PLATTER_CO_TRY(fits);
  if (!bitmaps_.empty()) {
    change.old.push_back(
        {directory_.directory_offset, g.clusters_for(directory_.directory_size) << g.cluster_bits});
  }
  for (Bitmap& bitmap : change.next) {
    if (!bitmap.changed && !(bitmap.flagged && bitmap.tracked())) continue;
    auto stored =
        co_await store_bitmap(core, driver_.clusters_, *bitmap.bits, bitmap.entry, change.placed);
    if (!stored) co_return forward_error(stored, "could not store bitmap '{}'", bitmap.entry.name);
  }
  std::set<std::uint64_t> kept;
  for (const Bitmap& bitmap : change.next) kept.insert(bitmap.entry.table_offset);
  for (const Bitmap& bitmap : bitmaps_) {
    if (kept.contains(bitmap.entry.table_offset)) continue;
    auto runs = co_await clusters_of(bitmap.entry);
    change.old.insert(change.old.end(), runs.begin(), runs.end());
  }
  auto written = co_await write_directory(change);
  // The clusters' counts, and all that was written, before the header names them.
  if (written) written = co_await driver_.write_back_.commit(WriteBack::Flush::kOwn);
  if (!written) co_return forward_error(written, "could not store the bitmap directory");
  co_return {};
}

void Bitmaps::put_into(Header& header, const Change& change) const {
  if (bitmaps_.empty() && change.next.empty()) return;
  if (change.next.empty()) {
    header.extensions.bitmaps.reset();
    header.autoclear_features &= ~autoclear::kBitmaps;
  } else {
    header.extensions.bitmaps = change.place;
    header.autoclear_features |= autoclear::kBitmaps;
  }
}

void Bitmaps::take_over(Change& change) {
  Core& core = driver_.core_;
  const Geometry& g = core.geometry;
  MutexLock lock(core.mutex());
  change.placed.link();
  for (const Run& run : change.old) {
    core.metadata.remove(run.host, run.length);
    driver_.clusters_.unlink(g.cluster_index(run.host), run.length >> g.cluster_bits,
                             Discard::kOther);
  }
  for (Bitmap& bitmap : change.next) {
    bitmap.changed = bitmap.flagged = false;
    if (!bitmap.tracked()) bitmap.bits.reset();
  }
  bitmaps_ = std::move(change.next);
  directory_ = change.place;
  list_metadata();
  track();
}

void Bitmaps::give_up(Change& change) {
  // The header may have reached the disk: both must stay.
  MutexLock lock(driver_.core_.mutex());
  change.placed.link();
  header_uncertain_ = true;
  ready_.store(false, std::memory_order_release);
}

Task<Result<void>> Bitmaps::replace(List next) {
  Core& core = driver_.core_;
  Change change;
  change.next = std::move(next);
  auto staged = co_await stage(change);
  PLATTER_CO_TRY(staged);
  auto guard = co_await core.header_mutex.lock();
  const Header before = core.header;
  put_into(core.header, change);
  auto written = co_await core.publish_header();
  if (written) {
    take_over(change);
  } else {
    core.header = before;
    give_up(change);
  }
  co_return written;
}

// Resizing
// ------------------------------------------------------------------------------------------------

Task<Result<void>> Bitmaps::begin_resize(std::uint64_t size, Change& change) {
  if (bitmaps_.empty()) co_return {};
  for (Bitmap& bitmap : bitmaps_) {
    const Result<void> can = usable(bitmap);
    PLATTER_CO_TRY(can);
    const Result<void> fits = check_size(size, bitmap.entry.granularity_bits);
    if (!fits) co_return forward_error(fits, "bitmap '{}'", bitmap.entry.name);
    auto loaded = co_await load(bitmap);
    PLATTER_CO_TRY(loaded);
  }
  change.next = bitmaps_;
  for (Bitmap& bitmap : change.next) {
    bitmap.bits = bitmap.bits->resized(size);
    bitmap.changed = true;
  }
  auto staged = co_await stage(change);
  co_return staged;
}

}  // namespace platter::qcow2
