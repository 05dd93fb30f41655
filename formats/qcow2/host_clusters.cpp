#include "formats/qcow2/host_clusters.h"

#include <cstdio>
#include <cstdlib>

#include "block/base/checked.h"

namespace platter::qcow2 {

bool legal_move(ClusterStage from, ClusterStage to) {
  switch (from) {
    case ClusterStage::kFree:
      return to == ClusterStage::kOwned;
    // Back to free at once, or by way of the reaper when its count is not in memory.
    case ClusterStage::kOwned:
      return to == ClusterStage::kLinked || to == ClusterStage::kFree ||
             to == ClusterStage::kQuarantined;
    case ClusterStage::kLinked:
      return to == ClusterStage::kUnlinked;
    case ClusterStage::kUnlinked:
      return to == ClusterStage::kSettling;
    // Back to unlinked when the write-back failed.
    case ClusterStage::kSettling:
      return to == ClusterStage::kQuarantined || to == ClusterStage::kUnlinked;
    case ClusterStage::kQuarantined:
      return to == ClusterStage::kPunching || to == ClusterStage::kFree;
    case ClusterStage::kPunching:
      return to == ClusterStage::kFree;
  }
  return false;
}

void ClusterRun::move_to(ClusterStage next) {
  if (!legal_move(stage, next)) {
    std::fprintf(stderr, "qcow2: host clusters %llu+%llu cannot go from stage %d to %d\n",
                 static_cast<unsigned long long>(first), static_cast<unsigned long long>(count),
                 static_cast<int>(stage), static_cast<int>(next));
    std::abort();
  }
  stage = next;
}

// Reservation ------------------------------------------------------------------------------------

Reservation& Reservation::operator=(Reservation&& other) noexcept {
  if (this == &other) return *this;
  if (owner_) {
    MutexLock lock(owner_->core_.mutex());
    give_back();
  }
  owner_ = std::exchange(other.owner_, nullptr);
  run_ = other.run_;
  return *this;
}

Reservation::~Reservation() {
  if (!owner_) return;
  MutexLock lock(owner_->core_.mutex());
  give_back();
}

std::uint64_t Reservation::host() const {
  return run_.first << owner_->core_.geometry.cluster_bits;
}

Reservation Reservation::first_part(std::uint64_t count) {
  ClusterRun rest = run_;
  rest.first += count;
  rest.count -= count;
  run_.count = count;
  if (rest.count != 0) owner_->release_owned(rest);
  return std::move(*this);
}

void Reservation::link() {
  run_.move_to(ClusterStage::kLinked);
  owner_ = nullptr;
}

void Reservation::give_back() { std::exchange(owner_, nullptr)->release_owned(run_); }

// Life -------------------------------------------------------------------------------------------

Reservation HostClusters::own(std::uint64_t first, std::uint64_t count) {
  ClusterRun run{.first = first, .count = count, .reads_zero = reads_zero(first)};
  for (std::uint64_t c = first; c < first + count; ++c) refcounts_.set(c, 1);
  if (zero_from_ != kLastHostCluster) zero_from_ = std::max(zero_from_, first + count);
  run.move_to(ClusterStage::kOwned);
  return Reservation(*this, run);
}

void HostClusters::release_owned(ClusterRun run) {
  for (std::uint64_t c = run.first; c < run.first + run.count; ++c) {
    ClusterRun one{.first = c, .count = 1, .stage = run.stage};
    if (refcounts_.get(c).value_or(0) != 1) {
      one.move_to(ClusterStage::kQuarantined);  // barrier 0: nobody ever saw it
      quarantined_.push_front(one);
      continue;
    }
    one.move_to(ClusterStage::kFree);
    if (core_.geometry.cluster_index(packed_cursor) == c) packed_cursor = 0;
    refcounts_.set(c, 0);
    mark_free(c);
  }
}

void HostClusters::unlink(std::uint64_t first, std::uint64_t count, Discard discard) {
  if (count == 0) return;
  unlinked_clusters_ += count;
  if (!unlinked_.empty()) {
    ClusterRun& last = unlinked_.back();
    if (last.first + last.count == first && last.discard == discard) {
      last.count += count;
      return;
    }
  }
  ClusterRun run{
      .first = first, .count = count, .stage = ClusterStage::kLinked, .discard = discard};
  run.move_to(ClusterStage::kUnlinked);
  unlinked_.push_back(run);
}

void HostClusters::unlink_bytes(std::uint64_t host, std::uint64_t length, Discard discard) {
  const std::uint64_t first = core_.geometry.cluster_index(host);
  unlink(first, core_.geometry.cluster_index(host + length - 1) - first + 1, discard);
}

bool HostClusters::share(std::uint64_t cluster) {
  const auto count = refcounts_.get(cluster);
  if (!count || *count == 0 || *count >= core_.geometry.max_refcount()) return false;
  refcounts_.set(cluster, *count + 1);
  return true;
}

void HostClusters::unshare(std::uint64_t cluster) {
  // The same way as a lost reference, for its slice may have left memory.
  unlink(cluster, 1, Discard::kNever);
}

std::vector<ClusterRun> HostClusters::take_unlinked() {
  std::vector<ClusterRun> runs = std::exchange(unlinked_, {});
  unlinked_clusters_ = 0;
  settling_ = !runs.empty();
  for (ClusterRun& run : runs) run.move_to(ClusterStage::kSettling);
  return runs;
}

void HostClusters::settled(std::vector<ClusterRun> runs) {
  settling_ = false;
  if (runs.empty()) return;
  const std::uint64_t barrier = core_.in_flight.barrier();
  for (ClusterRun& run : runs) {
    run.move_to(ClusterStage::kQuarantined);
    run.barrier = barrier;
    quarantined_.push_back(run);
  }
}

void HostClusters::not_settled(std::vector<ClusterRun> runs) {
  settling_ = false;
  for (ClusterRun& run : runs) {
    run.move_to(ClusterStage::kUnlinked);
    unlinked_clusters_ += run.count;
    unlinked_.push_back(run);
  }
}

Task<void> HostClusters::reap(Wait wait) {
  {
    MutexLock lock(core_.mutex());
    // (Another reaper may have taken the last of them, and not have counted it yet.)
    if (reapers_ != 0 ? wait == Wait::kNo : quarantined_.empty()) co_return;
    ++reapers_;
  }
  {
    auto guard = co_await reaping_.lock();
    auto reaping = reap_passed();
    co_await reaping;
  }
  MutexLock lock(core_.mutex());
  --reapers_;
}

Task<void> HostClusters::reap_passed() {
  core_.in_flight.poll();
  while (true) {
    ClusterRun run;
    {
      MutexLock lock(core_.mutex());
      if (quarantined_.empty() || !core_.in_flight.passed(quarantined_.front().barrier)) co_return;
      run = quarantined_.front();
      quarantined_.pop_front();
    }
    auto reaping = reap_run(run);
    co_await reaping;
  }
}

HostClusters::ReapingStop::~ReapingStop() {
  if (!owner_) return;
  MutexLock lock(owner_->core_.mutex());
  --owner_->reapers_;
}

Task<HostClusters::ReapingStop> HostClusters::stop_reaping() {
  {
    MutexLock lock(core_.mutex());
    ++reapers_;
  }
  auto guard = co_await reaping_.lock();
  co_return ReapingStop(*this, std::move(guard));
}

Task<void> HostClusters::reap_run(ClusterRun run) {
  const std::uint64_t end = run.first + run.count;
  for (std::uint64_t at = run.first; at < end;) {
    const std::uint64_t slice = refcounts_.slice_of(at);
    const std::uint64_t chunk_end = std::min(end, (slice + 1) * refcounts_.slice_clusters());
    auto pin = co_await refcounts_.cache().load(slice);
    if (!pin || !*pin) {
      // The clusters stay counted: a leak, which the checker finds.
      MutexLock lock(core_.mutex());
      if (!pin && !punch_error_) punch_error_ = pin.error();
      at = chunk_end;
      continue;
    }
    std::vector<ClusterRun> last;
    {
      MutexLock lock(core_.mutex());
      for (; at < chunk_end; ++at) {
        const std::uint64_t count = refcounts_.get(at).value_or(0);
        if (count == 0) continue;  // tables that refer to a free cluster
        if (count > 1) {
          refcounts_.set(at, count - 1);
        } else {
          note_last(last, at);
        }
      }
    }
    auto freeing = free_last(std::move(last), run.discard);
    co_await freeing;
  }
}

void HostClusters::note_last(std::vector<ClusterRun>& last, std::uint64_t cluster) {
  if (core_.geometry.cluster_index(packed_cursor) == cluster) packed_cursor = 0;
  if (!last.empty() && last.back().first + last.back().count == cluster) {
    ++last.back().count;
  } else {
    last.push_back({.first = cluster, .count = 1, .stage = ClusterStage::kQuarantined});
  }
}

Task<void> HostClusters::free_last(std::vector<ClusterRun> last, Discard why) {
  PLATTER_FAULT(*core_.file, FaultEvent::kClusterFree);
  const bool punches = core_.discard_passes[static_cast<std::size_t>(why)];
  for (ClusterRun& one : last) {
    Result<void> punched;
    if (punches) {
      one.move_to(ClusterStage::kPunching);
      PLATTER_FAULT(*core_.file, FaultEvent::kClusterPunch);
      // The file need not have its last cluster in full.
      const std::uint64_t from = one.first << core_.geometry.cluster_bits;
      const std::uint64_t file_end = core_.file->size();
      const std::uint64_t length =
          std::min(one.count << core_.geometry.cluster_bits, file_end - std::min(from, file_end));
      punched = co_await core_.file->discard(from, length);
    }
    MutexLock lock(core_.mutex());
    if (!punched && punched.error().code() != ENOTSUP && punched.error().code() != EOPNOTSUPP) {
      if (!punch_error_) punch_error_ = punched.error().in("could not give back freed space");
      continue;
    }
    one.move_to(ClusterStage::kFree);
    for (std::uint64_t c = one.first; c < one.first + one.count; ++c) {
      refcounts_.set(c, 0);
      mark_free(c);
    }
  }
}

Result<void> HostClusters::take_error() {
  MutexLock lock(core_.mutex());
  if (!punch_error_) return {};
  Error error = *punch_error_;
  punch_error_.reset();
  return std::unexpected<Error>(std::move(error));
}

}  // namespace platter::qcow2
