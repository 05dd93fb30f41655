#include "formats/qcow2/snapshots.h"

#include "formats/qcow2/driver.h"
#include "formats/qcow2/storage_io.h"

namespace platter::qcow2 {

Task<Result<void>> Snapshots::open(TableBounds bounds, bool keep_unknown) {
  snapshots_.clear();
  bytes_ = 0;
  if (driver_.core_.header.nb_snapshots == 0) co_return {};
  auto table =
      co_await read_snapshot_table(*driver_.core_.file, driver_.core_.header, keep_unknown, bounds);
  PLATTER_CO_TRY(table);
  snapshots_ = std::move(table->snapshots);
  bytes_ = table->bytes;
  co_return {};
}

std::vector<SnapshotInfo> Snapshots::list() const {
  std::vector<SnapshotInfo> infos;
  infos.reserve(snapshots_.size());
  for (const Snapshot& s : snapshots_) {
    infos.push_back({.id = s.id,
                     .name = s.name,
                     .vm_state_size = s.vm_state_size,
                     .date_seconds = s.date_seconds,
                     .date_nanoseconds = s.date_nanoseconds,
                     .vm_clock_nanoseconds = s.vm_clock_nanoseconds,
                     .icount = s.icount,
                     .disk_size = s.disk_size.value_or(driver_.size())});
  }
  return infos;
}

Result<std::size_t> Snapshots::find(const std::string& id_or_name) const {
  for (std::size_t i = 0; i < snapshots_.size(); ++i) {
    if (snapshots_[i].id == id_or_name) return i;
  }
  for (std::size_t i = 0; i < snapshots_.size(); ++i) {
    if (snapshots_[i].name == id_or_name) return i;
  }
  return fail(ENOENT, "snapshot '{}' not found", id_or_name);
}

Task<Result<void>> Snapshots::load(std::string id_or_name) {
  Core& core = driver_.core_;
  auto alone = co_await driver_.operations_.lock();
  if (core.writable)
    co_return fail(EBUSY, "a snapshot is shown only by an image that is open read-only");
  const Result<std::size_t> which = find(id_or_name);
  PLATTER_CO_TRY(which);
  const Snapshot& snapshot = snapshots_[*which];
  const Result<void> place = validate_snapshot_l1(snapshot, core.header, core.file->size());
  PLATTER_CO_TRY(place);
  const Result<std::uint64_t> size = validate_disk_size(snapshot, core.header);
  PLATTER_CO_TRY(size);
  auto l1 = co_await driver_.tables_.read_l1(snapshot.l1_table_offset, snapshot.l1_size);
  PLATTER_CO_TRY(l1);
  const std::uint64_t needed = core.geometry.l1_entries_for(*size);
  if (l1->size() < needed) l1->resize(needed);
  auto holding = driver_.hold();
  co_await holding;
  {
    MutexLock lock(core.mutex());
    driver_.tables_.cache().drop(0, driver_.tables_.cache().slice_count());
    driver_.tables_.replace_l1(snapshot.l1_table_offset, *l1);
    driver_.tables_.cache().resize(l1->size() * driver_.tables_.slices_per_table());
    core.size.store(*size);
  }
  shows_one_ = true;
  driver_.release();
  co_return {};
}

}  // namespace platter::qcow2
