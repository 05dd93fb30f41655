// MappedDriver: the request engine of every format that maps guest ranges to ranges of a file.
//
// A format answers where a range lies (try_map, map) and where new data is to go (plan_write); the
// engine does the rest: splits, reads and writes below in parallel, fills zeroes, unpacks, asks
// backing nodes, copies heads and tails, and publishes. A read or an in-place write whose mapping
// is cached takes no lock, allocates nothing and costs one request below.
//
// A chain of mapped formats is walked in one loop, not by one request per layer.
//
// Threads: any executor, any number of requests at once. The engine holds an InFlight ticket from
// before it looks up a mapping until the I/O that uses it has ended; a format gives nothing away
// that a mapping named until in_flight() has passed a barrier.
#pragma once

#include <atomic>
#include <cstdint>
#include <span>

#include "block/base/error.h"
#include "block/base/mutex.h"
#include "block/exec/buffer.h"
#include "block/exec/iovec.h"
#include "block/exec/task.h"
#include "block/node/data_transform.h"
#include "block/node/driver.h"
#include "block/node/in_flight.h"
#include "block/node/node.h"

namespace platter {

// Where the bytes from an offset on lie; the answer to one look-up. Lengths and offsets in bytes.
struct Mapping {
  enum class Kind : std::uint8_t {
    kData,        // at host_offset in node
    kZero,        // zeroes
    kCompressed,  // packed_length bytes at host_offset in node unpack to the unit around the offset
    kBacking,     // whatever the backing node holds; zeroes without one or past its end
  };
  Kind kind = Kind::kBacking;
  bool in_place = false;  // kData: may be overwritten where it is. kZero, kBacking: no meaning
  std::uint64_t length = 0;
  BlockNode* node = nullptr;
  std::uint64_t host_offset =
      0;  // kData: of the first byte asked for; kZero, kBacking: preallocated, if has_host
  bool has_host = false;            // kZero and kBacking only
  std::uint64_t packed_length = 0;  // kCompressed
  std::uint64_t unit_offset = 0;    // kCompressed: guest offset where the unpacked unit starts,
  std::uint64_t unit_length = 0;    // and its length
};

// Where the data of a write goes, and what must go with it. Made by plan_write(), ended by exactly
// one of publish() and abandon().
struct WritePlan {
  std::uint64_t offset = 0;  // the part of the request it covers, in bytes
  std::uint64_t length = 0;
  // The data is to be written in place here, without publication (the mapping had become writable).
  bool in_place = false;
  BlockNode* node = nullptr;
  std::uint64_t host_offset = 0;  // of the byte at `offset`
  // Bytes before and after the range that must be written along, as the disk reads now; behind its
  // end, zeroes.
  std::uint64_t head = 0;
  std::uint64_t tail = 0;
  void* token = nullptr;  // the format's
};

class MappedDriver : public Driver {
 public:
  // Driver.
  Task<Result<void>> do_read(std::uint64_t offset, IoVec iov, ReadFlags flags) final;
  Task<Result<void>> do_write(std::uint64_t offset, IoVec iov, WriteFlags flags) final;
  Task<Result<void>> do_write_zeroes(std::uint64_t offset, std::uint64_t length,
                                     ZeroFlags flags) final;
  Task<Result<Extent>> do_extent(std::uint64_t offset, std::uint64_t length) override;
  Task<Result<void>> do_copy_from(BlockNode& source, std::uint64_t source_offset,
                                  std::uint64_t offset, std::uint64_t length,
                                  CopyFlags flags) final;
  Task<Result<void>> do_take_up(std::uint64_t offset, std::uint64_t length,
                                TakeUpFlags flags) final;
  MappedDriver* mapped() final { return this; }

  InFlight& in_flight() { return in_flight_; }

 protected:
  // What is at `offset`, at most `length` (> 0) bytes: the longest piece that one answer describes
  // and that is cheap to find; false when tables must be loaded first. Must not block for long.
  // `for_write`: in_place will be used.
  virtual bool try_map(std::uint64_t offset, std::uint64_t length, bool for_write,
                       Mapping& mapping) = 0;
  // The same, loading what is missing. A range that the tables describe wrongly is an error.
  virtual Task<Result<Mapping>> map(std::uint64_t offset, std::uint64_t length, bool for_write) = 0;

  // Finds a place for the start of a range that is not in place. Waits for other plans on the
  // range.
  virtual Task<Result<WritePlan>> plan_write(std::uint64_t offset, std::uint64_t length) = 0;
  // The data is written: show it. Cannot fail and does not suspend.
  virtual void publish(WritePlan& plan) = 0;
  // Writing failed: the disk reads as before, and the place is given back.
  virtual void abandon(WritePlan& plan) = 0;

