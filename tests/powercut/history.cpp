#include "powercut/history.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

namespace platter::powercut {
namespace {

bool same_marks(const DirtyBitmap& a, const DirtyBitmap& b) {
  if (a.size() != b.size() || a.granularity() != b.granularity()) return false;
  for (std::uint64_t at = 0; at < a.size();) {
    const DirtyBitmap::Range in_a = a.next(at);
    const DirtyBitmap::Range in_b = b.next(at);
    if (in_a.offset != in_b.offset || in_a.length != in_b.length) return false;
    if (in_a.length == 0) return true;
    at = in_a.offset + in_a.length;
  }
  return true;
}

}  // namespace

void put_stamp(std::span<std::byte> sector, Stamp stamp, std::uint64_t number) {
  const std::uint64_t word = stamp == 0 ? 0 : (std::uint64_t{stamp} << 32) | number;
  for (std::size_t at = 0; at + 8 <= sector.size(); at += 8)
    std::memcpy(sector.data() + at, &word, 8);
}

std::optional<Stamp> get_stamp(std::span<const std::byte> sector, std::uint64_t number) {
  std::uint64_t word = 0;
  std::memcpy(&word, sector.data(), 8);
  if (std::memcmp(sector.data(), sector.data() + 8, sector.size() - 8) != 0) return std::nullopt;
  if (word == 0) return 0;
  if ((word & 0xffffffff) != number || word >> 32 == 0) return std::nullopt;
  return static_cast<Stamp>(word >> 32);
}

void History::note(std::uint64_t offset, std::uint64_t length, Stamp stamp, std::size_t begin,
                   std::size_t end, bool advice) {
  for (std::uint64_t s = offset / kSector; s < (offset + length) / kSector; ++s)
    sectors_[s].push_back({begin, end, stamp, advice});
}

void History::note_size(std::uint64_t size, std::size_t begin, std::size_t end) {
  sizes_.push_back({size, begin, end});
}

void History::begin_with(const History& before) {
  *this = before;
  for (auto& [sector, values] : sectors_) {
    for (Value& value : values) value.begin = value.end = 0;
  }
  for (Size& size : sizes_) size.begin = size.end = 0;
  for (SnapshotRecord& one : snapshots_) {
    one.created_begin = one.created_end = 0;
    if (one.removed_end != kNever) one.removed_begin = one.removed_end = 0;
  }
  for (KeyRecord& one : keys_) one.begin = one.end = 0;
  for (BitmapRecord& one : bitmaps_) one.begin = one.end = 0;
  flushes_ = {{0, 0}};
}

bool History::key_allowed(const std::string& secret, bool at_first, bool opened,
                          std::size_t cut) const {
  for (auto one = keys_.rbegin(); one != keys_.rend(); ++one) {
    if (one->secret != secret || (one->begin >= cut && one->end != 0)) continue;
    if (one->opens == opened) return true;
    if (one->end <= cut && one->end != kNever) return false;
  }
  return opened == at_first;
}

bool History::bitmap_allowed(const std::string& name, const DirtyBitmap* contents, bool enabled,
                             bool inconsistent, std::size_t cut) const {
  for (auto one = bitmaps_.rbegin(); one != bitmaps_.rend(); ++one) {
    if (one->name != name || (one->begin >= cut && one->end != 0)) continue;
    if (!one->contents) {
      if (!contents && !inconsistent) return true;
    } else if (one->enabled) {
      if (inconsistent || (contents && enabled)) return true;
    } else if (contents && !enabled && same_marks(*one->contents, *contents)) {
      return true;
    }
    if (one->end <= cut && one->end != kNever) return false;
  }
  return !contents && !inconsistent;
}

void History::spoil(std::uint64_t sector) {
  sectors_.erase(sector);
  spoiled_.insert(sector);
}

std::size_t History::durable_before(std::size_t cut) const {
  std::size_t durable = 0;
  for (const Flush& flush : flushes_) {
    if (flush.end <= cut) durable = std::max(durable, flush.begin);
  }
  return durable;
}

bool History::allowed(std::uint64_t sector, Stamp stamp, std::size_t cut,
                      std::size_t durable) const {
  if (spoiled(sector)) return true;
  const auto found = sectors_.find(sector);
  if (found != sectors_.end()) {
    for (auto value = found->second.rbegin(); value != found->second.rend(); ++value) {
      if (value->begin >= cut && value->end != 0) continue;  // had not begun
      if (value->stamp == stamp) return true;
      if (!value->advice && value->end <= durable) return false;
    }
  }
  return stamp == first_stamp(sector);
}

bool History::size_allowed(std::uint64_t size, std::size_t cut, std::size_t durable) const {
  for (auto one = sizes_.rbegin(); one != sizes_.rend(); ++one) {
    if (one->begin >= cut && one->end != 0) continue;
    if (one->size == size) return true;
    if (one->end <= durable) return false;
  }
  return false;
}

std::string History::story(std::uint64_t sector) const {
  std::string text = fmt::format("first {}", first_stamp(sector));
  const auto found = sectors_.find(sector);
  if (found == sectors_.end()) return text;
  for (const Value& value : found->second) {
    text +=
        fmt::format("; {}{} in [{}, {})", value.advice ? "perhaps " : "", value.stamp, value.begin,
                    value.end == kNever ? std::string("never") : fmt::to_string(value.end));
  }
  return text;
}

}  // namespace platter::powercut
