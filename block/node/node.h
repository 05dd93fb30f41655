// BlockNode: one node of the block graph, as everybody who is not its driver sees it.
//
// Its calls are not virtual. Each enters the node's gate, checks range, right and flags, splits to
// the driver's limits, pads unaligned edges (read-modify-write under a range lock), tracks the
// request, and only then calls the Driver.
//
// Threads: I/O calls from any executor, any number at once. Graph changes (graph.h) are made by one
// control thread's executor. size() may be read anywhere.
// Ownership: shared_ptr; parents hold Edges, and the node closes when its last edge is detached.
// Errors: one line, without the node's name; whoever reports to the user adds what was being done.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "block/base/error.h"
#include "block/base/mutex.h"
#include "block/exec/iovec.h"
#include "block/exec/sync.h"
#include "block/exec/task.h"
#include "block/node/driver.h"
#include "block/node/extent.h"
#include "block/node/limits.h"
#include "block/node/permission.h"

namespace platter {

struct DriverType;  // registry.h
class BlockNode;
using NodePtr = std::shared_ptr<BlockNode>;

class BlockNode : public std::enable_shared_from_this<BlockNode> {
 public:
  // Use open_node() (graph.h), or this for a driver made by hand (tests).
  static NodePtr create(const DriverType& type, std::unique_ptr<Driver> driver,
                        std::string node_name, std::string filename, OpenFlags flags);
  ~BlockNode();
  BlockNode(const BlockNode&) = delete;
  BlockNode& operator=(const BlockNode&) = delete;

  // Offsets and lengths in bytes, any alignment. A range past size() is EINVAL ("beyond the end"),
  // except at the ground floor, where reads give zeroes there, and in a driver that can grow, which
  // a write enlarges; writing to a read-only node is EROFS; a node that met corruption and poisoned
  // itself, EIO.
  Task<Result<void>> read(std::uint64_t offset, IoVec iov, ReadFlags flags = {});
  Task<Result<void>> write(std::uint64_t offset, IoVec iov, WriteFlags flags = {});
  Task<Result<void>> write_zeroes(std::uint64_t offset, std::uint64_t length, ZeroFlags flags = {});
  Task<Result<void>> discard(std::uint64_t offset, std::uint64_t length);
  Task<Result<void>> flush();
  // The extent at `offset` (< size()), clipped to `length` (> 0); its length is at least 1.
  Task<Result<Extent>> extent(std::uint64_t offset, std::uint64_t length);
  Task<Result<void>> resize(ResizeRequest request);
  // Copies from another node without passing bytes through memory; ENOTSUP: read and write instead.
  Task<Result<void>> copy_from(BlockNode& source, std::uint64_t source_offset, std::uint64_t offset,
                               std::uint64_t length, CopyFlags flags = {});
  // Makes what the range shows from the backing node this node's own, so that it reads the same
  // without it; what is written meanwhile wins. Needs perm::kWriteUnchanged. What lies behind the
  // end is left out; whole units of the format around the range may be taken up too.
  Task<Result<void>> take_up(std::uint64_t offset, std::uint64_t length, TakeUpFlags flags = {});

  std::uint64_t size() const { return driver_->size(); }  // bytes
  Limits limits() const { return driver_->limits(); }
  bool read_only() const { return flags_.read_only; }
  OpenFlags flags() const { return flags_; }
  const DriverType& type() const { return type_; }
  std::string_view driver_name() const;
  const std::string& node_name() const { return node_name_; }
  // As the user (or the image that refers to it) named it.
  const std::string& filename() const { return filename_; }
  bool probed() const { return probed_; }  // the format was guessed, not named
  Driver& driver() { return *driver_; }
  // Fault points: PLATTER_FAULT(node, event) in fault_event.h.
  bool listens_to_events() const { return listens_; }
  Task<void> announce(FaultEvent event) { return driver_->do_announce(event); }
  BlockNode* backing() { return driver_->backing(); }
  BlockNode* storage() { return driver_->storage(); }
  // This node, or the one below the filters on top of it.
  BlockNode& skip_filters();

  // Pause: no new request enters, those inside have ended; then resume(). Nests.
  Task<void> drain();
  void undrain();

  // Called (on the calling executor of resize()) after the size has changed.
  void on_resize(std::function<void(std::uint64_t)> callback) { on_resize_ = std::move(callback); }

 private:
  friend class Edge;
  friend struct GraphAccess;
  // What is copied through a bounce buffer at a time.
  static constexpr std::uint64_t kBounce = std::uint64_t{1} << 20;

  BlockNode(const DriverType& type, std::unique_ptr<Driver> driver, std::string node_name,
            std::string filename, OpenFlags flags);

  // node.cpp: waits while the node is drained; fails when it is closed.
  Task<Result<void>> enter();
  Task<Result<void>> leave_after(Task<Result<void>> task);
  Task<Result<void>> close();
  // Derives what the request path looks at from flags, limits and the driver.
  void refresh();
  Result<void> check_range(std::uint64_t offset, std::uint64_t length) const;
  Result<void> check_write(std::uint64_t offset, std::uint64_t length) const;

