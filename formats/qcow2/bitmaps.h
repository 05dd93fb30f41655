// Bitmaps: the persistent dirty bitmaps of an open image.
//
// The directory is read when the image is opened. Bitmaps that are enabled are loaded when it is
// opened for writing, and from then on every request marks what it changes before it changes it.
// Those that are not enabled stay on disk until somebody wants their contents.
//
// On disk: before the first change after they were stored, the enabled bitmaps are flagged "in use"
// in the directory, in place, and that is durable before any data is written. When the image is
// closed (or one is added, removed or changed) everything else is brought to the disk first; then
// changed bitmaps go to new clusters, with a new directory that flags none as in use, and one
// header write makes it valid. So after a power cut each bitmap is either as it was stored, with
// nothing written since, or flagged as in use: then it is inconsistent, is kept as it is, and can
// only be removed.
//
// Threads: note() and prepare() from any executor, inside a request; everything else with no
// request running (Qcow2Driver::exclusively(), opening, closing).
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "block/node/abilities.h"
#include "block/node/dirty_bitmap.h"
#include "formats/qcow2/bitmap_directory.h"
#include "formats/qcow2/bitmap_store.h"
#include "formats/qcow2/core.h"

namespace platter::qcow2 {

class Qcow2Driver;

class Bitmaps final : public BitmapAbility {
 public:
  explicit Bitmaps(Qcow2Driver& driver) : driver_(driver) {}

  // Reads the directory that the header names.
  Task<Result<void>> open(std::string node_name);
  // As the directory says, with those in use flagged.
  std::vector<BitmapEntry> entries() const;
  bool empty() const { return bitmaps_.empty(); }
  // Adds directory and tables to the metadata.
  void list_metadata() const PLATTER_REQUIRES(metadata_mutex);

  // Loads what is enabled; start() then makes requests mark it, until stop().
  Task<Result<void>> load_enabled();
  void start();
  void stop();

  // Marks a range in all enabled bitmaps. False: prepare() must be awaited before the change.
  bool note(std::uint64_t offset, std::uint64_t length);
  Task<Result<void>> prepare();

  // Brings what is flagged as in use, or has changed, to the disk. Everything else is there
  // already.
  Task<Result<void>> store();

  // Around a change of the disk's size: every bitmap for a disk of `size` bytes is written first;
  // then the header that holds the new size names them too, and they are taken over.
  struct Change;
  Task<Result<void>> begin_resize(std::uint64_t size, Change& change);
  // What the header must say. Core::header_mutex.
  void put_into(Header& header, const Change& change) const;
  // The header is durable; or writing it failed, and nobody knows which one is on disk.
  void take_over(Change& change);
  void give_up(Change& change);

  // BitmapAbility (bitmap_ops.cpp).
  bool supported() const override;
  std::vector<BitmapInfo> list() const override;
  Task<Result<void>> add(std::string name, std::uint64_t granularity, bool enabled) override;
  Task<Result<void>> add_copies(std::vector<BitmapCopy> copies) override;
  Task<Result<void>> remove(std::string name) override;
  Task<Result<void>> clear(std::string name) override;
  Task<Result<void>> set_enabled(std::string name, bool enabled) override;
  Task<Result<void>> merge(std::string name, std::shared_ptr<const DirtyBitmap> source) override;
  Task<Result<std::shared_ptr<const DirtyBitmap>>> contents(std::string name) override;

 private:
  struct Bitmap {
    BitmapEntry entry;                  // as stored; kInUse: found so, inconsistent
    std::shared_ptr<DirtyBitmap> bits;  // empty: only on disk
    bool changed = false;               // bits are not what the disk has
    bool flagged = false;               // the disk says "in use", and we are the user
    bool enabled() const { return (entry.flags & bitmap_flag::kAuto) != 0; }
    bool inconsistent() const { return (entry.flags & bitmap_flag::kInUse) != 0; }
    // Holds something that only another program understands, and allows nobody else to use it.
    bool foreign() const {
      return !entry.extra.empty() && (entry.flags & bitmap_flag::kExtraDataCompatible) == 0;
    }
    bool tracked() const { return enabled() && !inconsistent(); }
  };
  using List = std::vector<Bitmap>;
  struct Run {
    std::uint64_t host = 0;  // bytes
    std::uint64_t length = 0;
  };

  static Result<void> usable(const Bitmap& bitmap);
  static Result<std::size_t> find(const List& list, const std::string& name);
  Task<Result<void>> load(Bitmap& bitmap);
  // Makes the disk say "in use" of what is tracked. Under flagging_.
  Task<Result<void>> flag();
  // Writes all that is new in change.next.
  Task<Result<void>> stage(Change& change);
  Task<Result<void>> write_directory(Change& change);
  // Makes `next` what is on disk and in memory. Nothing has changed when it fails.
  Task<Result<void>> replace(List next);
  // Clusters that the table of a bitmap names, where it can be read.
  Task<std::vector<Run>> clusters_of(BitmapEntry entry);
  void track();

  // bitmap_ops.cpp; each with requests held back and everything written back.
  Result<void> check_size(std::uint64_t size, unsigned granularity_bits) const;
  Result<void> check_same_size(const DirtyBitmap& source) const;
  Result<void> check_memory(const List& next) const;
  // Whether `list` can take one more.
  Result<void> check_new(const List& list, const BitmapEntry& entry) const;
  Task<Result<void>> add_now(BitmapEntry entry);
  Task<Result<void>> add_copies_now(std::vector<BitmapCopy> copies);
  Task<Result<void>> remove_now(std::string name);
  Task<Result<void>> clear_now(std::string name);
  Task<Result<void>> enable_now(std::string name, bool enabled);
  Task<Result<void>> merge_now(std::string name, std::shared_ptr<const DirtyBitmap> source);

  Qcow2Driver& driver_;
  std::string node_name_;  // for messages
  List bitmaps_;
  BitmapsExtension directory_;
  std::uint64_t loaded_bytes_ = 0;  // of bits in memory
  bool running_ = false;
  // Writing the header has failed: which directory it names must be settled before it is relied on.
  bool header_uncertain_ = false;
  std::vector<DirtyBitmap*> tracked_;
  std::atomic<bool> ready_{false};  // all that is tracked is flagged on disk
  AsyncMutex flagging_;
};

// The bitmaps as they are to be, written where nothing on disk refers to yet.
struct Bitmaps::Change {
  List next;
  Placed placed;
  BitmapsExtension place;
  std::vector<Run> old;  // what is not referred to any more, afterwards
};

}  // namespace platter::qcow2
