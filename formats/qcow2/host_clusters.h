// HostClusters: the life of a cluster of the image file, in one place.
//
//   free -> owned -> linked -> unlinked -> settling -> quarantined -> (punching ->) free
//
//   free         count 0, nobody refers to it: may be handed out
//   owned        handed out, count 1 in memory, nothing refers to it yet (a Reservation)
//   linked       a table in memory refers to it; its data was written before
//   unlinked     no table in memory refers to it any more; on disk one may
//   settling     a write-back that makes the loss of the reference durable is running
//   quarantined  durable; but a request that looked it up before may still read or write there
//   punching     nobody can reach it; its space is being handed back below
//
// Own before publishing, unlink before releasing. The count stays until the last step, so that a
// cluster is reusable only when it is free by its count; nothing else says so. A cluster shared
// with snapshots or packed neighbours goes through the same states for each reference and ends with
// a lower count.
//
// When punching fails, what the cluster holds is unknown and it is not used again until it has been
// checked (its count stays: a leak); the next flush reports the error.
//
// Threads: coroutines from any executor; the annotations say what needs Core::mutex().
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "formats/qcow2/core.h"
#include "formats/qcow2/refcount_map.h"
#include "formats/qcow2/refcounts.h"

namespace platter::qcow2 {

enum class ClusterStage : std::uint8_t {
  kFree,
  kOwned,
  kLinked,
  kUnlinked,
  kSettling,
  kQuarantined,
  kPunching
};
bool legal_move(ClusterStage from, ClusterStage to);

// Clusters [first, first + count) of the file that share a fate.
struct ClusterRun {
  std::uint64_t first = 0;
  std::uint64_t count = 0;
  ClusterStage stage = ClusterStage::kFree;
  Discard discard = Discard::kNever;
  bool reads_zero = false;    // owned: never written since the file grew over it
  std::uint64_t barrier = 0;  // quarantined: passed when nobody can reach it

  // Any move that the picture above does not show is a bug in the engine: it aborts rather than
  // hand out a cluster twice.
  void move_to(ClusterStage next);
};

class HostClusters;

// Owned clusters that go back to free unless they are linked.
class [[nodiscard]] Reservation {
 public:
  Reservation() = default;
  Reservation(HostClusters& owner, ClusterRun run) : owner_(&owner), run_(run) {}
  Reservation(Reservation&& other) noexcept
      : owner_(std::exchange(other.owner_, nullptr)), run_(other.run_) {}
  Reservation& operator=(Reservation&& other) noexcept;
  ~Reservation();  // takes Core::mutex() when it gives something back

  explicit operator bool() const { return owner_ != nullptr; }
  std::uint64_t first() const { return run_.first; }
  std::uint64_t count() const { return run_.count; }
  bool reads_zero() const { return run_.reads_zero; }
  std::uint64_t host() const;  // bytes
  // The first `count` (> 0, at most all) of them; the rest goes back to free.
  Reservation first_part(std::uint64_t count) PLATTER_REQUIRES(metadata_mutex);
  // A table refers to it now.
  void link() PLATTER_REQUIRES(metadata_mutex);
  // Goes back to free.
  void give_back() PLATTER_REQUIRES(metadata_mutex);

 private:
  HostClusters* owner_ = nullptr;
  ClusterRun run_;
};

class HostClusters {
 public:
  HostClusters(Core& core, Refcounts& refcounts) : core_(core), refcounts_(refcounts) {}

  // When tables have been loaded: forgets what was known of the file. Nothing is running.
  void open();

  // Up to `count` (> 0) contiguous clusters, owned. ENOSPC and EFBIG where there are none.
  Task<Result<Reservation>> reserve(std::uint64_t count);
  // Exactly `count`, for tables that must be contiguous.
  Task<Result<Reservation>> reserve_exactly(std::uint64_t count);
  // The same as reserve() when no table must be loaded or made; empty: use reserve().
  Reservation try_reserve(std::uint64_t count) PLATTER_REQUIRES(metadata_mutex);

  // A table has ceased to refer to [first, first + count).
  void unlink(std::uint64_t first, std::uint64_t count, Discard discard)
      PLATTER_REQUIRES(metadata_mutex);
  // The same for the clusters that [host, host + length) touches.
  void unlink_bytes(std::uint64_t host, std::uint64_t length, Discard discard)
      PLATTER_REQUIRES(metadata_mutex);

