#include "powercut/guest.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>

#include "block/exec/buffer.h"

namespace platter::powercut {
namespace {

// What is read at once.
constexpr std::uint64_t kPiece = 256 << 10;

Stamp next_stamp() {
  static Stamp last = 100;
  return ++last;
}

}  // namespace

std::size_t Guest::now() {
  if (!log_) return ++ticks_;
  log_->mark("");
  return log_->moments();
}

Task<Result<void>> Guest::write_stamped(std::uint64_t offset, std::uint64_t length,
                                        WriteFlags flags) {
  const Stamp stamp = next_stamp();
  const Buffer data(length);
  for (std::uint64_t at = 0; at < length; at += kSector)
    put_stamp(data.span(at, kSector), stamp, (offset + at) / kSector);
  const std::size_t begin = now();
  auto done = co_await node_->write(offset, data.iov(), flags);
  history_.note(offset, length, stamp, begin, end_of(done));
  co_return done;
}

Task<Result<void>> Guest::write(std::uint64_t offset, std::uint64_t length) {
  return write_stamped(offset, length, WriteFlags{});
}

Task<Result<void>> Guest::write_compressed(std::uint64_t offset, std::uint64_t length) {
  return write_stamped(offset, length, WriteFlags{.compressed = true});
}

Task<Result<void>> Guest::write_zeroes(std::uint64_t offset, std::uint64_t length, bool may_unmap) {
  const std::size_t begin = now();
  const ZeroFlags flags{.may_unmap = may_unmap};
  auto done = co_await node_->write_zeroes(offset, length, flags);
  history_.note(offset, length, 0, begin, end_of(done));
  co_return done;
}

Task<Result<void>> Guest::discard(std::uint64_t offset, std::uint64_t length) {
  const std::size_t begin = now();
  auto done = co_await node_->discard(offset, length);
  history_.note(offset, length, 0, begin, end_of(done), true);
  co_return done;
}

Task<Result<void>> Guest::flush() {
  const std::size_t begin = now();
  auto done = co_await node_->flush();
  if (done) history_.note_flush(begin, now());
  co_return done;
}

Task<Result<void>> Guest::save_vm_state(std::uint64_t clusters) {
  std::vector<std::byte> state(clusters * cluster_, std::byte{0xa5});
  const IoVec iov = IoVec::of_const(state);
  auto done = co_await node_->driver().vm_state()->write(0, iov);
  co_return done;
}

Task<Result<void>> Guest::snapshot(std::string name) {
  auto stamps = co_await read_stamps(*node_, history_);
  PLATTER_CO_TRY(stamps);
  SnapshotRecord record{.name = name, .created_begin = now(), .stamps = std::move(*stamps)};
  record.size = size();
  auto done = co_await node_->driver().snapshots()->create(name, 1, 0);
  record.created_end = end_of(done);
  // What others did meanwhile need not be durable.
  if (done) history_.note_flush(record.created_begin, record.created_end);
  history_.snapshots().push_back(std::move(record));
  co_return done;
}

Task<Result<void>> Guest::apply(std::string name) {
  const auto& all = history_.snapshots();
  const auto record = std::find_if(all.begin(), all.end(), [&](const SnapshotRecord& one) {
    return one.name == name && one.removed_begin == kNever;
  });
  const std::uint64_t old_size = size();
  const std::size_t begin = now();
  auto done = co_await node_->driver().snapshots()->apply(name);
  const std::size_t end = end_of(done);
  if (record == all.end()) co_return done;
  std::vector<std::uint64_t> touched;
  for (const auto& [sector, values] : history_.sectors()) touched.push_back(sector);
  for (const std::uint64_t sector : touched) {
    const auto known = record->stamps.find(sector);
    const Stamp stamp =
        known != record->stamps.end() ? known->second : history_.first_stamp(sector);
    history_.note(sector * kSector, kSector, stamp, begin, end);
  }
  if (record->size != old_size) history_.note_size(record->size, begin, end);
  note_durable(done, end);
  co_return done;
}

Task<Result<void>> Guest::remove(std::string name) {
  const std::size_t begin = now();
  auto done = co_await node_->driver().snapshots()->remove(name);
  const std::size_t end = end_of(done);
  for (SnapshotRecord& record : history_.snapshots()) {
    if (record.name != name || record.removed_end != kNever) continue;
    record.removed_begin = begin;
    record.removed_end = end;
  }
  if (done) history_.note_flush(begin, end);
  co_return done;
}

Task<Result<void>> Guest::rename(std::string name, std::string new_name) {
  const std::size_t begin = now();
  auto done = co_await node_->driver().snapshots()->rename(name, new_name);
  const std::size_t end = end_of(done);
  std::optional<SnapshotRecord> renamed;
  for (SnapshotRecord& record : history_.snapshots()) {
    if ((record.name != name && record.name != new_name) || record.removed_begin != kNever)
      continue;
    if (record.name == name) {
      renamed = record;
      renamed->name = new_name;
      renamed->renamed_from = name;
      renamed->created_begin = begin;
      renamed->created_end = end;
    }
    record.removed_begin = begin;
    record.removed_end = end;
  }
  if (renamed) history_.snapshots().push_back(std::move(*renamed));
  if (done) history_.note_flush(begin, end);
  co_return done;
}

Task<Result<void>> Guest::resize(std::uint64_t size, Preallocation preallocation) {
  const std::uint64_t old_size = node_->size();
  const std::size_t begin = now();
  const ResizeRequest request{.size = size, .preallocation = preallocation};
  auto done = co_await node_->resize(request);
  const std::size_t end = end_of(done);
  // What is cut off may be gone before the size says so; what is added reads as zeroes.
  const std::uint64_t from = std::min(size, old_size);
  const std::uint64_t to = std::max(size, old_size);
  if (to - from <= (8 << 20)) history_.note(from, to - from, 0, begin, end);
  history_.note_size(size, begin, end);
  note_bitmaps_resized(size, begin, end);
  note_durable(done, end);
  co_return done;
}

Task<Result<void>> Guest::change_keys(const std::string& options, bool force, const char* opened,
                                      const char* refused) {
  auto parsed = Options::parse_keyval(options);
  PLATTER_CO_TRY(parsed);
  const std::function<void(std::uint64_t, std::uint64_t)> silent;
  const std::size_t begin = now();
  auto done = co_await node_->driver().amender()->amend(std::move(*parsed), force, silent);
  const std::size_t end = end_of(done);
  if (opened) history_.keys().push_back({opened, true, begin, end});
  if (refused) history_.keys().push_back({refused, false, begin, end});
  co_return done;
}

void Guest::note_bitmaps_resized(std::uint64_t size, std::size_t begin, std::size_t end) {
  std::map<std::string, BitmapRecord> latest;
  for (const BitmapRecord& one : history_.bitmaps()) latest[one.name] = one;
  for (auto& [name, one] : latest) {
    if (!one.contents) continue;
    one.contents = one.contents->resized(size);
    one.begin = begin;
    one.end = end;
    history_.bitmaps().push_back(std::move(one));
  }
}

Task<Result<void>> Guest::note_bitmap(BitmapRecord next, Task<Result<void>> change) {
  auto done = co_await change;
  next.end = end_of(done);
  if (done) history_.note_flush(next.begin, next.end);
  history_.bitmaps().push_back(std::move(next));
  co_return done;
}

Task<Result<void>> Guest::add_bitmap(std::string name, std::uint64_t granularity, bool enabled) {
  const auto bits = static_cast<unsigned>(std::countr_zero(granularity));
  BitmapRecord next{.name = name,
                    .contents = std::make_shared<DirtyBitmap>(size(), bits),
                    .enabled = enabled,
                    .begin = now()};
  return note_bitmap(std::move(next), bitmaps().add(std::move(name), granularity, enabled));
}

Task<Result<void>> Guest::remove_bitmap(std::string name) {
  BitmapRecord next{.name = name, .contents = nullptr, .begin = now()};
  return note_bitmap(std::move(next), bitmaps().remove(std::move(name)));
}

Task<Result<void>> Guest::merge_bitmap(std::string name, std::string source) {
  auto before = co_await bitmaps().contents(name);
  PLATTER_CO_TRY(before);
  auto more = co_await bitmaps().contents(source);
  PLATTER_CO_TRY(more);
  std::shared_ptr<DirtyBitmap> merged = (*before)->clone();
  merged->merge(**more);
  BitmapRecord next{
      .name = name, .contents = std::move(merged), .enabled = is_enabled(name), .begin = now()};
  auto done =
      co_await note_bitmap(std::move(next), bitmaps().merge(std::move(name), std::move(*more)));
  co_return done;
}

Task<Result<void>> Guest::clear_bitmap(std::string name) {
  auto before = co_await bitmaps().contents(name);
  PLATTER_CO_TRY(before);
  const auto bits = static_cast<unsigned>(std::countr_zero((*before)->granularity()));
  BitmapRecord next{.name = name,
                    .contents = std::make_shared<DirtyBitmap>(size(), bits),
                    .enabled = is_enabled(name),
                    .begin = now()};
  auto done = co_await note_bitmap(std::move(next), bitmaps().clear(std::move(name)));
  co_return done;
}

Task<Result<void>> Guest::enable_bitmap(std::string name, bool enabled) {
  auto before = co_await bitmaps().contents(name);
  PLATTER_CO_TRY(before);
  BitmapRecord next{
      .name = name, .contents = std::move(*before), .enabled = enabled, .begin = now()};
  auto done =
      co_await note_bitmap(std::move(next), bitmaps().set_enabled(std::move(name), enabled));
  co_return done;
}

bool Guest::is_enabled(const std::string& name) {
  for (const BitmapInfo& info : bitmaps().list()) {
    if (info.name == name) return info.enabled;
  }
  return false;
}

Task<Result<void>> Guest::close() {
  const std::size_t begin = now();
  auto done = co_await node_.detach();
  if (done) history_.note_flush(begin, now());
  co_return done;
}

Task<Result<std::map<std::uint64_t, Stamp>>> read_stamps(BlockNode& node, const History& history) {
  std::map<std::uint64_t, Stamp> stamps;
  const std::uint64_t end = node.size() / kSector;
  const Buffer buffer(kPiece);
  auto at = history.sectors().begin();
  while (at != history.sectors().end() && at->first < end) {
    const std::uint64_t first = at->first;
    std::uint64_t last = first;
    while (at != history.sectors().end() && at->first < end && at->first <= last + 1 &&
           (at->first - first + 1) * kSector <= kPiece)
      last = (at++)->first;
    const std::uint64_t length = (last - first + 1) * kSector;
    auto read = co_await node.read(first * kSector, IoVec(buffer.span(0, length)));
    PLATTER_CO_TRY(read);
    for (std::uint64_t s = first; s <= last; ++s) {
      const auto stamp = get_stamp(buffer.span((s - first) * kSector, kSector), s);
      if (!stamp) co_return fail(EIO, "sector {} holds no stamp of its own", s);
      stamps[s] = *stamp;
    }
  }
  co_return std::move(stamps);
}

Task<std::string> find_wrong(BlockNode& node, const History& history, std::size_t cut, bool fully) {
  const std::size_t durable = cut == kNever ? kNever - 1 : history.durable_before(cut);
  const auto wrong = [&](std::uint64_t sector, std::optional<Stamp> stamp) {
    return fmt::format("sector {} holds {} (durable: what ended by {}; {})", sector,
                       stamp ? fmt::to_string(*stamp) : std::string("no stamp of its own"), durable,
                       history.story(sector));
  };
  const std::uint64_t size = node.size();
  if (!history.size_allowed(size, cut, durable)) co_return fmt::format("its size is {}", size);
  const Buffer buffer(kPiece);
  const std::uint64_t backed = node.backing() ? node.backing()->size() : 0;  // bytes
  for (std::uint64_t at = 0; at < size;) {
    std::uint64_t length = std::min(size - at, kPiece);
    bool look = fully;
    if (!fully) {
      auto extent = co_await node.extent(at, size - at);
      if (!extent) co_return extent.error().message();
      const ExtentKind kind = extent->kind;
      look = kind == ExtentKind::kData || kind == ExtentKind::kCompressed ||
             (kind == ExtentKind::kUnallocated && at < backed);
      length = look ? std::min(extent->length, kPiece) : extent->length;
    }
    if (!look) {
      for (auto known = history.sectors().lower_bound(at / kSector);
           known != history.sectors().end() && known->first < (at + length) / kSector; ++known) {
        if (!history.allowed(known->first, 0, cut, durable)) co_return wrong(known->first, 0);
      }
    } else {
      auto read = co_await node.read(at, IoVec(buffer.span(0, length)));
      if (!read) co_return read.error().message();
      for (std::uint64_t done = 0; done < length; done += kSector) {
        const std::uint64_t sector = (at + done) / kSector;
        const auto stamp = get_stamp(buffer.span(done, kSector), sector);
        if (history.spoiled(sector)) continue;
        if (!stamp || !history.allowed(sector, *stamp, cut, durable))
          co_return wrong(sector, stamp);
      }
    }
    at += length;
  }
  co_return std::string();
}

}  // namespace platter::powercut
