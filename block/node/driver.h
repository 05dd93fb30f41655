// Driver: what a format, an adapter or a filter implements. Users never call it: they call
// BlockNode (node.h), which checks, pads, splits and tracks every request first.
//
// Contract of do_* calls: offset and length are aligned to limits() and lie within its maxima;
// they are within the size at the time of the call, rounded up to limits().request_alignment
// (writes may be asked further only where can_grow() says so): what a driver reads behind its end
// are zeroes, and a write there may round its size up. Buffers live until completion; any executor
// may call at any time, several at once. Each driver's header lists its members in three groups:
// immutable after open, guarded by which mutex, per executor.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "block/base/error.h"
#include "block/exec/iovec.h"
#include "block/exec/task.h"
#include "block/node/abilities.h"
#include "block/node/extent.h"
#include "block/node/fault_event.h"
#include "block/node/limits.h"
#include "block/node/options.h"
#include "block/node/permission.h"

namespace platter {

class BlockNode;
class Edge;
class MappedDriver;

struct ReadFlags {
  bool copy_on_read = false;
};
struct WriteFlags {
  bool fua = false;         // durable when it completes
  bool compressed = false;  // store packed, if the format can; whole clusters (or the last one)
  bool unchanged = false;   // reads as before: needs only perm::kWriteUnchanged
};
struct ZeroFlags {
  bool fua = false;
  bool may_unmap = false;  // space may be given back
  // Fail with ENOTSUP rather than write a buffer of zeroes. What can be known beforehand is refused
  // before anything has changed.
  bool no_fallback = false;
};

// What a copy between two ranges may do.
struct CopyFlags {
  bool may_share = true;  // the blocks may be shared (reflinks) or copied by another machine
};

// What taking up a backing node's data does with ranges that read as zeroes.
struct TakeUpFlags {
  // They are the node's own from now on, whatever backs it later; otherwise they may be left out.
  bool hide_zeroes = false;
};

enum class Preallocation : std::uint8_t { kOff, kMetadata, kFalloc, kFull };
Result<Preallocation> parse_preallocation(std::string_view text);

using ResizeProgress = std::function<void(std::uint64_t done, std::uint64_t total)>;

struct ResizeRequest {
  std::uint64_t size = 0;  // bytes
  Preallocation preallocation = Preallocation::kOff;
  bool exact = true;  // a device of fixed size may stay larger when false
  // Looked at while space is made: once true, what was made is given back and ECANCELED returned.
  const std::atomic<bool>* cancelled = nullptr;
  // Told now and then, on any thread, how much of how much has been done, in units of the driver's
  // choice. A shrink that is cancelled has taken away a part of what lies behind the new end.
  const ResizeProgress* progress = nullptr;
};

// What a reopen may change (see graph.h).
struct OpenFlags {
  bool read_only = true;
  bool direct = false;         // cache.direct: bypass the page cache
  bool no_flush = false;       // cache.no-flush: flushes do nothing
  bool writethrough = false;   // each write is durable when it completes
  bool discard_unmap = false;  // discard=unmap: guest discards reach the lower layers
  bool force_share = false;    // -U: look on while another process writes
  bool no_backing = false;     // do not open the backing chain
  bool no_io = false;          // for `info`: nothing but metadata will be read
  bool check =
      false;  // for `check`: open although the image is corrupt or dirty, repair nothing by itself
  enum class DetectZeroes : std::uint8_t { kOff, kOn, kUnmap } detect_zeroes = DetectZeroes::kOff;
};

class Driver {
 public:
  virtual ~Driver() = default;

  // Current size in bytes; constant time, any thread.
  virtual std::uint64_t size() const = 0;
  // Constant but for a reopen.
  virtual Limits limits() const { return {}; }
  // Whether do_write may reach beyond size() and so enlarge it (a plain file below a format).
  virtual bool can_grow() const { return false; }

