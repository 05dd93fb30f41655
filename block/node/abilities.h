// What only some formats can do, as small interfaces that a Driver may hand out. Each call is made
// through the node that owns the driver, with no other such call running on it.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "block/base/error.h"
#include "block/exec/iovec.h"
#include "block/exec/task.h"

namespace platter {

// Whether the work that was given `flag` (nullptr: none) has been cancelled.
inline bool is_set(const std::atomic<bool>* flag) { return flag != nullptr && flag->load(); }

// Internal snapshots ----------------------------------------------------------------------------

struct SnapshotInfo {
  std::string id;
  std::string name;
  std::uint64_t vm_state_size = 0;  // bytes
  std::uint64_t date_seconds = 0;   // since the epoch
  std::uint32_t date_nanoseconds = 0;
  std::uint64_t vm_clock_nanoseconds = 0;
  std::optional<std::uint64_t> icount;
  std::uint64_t disk_size = 0;  // bytes
};

// Bytes of a name that is given to a snapshot: QEMU shows, and finds again, no longer ones.
inline constexpr std::size_t kMaxSnapshotName = 255;

class SnapshotAbility {
 public:
  virtual ~SnapshotAbility() = default;
  virtual std::vector<SnapshotInfo> list() const = 0;
  // All look-ups: by id first, then by name; ENOENT when there is none. A name has at most
  // kMaxSnapshotName bytes.
  virtual Task<Result<void>> create(std::string name, std::uint64_t date_seconds,
                                    std::uint32_t date_nanoseconds) = 0;
  virtual Task<Result<void>> apply(std::string id_or_name) = 0;
  virtual Task<Result<void>> remove(std::string id_or_name) = 0;
  // Gives a snapshot another name. What else has that name goes in the same step, durable with it:
  // either all of it has happened or nothing.
  virtual Task<Result<void>> rename(std::string id_or_name, std::string new_name) = 0;
  // Shows the snapshot's contents in place of the active ones, until the node closes; for nodes
  // that are open read-only.
  virtual Task<Result<void>> load(std::string id_or_name);
};

// VM state beside the disk ------------------------------------------------------------------------

class VmStateAbility {
 public:
  virtual ~VmStateAbility() = default;
  // `position` counts bytes from the start of the state; what was never written reads as zeroes.
  virtual Task<Result<void>> read(std::uint64_t position, IoVec iov) = 0;
  virtual Task<Result<void>> write(std::uint64_t position, IoVec iov) = 0;
};

// Persistent dirty bitmaps ----------------------------------------------------------------------

class DirtyBitmap;

struct BitmapInfo {
  std::string name;
  std::uint64_t granularity = 0;  // bytes
  bool enabled = false;           // marks what is written
  bool inconsistent = false;      // was not stored properly: can only be removed
};

// A bitmap that is to hold what another one does; granularity and size are those of `marked`.
struct BitmapCopy {
  std::string name;
  bool enabled = false;
  std::shared_ptr<const DirtyBitmap> marked;
};

// Each change is durable when it completes, and has changed nothing where it fails.
class BitmapAbility {
 public:
  virtual ~BitmapAbility() = default;
  // Whether this image can keep bitmaps at all.
  virtual bool supported() const = 0;
  virtual std::vector<BitmapInfo> list() const = 0;
  // `granularity` 0: the format's choice. A bitmap that is made is clean.
  virtual Task<Result<void>> add(std::string name, std::uint64_t granularity, bool enabled) = 0;
  // All or none of them. Takes the space that they need once they are there, and no more meanwhile.
  virtual Task<Result<void>> add_copies(std::vector<BitmapCopy> copies) = 0;
  virtual Task<Result<void>> remove(std::string name) = 0;
  virtual Task<Result<void>> clear(std::string name) = 0;
  virtual Task<Result<void>> set_enabled(std::string name, bool enabled) = 0;
  virtual Task<Result<void>> merge(std::string name, std::shared_ptr<const DirtyBitmap> source) = 0;
  // A copy of what it has marked by now.
  virtual Task<Result<std::shared_ptr<const DirtyBitmap>>> contents(std::string name) = 0;
};

// Consistency check -------------------------------------------------------------------------------

// Counted as `qemu-img check` counts.
struct CheckResult {
  std::uint64_t corruptions = 0;
  std::uint64_t leaks = 0;
  std::uint64_t check_errors = 0;  // places that could not be checked
  std::uint64_t corruptions_fixed = 0;
  std::uint64_t leaks_fixed = 0;
  std::uint64_t image_end_offset = 0;  // bytes; 0: not told
  std::uint64_t total_clusters = 0;
  std::uint64_t allocated_clusters = 0;
  std::uint64_t compressed_clusters = 0;
  std::uint64_t fragmented_clusters = 0;
};

struct CheckRequest {
  bool fix_leaks = false;
  bool fix_errors = false;
  // One line per finding ("Leaked cluster 5 refcount=1 reference=0"); `repaired` says it was
  // mended.
  std::function<void(std::string_view line)> report;
  // Once true the check ends with ECANCELED, unless a repair has begun to write: that is finished.
  const std::atomic<bool>* cancelled = nullptr;
};

class CheckAbility {
 public:
  virtual ~CheckAbility() = default;
  virtual Task<Result<CheckResult>> check(const CheckRequest& request) = 0;
};

// Backing reference
// ---------------------------------------------------------------------------------

class BackingAbility {
 public:
  virtual ~BackingAbility() = default;
  // As stored in the image; empty: none.
  virtual std::string backing_filename() const = 0;
  virtual std::string backing_format() const = 0;
  // Rewrites the reference only (no data is touched). Empty filename: none.
  // `allowed`, if any, is asked once no other operation can come in between: nothing is changed
  // where it gives an error.
  virtual Task<Result<void>> change_backing(std::string filename, std::string format,
                                            std::function<Result<void>()> allowed) = 0;
  // Drops every cluster of this layer, so that the backing node shows through (commit's last step).
  virtual Task<Result<void>> make_empty() = 0;
};

// Changing an image's own properties --------------------------------------------------------------

class Options;

class AmendAbility {
 public:
  virtual ~AmendAbility() = default;
  // `options`: of DriverType::amend_options, checked for name and type, without "size" (which is a
  // resize of the node). What fails has changed nothing of what it names; what came before it in
  // the order upgrade, key slots, refcounts, flags, downgrade has been done. `force`: key slots may
  // be changed so that a passphrase, or all of them, are lost. `progress(done, total)` may be
  // empty. Once `cancelled` is true the next point is taken at which nothing is half-way:
  // ECANCELED.
  virtual Task<Result<void>> amend(Options options, bool force,
                                   std::function<void(std::uint64_t, std::uint64_t)> progress,
                                   const std::atomic<bool>* cancelled = nullptr) = 0;
};

// Information
// -----------------------------------------------------------------------------------------

// A value of "Format specific information": ordered, so that text and JSON come out as users know.
struct InfoField {
  using Fields = std::vector<InfoField>;
  std::string name;  // JSON spelling: "lazy-refcounts"; the text form replaces '-' by ' '
  std::variant<bool, std::uint64_t, std::string, Fields> value;
};

struct FormatInfo {
  std::uint64_t cluster_size = 0;  // bytes; 0: none
  bool encrypted = false;
  bool compressed = false;  // some cluster may be stored packed
  bool dirty = false;
  bool corrupt = false;
  std::uint64_t vm_state_offset =
      0;                            // bytes; where VM state is put, as if the disk went on; 0: none
  std::vector<InfoField> specific;  // empty: the format says nothing more
};

}  // namespace platter
