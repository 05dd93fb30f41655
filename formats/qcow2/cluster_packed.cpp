// Packed (compressed) writes: several clusters share a host cluster, byte after byte.
#include "block/base/checked.h"
#include "block/exec/workers.h"
#include "formats/qcow2/cluster_writer.h"

namespace platter::qcow2 {

// Where packed bytes go. Until they are linked the place is accounted for by `fresh` (a new
// cluster) and `shared` (one more reference to a cluster that has others).
struct ClusterWriter::PackedPlace {
  std::uint64_t host = 0;
  Reservation fresh;
  std::optional<std::uint64_t> shared;
};

Task<Result<ClusterWriter::PackedPlace>> ClusterWriter::place_packed(std::uint64_t length) {
  const Geometry& g = core_.geometry;
  Reservation fresh;
  TableCache::Pin pin;
  while (true) {
    std::optional<std::uint64_t> load;
    {
      MutexLock lock(core_.mutex());
      std::uint64_t& cursor = clusters_.packed_cursor;
      PackedPlace place;
      const std::uint64_t current = g.cluster_index(cursor);
      const std::uint64_t room = cursor != 0 ? g.cluster_size() - g.in_cluster(cursor) : 0;
      if (room < length && !fresh) fresh = clusters_.try_reserve(1);
      if (room >= length || (room != 0 && fresh && fresh.first() == current + 1)) {
        if (clusters_.share(current)) {
          place.host = cursor;
          place.shared = current;
          if (room >= length) {
            if (fresh) fresh.give_back();
          } else {
            place.fresh = std::move(fresh);
          }
        } else if (!clusters_.counted(current)) {
          load = current;
        } else {
          cursor = 0;  // its count is at the maximum
          continue;
        }
      } else if (fresh) {
        place.host = fresh.host();
        place.fresh = std::move(fresh);
      }
      if (place.host != 0) {
        if (place.host + length > g.compressed_offset_mask()) {
          if (place.shared) clusters_.unshare(*place.shared);
          if (place.fresh) place.fresh.give_back();
          co_return fail(EFBIG, "compressed data would lie beyond what the format can address");
        }
        cursor = place.host + length;
        if (g.in_cluster(cursor) == 0) cursor = 0;
        co_return std::move(place);
      }
    }
    if (load) {
      auto loaded = co_await clusters_.load_count(*load);
      PLATTER_CO_TRY(loaded);
      pin = std::move(*loaded);
      if (!pin) co_return fail(EIO, "the refcount block of a compressed cluster is missing");
      continue;
    }
    PLATTER_FAULT(*core_.file, FaultEvent::kClusterAllocBytes);
    auto reserved = co_await clusters_.reserve(1);
    PLATTER_CO_TRY(reserved);
    fresh = std::move(*reserved);
  }
}

Task<Result<bool>> ClusterWriter::write_packed(std::uint64_t offset,
                                               std::span<const std::byte> cluster) {
  const Geometry& g = core_.geometry;
  if (g.external_data) co_return fail(ENOTSUP, "an external data file has no compressed data");
  const Buffer packed(g.cluster_size());
  auto work = [this, cluster, &packed] {
    return deflate_cluster(core_.header.compression_type, cluster,
                           packed.span(0, packed.size() - 1));
  };
  auto length = co_await run_on(WorkerPool::codecs(), work);
  PLATTER_CO_TRY(length);
  if (*length == 0) co_return false;

  const std::uint64_t first = g.cluster_index(offset);
  Claim* claim = nullptr;
  while (!claim) {
    if (core_.poisoned.load()) co_return core_.given_up();
    auto pin = co_await tables_.make_writable(offset);
    PLATTER_CO_TRY(pin);
    UniqueMutexLock lock(core_.mutex());
    if (Claim* other = claimed(first, 1)) {
      co_await other->waiters.wait(lock);
      continue;
    }
    TableCache::Slice* slice = tables_.writable_slice(offset);
    if (!slice) continue;
    auto made = std::make_unique<Claim>();
    made->first = first;
    made->count = 1;
    made->slice = TableCache::Pin(slice);
    claim = made.get();
    claims_.emplace(first, std::move(made));
  }
  Result<void> written;
  auto place = co_await place_packed(*length);
  if (!place) {
    written = forward_error(place);
  } else {
    PLATTER_FAULT(*core_.file, FaultEvent::kWriteCompressed);
    written = co_await core_.file->write(place->host, IoVec(packed.span(0, *length)));
    PLATTER_FAULT(*core_.file, FaultEvent::kL2UpdateCompressed);
  }
  MutexLock lock(core_.mutex());
  if (written) {
    const std::uint64_t index = tables_.entry_of(offset);
    const L2Entry old = tables_.entry(*claim->slice.get(), index);
    tables_.set_entry(*claim->slice.get(), index, {compressed_entry(g, place->host, *length), 0});
    unlink_entry(old, Discard::kNever);
    if (place->fresh) place->fresh.link();
  } else if (place) {
    if (place->shared) clusters_.unshare(*place->shared);
    if (place->fresh) place->fresh.give_back();
  }
  finish(*claim);
  PLATTER_CO_TRY(written);
  co_return true;
}

}  // namespace platter::qcow2