  // Whether stored data may lie in holes of the file below (then whoever asks for extents looks
  // there).
  virtual bool may_have_holes() { return false; }

  // Makes [offset, offset + length), whole units of zero_unit() (or up to the end of the disk),
  // read as zeroes without writing them; ENOTSUP: it cannot.
  virtual std::uint64_t zero_unit() const = 0;
  virtual Task<Result<void>> zero_units(std::uint64_t offset, std::uint64_t length,
                                        bool may_unmap) = 0;
  // The error that zero_units() would give as things are; changes nothing.
  virtual Task<Result<void>> may_zero_units(std::uint64_t offset, std::uint64_t length,
                                            bool may_unmap);

  // Makes those of these whole units (the last one may be cut off by the end of the disk) that show
  // the backing node read as zeroes, and leaves the others as they are, at one moment for each.
  // False from can_hide_units(): it cannot without writing them.
  virtual bool can_hide_units() const { return false; }
  virtual Task<Result<void>> hide_units(std::uint64_t offset, std::uint64_t length);

  // Stores [offset, offset + iov.size()), whole units (or up to the end of the disk), packed.
  virtual Task<Result<void>> write_packed(std::uint64_t offset, IoVec iov);
  // Unpacks a compressed unit into out.size() == unit_length bytes. CPU heavy; called on a codec
  // thread.
  virtual Result<void> unpack(std::span<const std::byte> packed, std::span<std::byte> out);

  // After a write or zeroes have failed with ENOSPC, outside of the request: whether there may be
  // space now, so that it is worth a second try (there is no third).
  virtual Task<bool> regain_space();

  // While notes_changes(): each request that changes what the disk reads as calls note_change() for
  // its range when it is inside, before it changes anything; where the answer is false, it awaits
  // prepare_change() as well. Constant time for what a usual request covers, any executor.
  virtual bool note_change(std::uint64_t offset, std::uint64_t length);
  virtual Task<Result<void>> prepare_change();
  // Switched while requests are held back or none is running.
  void set_notes_changes(bool on) { notes_changes_.store(on, std::memory_order_relaxed); }
  bool notes_changes() const { return notes_changes_.load(std::memory_order_relaxed); }
  // Whether the disk reaches there; inside a request, while its size cannot change.
  Result<void> check_inside(std::uint64_t offset, std::uint64_t length) const;
  // Both, inside a request.
  Task<Result<void>> announce_change(std::uint64_t offset, std::uint64_t length);

  // Before each request: holds it back while the format reorganises itself (hold(), release()).
  // Requests that were inside before hold() have ended when it completes.
  Task<void> hold();
  void release();

  // What data of this node passes through on its way; nullptr: nothing. Set before the first
  // request; limits() asks for DataTransform::kUnit then.
  void set_transform(DataTransform* transform) { transform_ = transform; }
  bool transforms() const { return transform_ != nullptr; }

  // Reads as a request does, inside a request (the caller has a ticket).
  Task<Result<void>> read_inside(std::uint64_t offset, IoVec iov);
  // What is to lie beside data that is written: as the disk reads, and zeroes behind its end.
  Task<Result<void>> read_to_keep(std::uint64_t offset, IoVec iov);
  // Writes as a request does, inside a request.
  Task<Result<void>> write_inside(std::uint64_t offset, IoVec iov);
  // A ticket, once the format is not held.
  Task<InFlight::Ticket> admit() { return admit_slowly(); }
  bool held() const { return held_.load(); }

 private:
  static constexpr std::size_t kMaxRunning = 64;  // pieces of one request at once

  // A piece of a read, and who gives it.
  struct Piece {
    Mapping mapping;
    MappedDriver* owner = nullptr;  // whose mapping it is
    BlockNode* ask = nullptr;       // kBacking: the node that answers
    InFlight::Ticket below;         // of the owner, when it is not the node that was asked
  };
  // A walk down a chain at one offset: where it stands.
  struct Walk {
    MappedDriver* driver = nullptr;
    std::uint64_t length = 0;
    InFlight::Ticket below;
  };
  // Walks on as far as caches go. False: walk.driver must load tables for the offset.
  static bool walk_on(Walk& walk, std::uint64_t offset, Piece& piece);
  // Takes the driver's answer; true when it ends the walk.
  static bool take_answer(Walk& walk, std::uint64_t offset, Mapping& mapping, Piece& piece);
  static Task<Result<void>> walk_slowly(Walk walk, std::uint64_t offset, Piece* piece);
  // A whole walk: awaiting it fills `piece`, at once and without a coroutine of its own when all is
  // cached. (Give it a name.)
  class WalkTo {
   public:
    WalkTo(MappedDriver& driver, std::uint64_t offset, std::uint64_t length, Piece& piece) {
      Walk walk{&driver, length, {}};
      cached_ = walk_on(walk, offset, piece);
      if (!cached_) slow_ = walk_slowly(std::move(walk), offset, &piece);
    }
    bool await_ready() const noexcept { return cached_ || slow_.done(); }
    void await_suspend(std::coroutine_handle<> waiter) noexcept {
      (slow_.operator co_await()).await_suspend(waiter);
    }
    Result<void> await_resume() { return cached_ ? Result<void>() : slow_.take(); }