  // Raises the count of one owned or linked cluster, for another packed neighbour in it.
  // False: not possible (slice not loaded, or the count is at its maximum).
  bool share(std::uint64_t cluster) PLATTER_REQUIRES(metadata_mutex);
  // Whether the cluster's count is in memory; load_count() brings it there.
  bool counted(std::uint64_t cluster) const PLATTER_REQUIRES(metadata_mutex) {
    return refcounts_.get(cluster).has_value();
  }
  Task<Result<TableCache::Pin>> load_count(std::uint64_t cluster) {
    return refcounts_.cache().load(refcounts_.slice_of(cluster));
  }
  // Lowers what share() raised, when nothing came to refer to it.
  void unshare(std::uint64_t cluster) PLATTER_REQUIRES(metadata_mutex);

  // Write-back (write_back.h). What is unlinked by now, as settling.
  std::vector<ClusterRun> take_unlinked() PLATTER_REQUIRES(metadata_mutex);
  // The write-back succeeded or failed.
  void settled(std::vector<ClusterRun> runs) PLATTER_REQUIRES(metadata_mutex);
  void not_settled(std::vector<ClusterRun> runs) PLATTER_REQUIRES(metadata_mutex);
  bool has_unlinked() const PLATTER_REQUIRES(metadata_mutex) {
    return !unlinked_.empty() || !quarantined_.empty();
  }
  // Whether space has lost its references, and is not free yet for that reason alone.
  bool is_space_coming() const PLATTER_REQUIRES(metadata_mutex) {
    return has_unlinked() || settling_ || reapers_ != 0;
  }
  std::uint64_t unlinked_clusters() const PLATTER_REQUIRES(metadata_mutex) {
    return unlinked_clusters_;
  }

  // Frees what has left quarantine. With kNo, not if somebody is at it, or it has been stopped: a
  // slow punch holds up nobody else. An error of punching is kept for take_error().
  enum class Wait : std::uint8_t { kNo, kYes };
  Task<void> reap(Wait wait);
  // The same, by who has stopped reaping.
  Task<void> reap_alone() { return reap_passed(); }
  // For tests: the file can have no more clusters than this.
  void limit_clusters(std::uint64_t count) { most_clusters_ = count; }
  Result<void> take_error();
  // While it lives nothing is freed, but by who has it.
  class [[nodiscard]] ReapingStop {
   public:
    ReapingStop(HostClusters& owner, AsyncMutex::Guard guard)
        : owner_(&owner), guard_(std::move(guard)) {}
    ReapingStop(ReapingStop&& other) noexcept
        : owner_(std::exchange(other.owner_, nullptr)), guard_(std::move(other.guard_)) {}
    ~ReapingStop();

   private:
    HostClusters* owner_;
    AsyncMutex::Guard guard_;
  };
  Task<ReapingStop> stop_reaping();

  // host_counts.cpp: changes of very many counts, with reaping stopped and requests running; the
  // map says how often each cluster is meant. A piece of a slice changes at once.
  // All counts go up, or, after an error, none: EINVAL where one would pass the maximum.
  Task<Result<void>> raise(const RefcountMap& more);
  // Whether no count is lower than the map says.
  Task<Result<void>> may_lower(const RefcountMap& less);
  // Counts go down, and what nobody refers to any more is free: no table on disk may refer to it.
  // After an error some counts have stayed.
  Task<Result<void>> lower(const RefcountMap& less, Discard why);
  // Leaves in the map those clusters whose count is exactly one, once each.
  Task<Result<void>> keep_single(RefcountMap& map);

  // Gives clusters that become tables their zeroes, also where they read as such already: what is
  // written to a table later, when it is flushed, finds its space then, however full the disk.
  Task<Result<void>> write_table_zeroes(std::uint64_t first, std::uint64_t count);

  // Where the packed bytes of compressed clusters continue; 0: nowhere.
  std::uint64_t packed_cursor PLATTER_GUARDED_BY(metadata_mutex) = 0;

  // The first cluster behind everything that is in use. Nothing is running or waiting to be freed.
  Task<Result<std::uint64_t>> end();

 private:
  friend class Reservation;
  // A slice's share of the free map.
  struct Region {
    std::vector<std::uint64_t> bits;  // 1: count is 0; below the frontier
    std::uint64_t free = 0;
  };
  static constexpr std::uint64_t kLastHostCluster = ~std::uint64_t{0};