  // read.cpp
  bool takes_as_is(std::uint64_t offset, const IoVec& iov) const;
  Task<Result<void>> read_slow(std::uint64_t offset, IoVec iov, ReadFlags flags);
  Task<Result<void>> read_any(std::uint64_t offset, IoVec iov, ReadFlags flags);
  Task<Result<void>> read_aligned(std::uint64_t offset, IoVec iov, ReadFlags flags);
  Task<Result<void>> call_read(std::uint64_t offset, IoVec iov, ReadFlags flags);
  Task<Result<Extent>> ask_extent(std::uint64_t offset, std::uint64_t length);

  // write.cpp
  Task<Result<void>> write_slow(std::uint64_t offset, IoVec iov, WriteFlags flags);
  Task<Result<void>> write_any(std::uint64_t offset, IoVec iov, WriteFlags flags);
  Task<Result<void>> write_aligned(std::uint64_t offset, IoVec iov, WriteFlags flags);
  Task<Result<void>> write_block(std::uint64_t block, std::uint64_t offset, IoVec iov,
                                 WriteFlags flags);
  Task<Result<void>> call_write(std::uint64_t offset, IoVec iov, WriteFlags flags);
  Task<Result<void>> flush_below();
  Task<Result<void>> start_flush();
  // Whether a write with `flags` must be followed by a flush; takes the flag out if so.
  bool flush_instead_of_fua(bool& fua) const;
  void mark_dirty() {
    if (!dirty_.load(std::memory_order_relaxed)) dirty_.store(true, std::memory_order_relaxed);
  }

  // zero.cpp
  Task<Result<void>> zero_locked(std::uint64_t offset, std::uint64_t length, ZeroFlags flags);
  Task<Result<void>> call_discard(std::uint64_t offset, std::uint64_t length);
  Task<Result<void>> discard_pieces(std::uint64_t offset, std::uint64_t length);
  Task<Result<void>> zero_any(std::uint64_t offset, std::uint64_t length, ZeroFlags flags);
  Task<Result<void>> zero_aligned(std::uint64_t offset, std::uint64_t length, ZeroFlags flags);
  Task<Result<void>> zero_by_buffer(std::uint64_t offset, std::uint64_t length, ZeroFlags flags);
  Task<Result<void>> call_zeroes(std::uint64_t offset, std::uint64_t length, ZeroFlags flags);

  // head_guard.cpp: refuses what would make a probed raw image's start look like a format. `iov` is
  // nullptr for zeroes.
  Task<Result<void>> check_head(std::uint64_t offset, std::uint64_t length, const IoVec* iov);

  const DriverType& type_;
  std::unique_ptr<Driver> driver_;
  const std::string node_name_;
  const std::string filename_;
  const bool listens_;
  OpenFlags flags_;  // changed only while drained, as are the following five
  bool probed_ = false;
  Limits limits_;
  bool can_grow_ = false;
  bool plain_writes_ = false;  // an aligned write without FUA may go straight to the driver
  bool guard_head_ = false;
  std::atomic<bool> dirty_{false};  // written since the last flush began
  Gate gate_;
  RangeLock ranges_;
  Mutex pause_mutex_;
  ConditionQueue resumed_ PLATTER_GUARDED_BY(pause_mutex_);
  unsigned drains_ PLATTER_GUARDED_BY(pause_mutex_) = 0;
  bool closed_ PLATTER_GUARDED_BY(pause_mutex_) = false;
  AsyncMutex permissions_mutex_;  // held over changes of the following two
  std::vector<Edge*> parents_;
  Permissions cumulative_;
  std::function<void(std::uint64_t)> on_resize_;
};

// One user's hold on a node: who it is, what it needs, what it shares. Move-only. The last edge's
// detach() closes the node; destroying an attached Edge without detach() closes it without writing
// back (as a crash would) and is for error paths of nodes that were never written.
class Edge {
 public:
  Edge() = default;
  Edge(Edge&& other) noexcept;
  Edge& operator=(Edge&& other) noexcept;
  ~Edge();

  // `user` for messages: "node 'x' (qcow2)", "device vda". Fails naming both holders when the
  // rights conflict with another edge's.
  static Task<Result<Edge>> attach(NodePtr node, std::string user, Permissions permissions);
  Task<Result<void>> set_permissions(Permissions permissions);
  // Gives up the hold; closes the node (flush, write back, detach its children) when it was the
  // last.
  Task<Result<void>> detach();

  explicit operator bool() const { return node_ != nullptr; }
  BlockNode* get() const { return node_.get(); }
  BlockNode& operator*() const { return *node_; }
  BlockNode* operator->() const { return node_.get(); }
  const NodePtr& node() const { return node_; }
  const std::string& user() const { return user_; }
  const Permissions& permissions() const { return permissions_; }

 private:
  static Task<Result<Edge>> attach_task(NodePtr node, std::string user, Permissions permissions,
                                        bool yield);
  Task<Result<void>> set_permissions_task(Permissions permissions, bool yield);
  Task<Result<void>> detach_task(bool yield);
  void abandon() noexcept;

  friend struct GraphAccess;
  NodePtr node_;
  std::string user_;
  Permissions permissions_;
};

// Walking a chain ------------------------------------------------------------------------------

// How [offset, offset + length) reads through `top` and its backing chain, down to but not
// including `base` (nullptr: all of it). One piece that starts at `offset`. Looks for holes in the
// storage below where a layer says data, unless `shallow`.
Task<Result<ChainExtent>> chain_extent(BlockNode& top, BlockNode* base, std::uint64_t offset,
                                       std::uint64_t length, bool shallow = false);

}  // namespace platter