  virtual Task<Result<void>> do_read(std::uint64_t offset, IoVec iov, ReadFlags flags) = 0;
  virtual Task<Result<void>> do_write(std::uint64_t offset, IoVec iov, WriteFlags flags) = 0;
  // ENOTSUP: the node writes zero buffers instead, unless no_fallback.
  virtual Task<Result<void>> do_write_zeroes(std::uint64_t offset, std::uint64_t length,
                                             ZeroFlags flags);
  // Advice: ENOTSUP is not reported to the user of the node. What a discarded range reads as
  // afterwards is either as before or zeroes.
  virtual Task<Result<void>> do_discard(std::uint64_t offset, std::uint64_t length);
  // All that completed before is durable afterwards.
  virtual Task<Result<void>> do_flush() = 0;
  // The extent that starts at `offset` (< size()), as long as the driver knows cheaply, clipped to
  // `length` (> 0). A host_offset without a node counts in this node itself. Default: all data,
  // place unknown.
  virtual Task<Result<Extent>> do_extent(std::uint64_t offset, std::uint64_t length);
  // What is new reads as zeroes, whatever the backing node holds there, from the moment on at which
  // the size says that it is the disk's.
  virtual Task<Result<void>> do_resize(ResizeRequest request);
  // Copies between two ranges below (copy_file_range, reflink, splice) without passing the bytes
  // through this process; ENOTSUP: not possible here, read and write (a part may have been copied).
  virtual Task<Result<void>> do_copy_from(BlockNode& source, std::uint64_t source_offset,
                                          std::uint64_t offset, std::uint64_t length,
                                          CopyFlags flags);
  // Stores in this node what the range shows from the backing node. Data that the node has by
  // itself stays as it is, also while others write: nothing but a mapping that still shows the
  // backing node is replaced, by what it shows. Default: ENOTSUP.
  virtual Task<Result<void>> do_take_up(std::uint64_t offset, std::uint64_t length,
                                        TakeUpFlags flags);
  // Writes back what is cached and ends; called once, with nothing in flight, before children are
  // detached. The driver is destroyed afterwards whatever it answers.
  virtual Task<Result<void>> do_close();

  // The union of what the parents need and the intersection of what they share has become this.
  // A refusal leaves the old state. (File adapter: byte locks.)
  virtual Task<Result<void>> do_set_permissions(Permissions cumulative);

  // Reopen with other flags: prepare does all that can fail and publishes nothing, then exactly one
  // of commit and abort. Default: only what the node itself handles may change.
  virtual Task<Result<void>> prepare_reopen(OpenFlags flags);
  virtual void commit_reopen() {}
  virtual void abort_reopen() {}

  // Takes those of `options` that are the format's own and may change while it is open, checks them
  // together with the others that it was opened with, and gives what puts them in force; empty:
  // there were none.
  virtual Result<std::function<Task<Result<void>>()>> plan_change(Options& options);

  // Children in a fixed order: "file", "backing", ...; edges owned by the driver.
  virtual std::vector<Edge*> children() { return {}; }
  // The node that shows through where this one is unallocated, or nullptr.
  virtual BlockNode* backing() { return nullptr; }
  // The node that holds this one's bytes ("file"), or nullptr for the ground floor.
  virtual BlockNode* storage() { return nullptr; }
  // A filter shows its child's data unchanged; extents and abilities may be asked of the child.
  virtual BlockNode* filtered() { return nullptr; }
  // This driver, if its reads may be resolved by asking for mappings (mapped_driver.h).
  virtual MappedDriver* mapped() { return nullptr; }

  // Fault points (fault_event.h): whether do_announce() is worth calling, constant; and an event of
  // the node above.
  virtual bool listens_to_events() const { return false; }
  virtual Task<void> do_announce(FaultEvent event);

  // Bytes of storage in use on the host, for "disk size"; nullopt: not known.
  virtual std::optional<std::uint64_t> allocated_size() { return std::nullopt; }
  virtual FormatInfo info() { return {}; }
  // Filename that opens this node again ("json:{...}" if it takes options); empty: none.
  virtual std::string exact_filename() const { return {}; }

  virtual SnapshotAbility* snapshots() { return nullptr; }
  virtual VmStateAbility* vm_state() { return nullptr; }
  virtual BitmapAbility* bitmaps() { return nullptr; }
  virtual CheckAbility* checker() { return nullptr; }
  virtual BackingAbility* backing_reference() { return nullptr; }
  virtual AmendAbility* amender() { return nullptr; }
};

}  // namespace platter
