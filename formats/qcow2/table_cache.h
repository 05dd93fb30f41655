// TableCache: pieces ("slices") of L2 tables or refcount blocks in memory.
//
// A slice is a cluster or an equal part of one. Each is loaded by one loader, others wait for it;
// it is pinned while someone refers to it across a suspension; it stays visible while it is dirty
// and is given up only when it is clean. Changes are tracked in granules, so that writing back one
// entry does not write the whole table.
//
// What must be on disk before what is not decided here but in write_back.h.
//
// Threads: members are guarded by the mutex given at construction, except peek(), which any request
// may call without it: evicted slices are kept until those requests have ended (InFlight).
// Ownership: slices belong to the cache; a Pin must not outlive it.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <deque>
#include <functional>
#include <memory>
#include <unordered_map>
#include <utility>
#include <vector>

#include "block/base/bytes.h"
#include "block/base/error.h"
#include "block/exec/buffer.h"
#include "block/exec/sync.h"
#include "block/node/in_flight.h"
#include "block/node/node.h"
#include "formats/qcow2/metadata_mutex.h"

namespace platter::qcow2 {

class TableCache {
 public:
  struct Config {
    std::uint64_t slice_bytes = 0;  // power of two, 512 or more
    std::uint64_t slice_count = 0;  // slices that exist at most: the tables' size
    std::uint64_t capacity = 0;     // slices kept; exceeded only while all are pinned
    FaultEvent load_event = FaultEvent::kNone;
  };

  struct Slice {
    std::uint64_t index = 0;
    std::uint64_t host PLATTER_GUARDED_BY(metadata_mutex) = 0;  // its offset in the file
    Buffer data;
    std::atomic<unsigned> pins{0};  // raised only under the mutex
    std::atomic<bool> used{false};  // since the clock's hand last passed
    // Granules changed since they were last copied for writing, and granules being written.
    std::uint64_t dirty PLATTER_GUARDED_BY(metadata_mutex) = 0;
    std::uint64_t writing PLATTER_GUARDED_BY(metadata_mutex) = 0;
    bool ready PLATTER_GUARDED_BY(metadata_mutex) = false;
    bool listed PLATTER_GUARDED_BY(metadata_mutex) = false;  // in the list of dirty slices
    ConditionQueue waiters PLATTER_GUARDED_BY(metadata_mutex);
    // Odd while an entry of two words is being changed, which happens under the mutex.
    std::atomic<std::uint32_t> version{0};

    // Entry `i` of 8 bytes. Written under the mutex, read anywhere.
    std::uint64_t word(std::uint64_t i) const {
      const auto* words = reinterpret_cast<std::uint64_t*>(data.data());
      return detail::swap_if(std::atomic_ref(const_cast<std::uint64_t&>(words[i])).load(),
                             std::endian::big);
    }
    void set_word(std::uint64_t i, std::uint64_t value) {
      auto* words = reinterpret_cast<std::uint64_t*>(data.data());
      std::atomic_ref(words[i]).store(detail::swap_if(value, std::endian::big));
    }
    // For a change that concerns nobody who has not the mutex before another store has said so.
    void set_word_quietly(std::uint64_t i, std::uint64_t value) {
      auto* words = reinterpret_cast<std::uint64_t*>(data.data());
      std::atomic_ref(words[i]).store(detail::swap_if(value, std::endian::big),
                                      std::memory_order_relaxed);
    }
  };

  class [[nodiscard]] Pin {
   public:
    Pin() = default;
    explicit Pin(Slice* slice) PLATTER_REQUIRES(metadata_mutex) : slice_(slice) {
      if (slice_) slice_->pins.fetch_add(1, std::memory_order_relaxed);
    }
    Pin(Pin&& other) noexcept : slice_(std::exchange(other.slice_, nullptr)) {}
    Pin& operator=(Pin&& other) noexcept {
      reset();
      slice_ = std::exchange(other.slice_, nullptr);
      return *this;
    }
    ~Pin() { reset(); }
    void reset() {
      if (slice_) std::exchange(slice_, nullptr)->pins.fetch_sub(1, std::memory_order_release);
    }
    explicit operator bool() const { return slice_ != nullptr; }
    Slice* operator->() const { return slice_; }
    Slice* get() const { return slice_; }

   private:
    Slice* slice_ = nullptr;
  };

  // A dirty slice's changes, copied at one moment.
  struct WriteBack {
    Slice* slice = nullptr;
    Pin pin;
    std::uint64_t granules = 0;
    std::uint64_t host = 0;  // where the copy goes
    Buffer copy;
  };

  // `readers`: who may hold a slice from peek(); nullptr when peek() is not used.
  // `loads`, if set: called, without the mutex, before a slice is loaded. It outlives this.
  TableCache(Mutex& mutex, InFlight* readers, const std::function<void()>& loads)
      : mutex_(mutex), readers_(readers), loads_(loads) {}
  TableCache(const TableCache&) = delete;
  TableCache& operator=(const TableCache&) = delete;

  // Both with no request running. configure() forgets all slices.
  // `locate(index)`, called under the mutex: the slice's offset in the file, or 0: there is none.
  // `clean()`: writes back what is dirty, because all slices are.
  void configure(Config config, BlockNode& file, std::function<std::uint64_t(std::uint64_t)> locate,
                 std::function<Task<Result<void>>()> clean) PLATTER_REQUIRES(metadata_mutex);
  // The tables have become larger or smaller; no request is running and nothing is pinned.
  void resize(std::uint64_t slice_count) PLATTER_REQUIRES(metadata_mutex);