   private:
    Task<Result<void>> slow_;
    bool cached_;
  };

  Task<InFlight::Ticket> admit_slowly();
  // Awaits `task` and gives the tickets back.
  static Task<Result<void>> finish(InFlight::Ticket ticket, InFlight::Ticket below,
                                   Task<Result<void>> task);
  Task<Result<void>> read_task(std::uint64_t offset, IoVec iov);
  Task<Result<void>> read_piece(Piece piece, std::uint64_t offset, IoVec iov);
  Task<Result<void>> read_packed(Mapping mapping, std::uint64_t offset, IoVec iov);
  // Stored data of this node, through its transform if it has one. `guest` is the disk's offset.
  Task<Result<void>> read_data(BlockNode& node, std::uint64_t host, std::uint64_t guest,
                               IoVec iov) {
    if (!transform_) [[likely]]
      return read_at(node, host, iov);
    return read_transformed(node, host, guest, iov);
  }
  Task<Result<void>> write_data(BlockNode& node, std::uint64_t host, std::uint64_t guest,
                                IoVec iov) {
    if (!transform_) [[likely]]
      return write_at(node, host, iov);
    return write_transformed(node, host, guest, iov);
  }
  // mapped_transform.cpp
  Task<Result<void>> read_transformed(BlockNode& node, std::uint64_t host, std::uint64_t guest,
                                      IoVec iov);
  Task<Result<void>> write_transformed(BlockNode& node, std::uint64_t host, std::uint64_t guest,
                                       IoVec iov);
  Task<Result<void>> read_encoded(BlockNode& node, std::uint64_t host, std::uint64_t guest,
                                  IoVec iov);
  Task<Result<void>> write_encoded(BlockNode& node, std::uint64_t host, std::uint64_t guest,
                                   IoVec iov);
  // Runs one direction over `bytes`, on a codec thread when they are many.
  Task<Result<void>> pass_through(std::span<std::byte> bytes, std::uint64_t host,
                                  std::uint64_t guest, bool encode);
  Task<Result<void>> read_at(BlockNode& node, std::uint64_t host_offset, IoVec iov);
  Task<Result<void>> write_at(BlockNode& node, std::uint64_t host_offset, IoVec iov);
  Task<Result<void>> write_task(std::uint64_t offset, IoVec iov, WriteFlags flags);
  Task<Result<void>> write_once(std::uint64_t offset, IoVec iov, WriteFlags flags);
  Task<Result<void>> write_new(std::uint64_t offset, IoVec iov);
  Task<Result<void>> write_planned(WritePlan plan, IoVec iov);
  Task<Result<void>> zero_task(std::uint64_t offset, std::uint64_t length, ZeroFlags flags);
  Task<Result<void>> zero_once(std::uint64_t offset, std::uint64_t length, ZeroFlags flags);
  Task<Result<void>> zero_part(std::uint64_t offset, std::uint64_t length, bool may_write);
  Task<Result<void>> hide_around(std::uint64_t offset, std::uint64_t length);
  // Whether [from, to) can be hidden with its unit, because the rest of that reads as zeroes.
  Task<Result<bool>> can_hide_around(std::uint64_t from, std::uint64_t to);
  Task<Result<void>> may_zero_part(std::uint64_t offset, std::uint64_t length);
  static std::unexpected<Error> refuse_part();
  Task<Result<bool>> not_data(std::uint64_t offset, std::uint64_t length);
  // mapped_take_up.cpp
  Task<Result<std::uint64_t>> take_up_some(std::uint64_t offset, std::uint64_t length,
                                           TakeUpFlags flags);
  Task<Result<void>> take_up_planned(WritePlan plan, TakeUpFlags flags);
  Task<Result<Extent>> extent_task(std::uint64_t offset, std::uint64_t length);

  InFlight in_flight_;
  DataTransform* transform_ = nullptr;  // immutable after open
  std::atomic<bool> notes_changes_{false};
  std::atomic<bool> held_{false};
  Mutex held_mutex_;
  unsigned holders_ PLATTER_GUARDED_BY(held_mutex_) = 0;
  ConditionQueue released_ PLATTER_GUARDED_BY(held_mutex_);
};

}  // namespace platter