  std::optional<Reservation> take_from_map(std::uint64_t count) PLATTER_REQUIRES(metadata_mutex);
  std::optional<Reservation> take_at_frontier(std::uint64_t count) PLATTER_REQUIRES(metadata_mutex);
  Reservation own(std::uint64_t first, std::uint64_t count) PLATTER_REQUIRES(metadata_mutex);
  void release_owned(ClusterRun run) PLATTER_REQUIRES(metadata_mutex);
  void mark_free(std::uint64_t cluster) PLATTER_REQUIRES(metadata_mutex);
  std::uint64_t limit() const;  // clusters that the file can have
  bool reads_zero(std::uint64_t first) const PLATTER_REQUIRES(metadata_mutex) {
    return first >= zero_from_;
  }

  // All below under preparing_.
  Task<Result<Reservation>> reserve_locked(std::uint64_t count);
  // One step towards a reservation: loads or makes what try_reserve() lacked. The Pin keeps it.
  // One slice is scanned for holes for each reservation at most, unless the file is full.
  enum class Search {
    kHoles,       // free clusters among those in use first, then at the frontier
    kKnownHoles,  // the same, but what was not scanned is not scanned now
  };
  Task<Result<TableCache::Pin>> prepare(Search& search);
  Task<Result<void>> scan(std::uint64_t slice);
  Task<Result<void>> find_frontier();
  bool go_on_in_block(std::uint64_t first_block, std::uint64_t end_block)
      PLATTER_EXCLUDES(metadata_mutex);
  Task<Result<void>> make_blocks(std::uint64_t following);
  // A refcount table of at least so many entries.
  Task<Result<void>> grow_table(std::uint64_t least_entries);
  void place_blocks(std::uint64_t first_block, std::uint64_t blocks, std::uint64_t following)
      PLATTER_REQUIRES(metadata_mutex);
  // These hold the mutex for a moment: try_reserve() moves zero_from_ without preparing_.
  std::uint64_t frontier() PLATTER_EXCLUDES(metadata_mutex);
  std::uint64_t block_count() PLATTER_EXCLUDES(metadata_mutex);
  std::uint64_t block(std::uint64_t index) PLATTER_EXCLUDES(metadata_mutex);
  Task<void> reap_passed();
  Task<void> reap_run(ClusterRun run);
  Task<Result<TableCache::Pin>> load_counts(std::uint64_t cluster);
  Task<Result<void>> lower_below(std::uint64_t end, const RefcountMap& less, Discard why);
  // Adds a cluster whose last reference has gone.
  void note_last(std::vector<ClusterRun>& last, std::uint64_t cluster)
      PLATTER_REQUIRES(metadata_mutex);
  // Hands the space of such clusters back, if that is wanted, and frees them.
  Task<void> free_last(std::vector<ClusterRun> last, Discard why);

  Core& core_;
  Refcounts& refcounts_;
  bool can_grow_ = false;  // immutable after open()
  std::atomic<std::uint64_t> most_clusters_{kMaxHostOffset >> kMinClusterBits};
  AsyncMutex preparing_;  // one prepare() at a time
  AsyncMutex reaping_;
  bool frontier_known_ PLATTER_GUARDED_BY(metadata_mutex) = false;
  std::uint64_t frontier_ PLATTER_GUARDED_BY(metadata_mutex) = 0;
  std::uint64_t zero_from_ PLATTER_GUARDED_BY(metadata_mutex) = kLastHostCluster;
  std::uint64_t next_scan_ PLATTER_GUARDED_BY(metadata_mutex) = 0;  // slices below are in the map
  std::vector<std::unique_ptr<Region>> regions_ PLATTER_GUARDED_BY(metadata_mutex);
  std::set<std::uint64_t> with_free_ PLATTER_GUARDED_BY(metadata_mutex);
  std::vector<ClusterRun> unlinked_ PLATTER_GUARDED_BY(metadata_mutex);
  std::uint64_t unlinked_clusters_ PLATTER_GUARDED_BY(metadata_mutex) = 0;
  bool settling_ PLATTER_GUARDED_BY(metadata_mutex) = false;  // a write-back has taken some
  std::deque<ClusterRun> quarantined_ PLATTER_GUARDED_BY(metadata_mutex);
  unsigned reapers_ PLATTER_GUARDED_BY(metadata_mutex) = 0;  // and who has stopped them
  std::optional<Error> punch_error_ PLATTER_GUARDED_BY(metadata_mutex);
  std::optional<std::uint64_t> conflict_
      PLATTER_GUARDED_BY(metadata_mutex);  // metadata that counts as free
};

}  // namespace platter::qcow2