  std::uint64_t slice_bytes() const { return config_.slice_bytes; }
  std::uint64_t slice_count() const { return config_.slice_count; }
  std::uint64_t capacity() const { return config_.capacity; }

  // A slice in memory, or nullptr. Without the mutex: valid while the caller's InFlight ticket is.
  Slice* peek(std::uint64_t index) const {
    if (index >= config_.slice_count) return nullptr;
    Slice* slice = std::atomic_ref(index_.get()[index]).load();
    if (slice && !slice->used.load(std::memory_order_relaxed)) {
      slice->used.store(true, std::memory_order_relaxed);
    }
    return slice;
  }

  // Loads a slice if it is not here; an empty Pin when locate() says there is none.
  Task<Result<Pin>> load(std::uint64_t index);
  // Writes back what is dirty.
  Task<Result<void>> clean() { return clean_(); }
  // Writes back what is dirty when that is much of what may be here. Who adds slices without
  // loading any asks first, for add_zeroed() cannot wait.
  Task<void> make_room();

  // A slice that has just come into being at `host` and reads as zeroes there.
  Slice* add_zeroed(std::uint64_t index, std::uint64_t host) PLATTER_REQUIRES(metadata_mutex);
  void mark_dirty(Slice& slice, std::uint64_t offset, std::uint64_t length)
      PLATTER_REQUIRES(metadata_mutex);
  bool has_dirty() const PLATTER_REQUIRES(metadata_mutex) { return !dirty_.empty(); }
  // Whether the file lacks changes of a slice in [first, first + count).
  bool unwritten(std::uint64_t first, std::uint64_t count) const PLATTER_REQUIRES(metadata_mutex);
  std::vector<WriteBack> take_dirty() PLATTER_REQUIRES(metadata_mutex);
  // The copies were not written after all: their slices are dirty again.
  void put_back(std::vector<WriteBack> batch) PLATTER_REQUIRES(metadata_mutex);
  // Gives up every slice in [first, first + count): the table is gone. Nothing is pinned.
  void drop(std::uint64_t first, std::uint64_t count) PLATTER_REQUIRES(metadata_mutex);
  // The table of these slices now lies at `host`; contents are the same.
  void relocate(std::uint64_t first, std::uint64_t count, std::uint64_t host)
      PLATTER_REQUIRES(metadata_mutex);
  std::uint64_t resident() const PLATTER_REQUIRES(metadata_mutex) {
    return slices_.size() - spare_.size() - limbo_.size();
  }
  // Whether any slice in [first, first + count) is in memory.
  bool holds(std::uint64_t first, std::uint64_t count) const PLATTER_REQUIRES(metadata_mutex);
  // Gives up the clean slices in [first, first + count) that nobody has pinned.
  void give_up(std::uint64_t first, std::uint64_t count) PLATTER_REQUIRES(metadata_mutex);
  // Gives up clean slices that nobody used since the last call.
  void shed_unused() PLATTER_REQUIRES(metadata_mutex);

  // Writes the copies, merging neighbours; then accounts for them.
  Task<Result<void>> write(std::vector<WriteBack> batch);

 private:
  struct Free {
    void operator()(Slice** p) const { std::free(p); }
  };
  struct Retired {
    Slice* slice;
    std::uint64_t barrier;
  };
  Slice* obtain(std::uint64_t index) PLATTER_REQUIRES(metadata_mutex);
  void evict(Slice& slice) PLATTER_REQUIRES(metadata_mutex);
  static bool evictable(const Slice& slice) PLATTER_REQUIRES(metadata_mutex) {
    return slice.ready && slice.dirty == 0 && slice.writing == 0 &&
           slice.pins.load(std::memory_order_acquire) == 0;
  }
  Slice* pick_victim() PLATTER_REQUIRES(metadata_mutex);
  void publish(Slice& slice) PLATTER_REQUIRES(metadata_mutex);
  void restore(const WriteBack& one) PLATTER_REQUIRES(metadata_mutex);
  std::uint64_t granule() const { return granule_; }

  Mutex& mutex() PLATTER_RETURNS_CAPABILITY(metadata_mutex) { return mutex_; }

  Mutex& mutex_;
  InFlight* const readers_;
  const std::function<void()>& loads_;
  // Immutable after configure(), but for config_.slice_count and index_, see resize().
  Config config_;
  std::uint64_t granule_ = 0;
  BlockNode* file_ = nullptr;
  std::function<std::uint64_t(std::uint64_t)> locate_;
  std::function<Task<Result<void>>()> clean_;
  std::unique_ptr<Slice*, Free> index_;  // by slice; entries are atomic, changed under the mutex
  std::vector<std::unique_ptr<Slice>> slices_ PLATTER_GUARDED_BY(metadata_mutex);
  std::vector<Slice*> spare_ PLATTER_GUARDED_BY(metadata_mutex);
  std::deque<Retired> limbo_ PLATTER_GUARDED_BY(metadata_mutex);
  std::unordered_map<std::uint64_t, Slice*> loading_ PLATTER_GUARDED_BY(metadata_mutex);
  std::vector<Slice*> dirty_ PLATTER_GUARDED_BY(metadata_mutex);
  std::size_t hand_ PLATTER_GUARDED_BY(metadata_mutex) = 0;
};

}  // namespace platter::qcow2
