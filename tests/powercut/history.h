// History: what a guest has done to its disk, and from that what it may read after a power cut at
// any moment.
//
// Every sector that is written is filled with its own number and with the number of the write, its
// stamp (stamp 0: zeroes), so that a sector in which two writes mix, or that shows another sector's
// bytes, is seen at once. Moments are those of the WriteLog.
//
// Threads: one.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "block/filters/write_log.h"
#include "block/node/dirty_bitmap.h"

namespace platter::powercut {

using Stamp = std::uint32_t;
inline constexpr std::uint64_t kSector = WriteLog::kSector;
inline constexpr std::size_t kNever = WriteLog::kNever;

void put_stamp(std::span<std::byte> sector, Stamp stamp, std::uint64_t number);
// nullopt: not the work of one write to this sector.
std::optional<Stamp> get_stamp(std::span<const std::byte> sector, std::uint64_t number);

struct SnapshotRecord {
  std::string name;
  std::size_t created_begin = 0;
  std::size_t created_end = kNever;
  std::size_t removed_begin = kNever;
  std::size_t removed_end = kNever;
  std::map<std::uint64_t, Stamp> stamps;  // by sector; others as they were at first
  std::uint64_t size = 0;
  // What was renamed to become this one. Until that is done the old name is there, or the new one
  // and what it stands for.
  std::string renamed_from{};
};

// What a change of key slots does to a passphrase. At first only the old one opens the image.
struct KeyRecord {
  std::string secret;  // id
  bool opens = false;  // once it is done
  std::size_t begin = 0;
  std::size_t end = kNever;
};

// What a change of a bitmap makes of it. Changes are durable when they have been acknowledged. At
// first there is none.
struct BitmapRecord {
  std::string name;
  std::shared_ptr<const DirtyBitmap> contents;  // null: it is not there
  bool enabled = false;                         // then it may have more
  std::size_t begin = 0;
  std::size_t end = kNever;
};

class History {
 public:
  // The first `backed` sectors show stamp 1 until they are written.
  History(std::uint64_t size, std::uint64_t backed) : backed_(backed) { note_size(size, 0, 0); }

  // A write (or zeroes: stamp 0) of whole sectors; end kNever: it failed. With `advice` what was
  // there may stay.
  void note(std::uint64_t offset, std::uint64_t length, Stamp stamp, std::size_t begin,
            std::size_t end, bool advice = false);
  void note_size(std::uint64_t size, std::size_t begin, std::size_t end);
  // A flush that succeeded.
  void note_flush(std::size_t begin, std::size_t end) { flushes_.push_back({begin, end}); }
  std::vector<SnapshotRecord>& snapshots() { return snapshots_; }
  const std::vector<SnapshotRecord>& snapshots() const { return snapshots_; }

  std::vector<KeyRecord>& keys() { return keys_; }
  const std::vector<KeyRecord>& keys() const { return keys_; }
  // Whether a secret may open the image, or not, after a cut at `cut`: changes of key slots are
  // durable when they have been acknowledged. `opened`: whether it did, with `at_first` before all.
  bool key_allowed(const std::string& secret, bool at_first, bool opened, std::size_t cut) const;

  std::vector<BitmapRecord>& bitmaps() { return bitmaps_; }
  const std::vector<BitmapRecord>& bitmaps() const { return bitmaps_; }
  // Whether a bitmap may be so after a cut at `cut`: null contents when it is not there, and
  // `inconsistent` when what it held is lost, as befits one that is enabled and in use.
  bool bitmap_allowed(const std::string& name, const DirtyBitmap* contents, bool enabled,
                      bool inconsistent, std::size_t cut) const;

  // The sector was overwritten behind the guest's back: nothing is asked of it.
  void spoil(std::uint64_t sector);
  bool spoiled(std::uint64_t sector) const { return spoiled_.contains(sector); }
  const std::set<std::uint64_t>& all_spoiled() const { return spoiled_; }

  // When a repair ended; kNever: none did.
  void note_repaired(std::size_t end) { repaired_ = end; }
  std::size_t repaired() const { return repaired_; }

  // What was done before the recording is as of moment 0, durable.
  void begin_with(const History& before);

  // What had ended by the moment that this gives is durable when the power goes at `cut`.
  std::size_t durable_before(std::size_t cut) const;
  bool allowed(std::uint64_t sector, Stamp stamp, std::size_t cut, std::size_t durable) const;
  bool size_allowed(std::uint64_t size, std::size_t cut, std::size_t durable) const;
  std::uint64_t backed() const { return backed_; }
  Stamp first_stamp(std::uint64_t sector) const { return sector < backed_ ? 1 : 0; }
  // For messages.
  std::string story(std::uint64_t sector) const;

  struct Value {
    std::size_t begin = 0;
    std::size_t end = 0;
    Stamp stamp = 0;
    bool advice = false;
  };
  const std::map<std::uint64_t, std::vector<Value>>& sectors() const { return sectors_; }
  std::uint64_t last_size() const { return sizes_.back().size; }

 private:
  struct Flush {
    std::size_t begin;
    std::size_t end;
  };
  struct Size {
    std::uint64_t size;
    std::size_t begin;
    std::size_t end;
  };
  std::uint64_t backed_;
  std::size_t repaired_ = kNever;
  std::map<std::uint64_t, std::vector<Value>> sectors_;
  std::vector<Flush> flushes_{{0, 0}};
  std::vector<Size> sizes_;
  std::vector<SnapshotRecord> snapshots_;
  std::vector<KeyRecord> keys_;
  std::vector<BitmapRecord> bitmaps_;
  std::set<std::uint64_t> spoiled_;
};

}  // namespace platter::powercut
