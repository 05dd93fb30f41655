// Taking, removing, renaming and applying internal snapshots. Requests go on meanwhile, but one is
// applied inside Qcow2Driver::exclusively().
#include <algorithm>
#include <charconv>
#include <cstring>

#include "formats/qcow2/driver.h"
#include "formats/qcow2/references.h"
#include "formats/qcow2/snapshots.h"

namespace platter::qcow2 {

struct Snapshots::NewTables {
  std::vector<Snapshot> snapshots;
  Reservation table_place;  // of the snapshot table
  std::vector<std::byte> table;
  std::uint64_t table_offset = 0;  // 0: no snapshots
  Reservation l1_place;
  std::uint64_t l1_offset = 0;
  std::uint64_t l1_bytes = 0;
};

namespace {

// Bytes of L2 tables.
constexpr std::uint64_t kRegainedAtOnce = std::uint64_t{4} << 20;

std::uint64_t l1_bytes(const Snapshot& snapshot) { return std::uint64_t{snapshot.l1_size} * 8; }

}  // namespace

struct Snapshots::Frozen {
  std::vector<std::uint64_t> l1;
  RefcountMap references{0};
  bool raised = false;  // the counts say so
};

namespace {

Task<Result<void>> write_bytes(BlockNode& file, std::uint64_t offset,
                               std::span<const std::byte> bytes) {
  const Buffer copy(bytes.size());
  std::memcpy(copy.data(), bytes.data(), bytes.size());
  auto written = co_await file.write(offset, copy.iov());
  co_return written;
}

// Data that lies outside has no refcounts, so nothing keeps what a snapshot shows.
std::unexpected<Error> no_data_file() {
  return fail(ENOTSUP, "an image with an external data file has no internal snapshots");
}

Result<void> name_fits(const std::string& name) {
  if (name.size() <= kMaxSnapshotName) return {};
  return fail(ENAMETOOLONG, "the name has {} bytes, {} is the limit", name.size(),
              kMaxSnapshotName);
}

}  // namespace

// Shared steps -----------------------------------------------------------------------------------

std::string Snapshots::free_id() const {
  std::uint64_t highest = 0;
  for (const Snapshot& s : snapshots_) {
    std::uint64_t id = 0;
    std::from_chars(s.id.data(), s.id.data() + s.id.size(), id);
    highest = std::max(highest, id);
  }
  return std::to_string(highest + 1);
}

Task<Result<void>> Snapshots::place_l1(std::size_t entries, NewTables& tables) {
  tables.l1_bytes = entries * 8;
  if (entries == 0) co_return {};
  const std::uint64_t clusters = driver_.core_.geometry.clusters_for(tables.l1_bytes);
  auto place = co_await driver_.clusters_.reserve_exactly(clusters);
  PLATTER_CO_TRY(place);
  tables.l1_place = std::move(*place);
  tables.l1_offset = tables.l1_place.host();
  co_return {};
}

Task<Result<void>> Snapshots::place_table(std::vector<Snapshot> snapshots, NewTables& tables) {
  tables.snapshots = std::move(snapshots);
  if (tables.snapshots.empty()) co_return {};
  // What an old program left out is written out: the size that the disk has.
  for (Snapshot& s : tables.snapshots) s.disk_size = s.disk_size.value_or(driver_.size());
  auto bytes = encode_snapshot_table(tables.snapshots);
  PLATTER_CO_TRY(bytes);
  tables.table = std::move(*bytes);
  const std::uint64_t clusters = driver_.core_.geometry.clusters_for(tables.table.size());
  auto place = co_await driver_.clusters_.reserve_exactly(clusters);
  PLATTER_CO_TRY(place);
  tables.table_place = std::move(*place);
  tables.table_offset = tables.table_place.host();
  co_return {};
}

Task<Result<void>> Snapshots::write_table(const NewTables& tables) {
  if (tables.table_offset == 0) co_return {};
  auto written = co_await write_bytes(*driver_.core_.file, tables.table_offset, tables.table);
  co_return written;
}

Task<Result<void>> Snapshots::write_l1(std::uint64_t offset,
                                       std::span<const std::uint64_t> entries) {
  if (entries.empty()) co_return {};
  const Buffer bytes(entries.size() * 8);
  for (std::size_t i = 0; i < entries.size(); ++i) store_be(bytes.data() + i * 8, entries[i]);
  auto written = co_await driver_.core_.file->write(offset, bytes.iov());
  co_return written;
}

Task<Result<void>> Snapshots::switch_header(const std::function<void(Header&)>& change) {
  Core& core = driver_.core_;
  auto settled = co_await core.file->flush();
  PLATTER_CO_TRY(settled);
  auto guard = co_await core.header_mutex.lock();
  const Header before = core.header;
  change(core.header);
  auto written = co_await core.publish_header();
  if (written) co_return {};
  core.header.nb_snapshots = before.nb_snapshots;
  core.header.snapshots_offset = before.snapshots_offset;
  core.header.l1_table_offset = before.l1_table_offset;
  core.header.l1_size = before.l1_size;
  core.header.size = before.size;
  co_return written;
}

Task<Result<void>> Snapshots::switch_table(const NewTables& tables) {
  const std::function<void(Header&)> change = [&tables](Header& header) {
    header.nb_snapshots = static_cast<std::uint32_t>(tables.snapshots.size());
    header.snapshots_offset = tables.table_offset;
  };
  auto switched = co_await switch_header(change);
  co_return switched;
}

void Snapshots::take_over(NewTables& tables) {
  Core& core = driver_.core_;
  MutexLock lock(core.mutex());
  core.metadata.add(tables.l1_offset, tables.l1_bytes);
  core.metadata.add(tables.table_offset, tables.table.size());
  if (tables.l1_place) tables.l1_place.link();
  if (tables.table_place) tables.table_place.link();
  snapshots_ = std::move(tables.snapshots);
  bytes_ = tables.table.size();
}

Task<Result<void>> Snapshots::give_up(NewTables& tables) {
  // Should the new header have reached the disk after all, the old one must be there again before
  // the new tables' places are used for anything else.
  auto settled = co_await driver_.write_back_.commit(WriteBack::Flush::kIfNeeded);
  if (!settled && driver_.core_.header_unsure.load()) {
    MutexLock lock(driver_.core_.mutex());
    if (tables.l1_place) tables.l1_place.link();
    if (tables.table_place) tables.table_place.link();
  }
  co_return settled;
}

Task<Result<void>> Snapshots::regain(RefcountMap& references) {
  auto done = co_await driver_.clusters_.keep_single(references);
  // Written back now and then: what is changed takes its size in memory twice until it is. Tables
  // that nobody had in memory do not stay there, for requests' sake.
  L2Tables& tables = driver_.tables_;
  const std::uint64_t slices = tables.slices_per_table();
  const std::uint64_t step =
      std::max<std::uint64_t>(kRegainedAtOnce >> driver_.core_.geometry.cluster_bits, 1);
  std::vector<std::uint64_t> loaded;
  for (std::uint64_t i = 0; done && i < tables.l1_size(); i += step) {
    loaded.clear();
    {
      MutexLock lock(driver_.core_.mutex());
      for (std::uint64_t table = i; table < std::min(i + step, tables.l1_size()); ++table) {
        if (!tables.cache().holds(table * slices, slices)) loaded.push_back(table);
      }
    }
    done = co_await driver_.writer_.regain(references, i, i + step);
    if (done) done = co_await driver_.write_back_.commit(WriteBack::Flush::kIfNeeded);
    MutexLock lock(driver_.core_.mutex());
    for (const std::uint64_t table : loaded) tables.cache().give_up(table * slices, slices);
  }
  co_return done;
}

// Taking -----------------------------------------------------------------------------------------

Task<Result<void>> Snapshots::create(std::string name, std::uint64_t date_seconds,
                                     std::uint32_t date_nanoseconds) {
  Snapshot snapshot;
  snapshot.name = std::move(name);
  snapshot.date_seconds = static_cast<std::uint32_t>(date_seconds);
  snapshot.date_nanoseconds = date_nanoseconds;
  snapshot.icount = 0;  // of a machine that has not run
  if (driver_.core_.data_file) co_return no_data_file();
  const Result<void> named_well = name_fits(snapshot.name);
  PLATTER_CO_TRY(named_well);
  const auto work = [this, &snapshot] { return create_now(snapshot); };
  const std::function<Task<Result<void>>()> named(work);
  auto done = co_await driver_.alongside(named);
  co_return done;
}

Task<Result<void>> Snapshots::create_now(Snapshot snapshot) {
  NewTables tables;
  auto step = co_await place_l1(driver_.tables_.l1_size(), tables);
  PLATTER_CO_TRY(step);
  snapshot.id = free_id();
  snapshot.disk_size = driver_.size();
  snapshot.l1_table_offset = tables.l1_offset;
  snapshot.l1_size = static_cast<std::uint32_t>(driver_.tables_.l1_size());
  std::vector<Snapshot> all = snapshots_;
  all.push_back(std::move(snapshot));
  step = co_await place_table(std::move(all), tables);
  PLATTER_CO_TRY(step);
  // So that few tables have to be written between freezing and their first change.
  step = co_await driver_.write_back_.commit(WriteBack::Flush::kIfNeeded);
  PLATTER_CO_TRY(step);
  step = co_await driver_.begin_changing_counts();
  PLATTER_CO_TRY(step);

  Frozen frozen;
  auto freezing = freeze(frozen);
  co_await freezing;
  step = co_await publish(frozen, tables);
  if (step) co_return {};
  auto undone = co_await unfreeze(frozen, tables);
  if (!undone) driver_.needs_repair_ = true;
  co_return step;
}

Task<void> Snapshots::freeze(Frozen& frozen) {
  auto holding = driver_.hold();
  co_await holding;
  {
    MutexLock lock(driver_.core_.mutex());
    frozen.l1 = driver_.tables_.freeze();
  }
  driver_.release();
}

Task<Result<void>> Snapshots::publish(Frozen& frozen, NewTables& tables) {
  Core& core = driver_.core_;
  const Geometry& g = core.geometry;
  // From here on the file has the frozen tables.
  auto step = co_await driver_.write_back_.commit(WriteBack::Flush::kIfNeeded);
  if (step) {
    step = co_await count_references(core, driver_.refcounts_, frozen.l1, frozen.references);
  }
  // A flag that is missing harms nobody; one that is wrong would.
  if (step) step = co_await clear_copied_in_file(core, frozen.l1);
  if (step) step = co_await core.file->flush();
  PLATTER_CO_TRY(step);
  step = co_await driver_.clusters_.raise(frozen.references);
  PLATTER_CO_TRY(step);
  frozen.raised = true;
  step = co_await write_l1(tables.l1_offset, frozen.l1);
  if (step) step = co_await write_table(tables);
  if (step) step = co_await driver_.write_back_.commit(WriteBack::Flush::kIfNeeded);
  const std::uint64_t old_offset = core.header.snapshots_offset;
  const std::uint64_t old_bytes = bytes_;
  if (step) step = co_await switch_table(tables);
  PLATTER_CO_TRY(step);
  take_over(tables);
  MutexLock lock(core.mutex());
  core.metadata.remove(old_offset, old_bytes);
  driver_.clusters_.unlink(g.cluster_index(old_offset), g.clusters_for(old_bytes),
                           Discard::kSnapshot);
  co_return {};
}

Task<Result<void>> Snapshots::unfreeze(Frozen& frozen, NewTables& tables) {
  auto step = co_await give_up(tables);
  PLATTER_CO_TRY(step);
  if (frozen.raised) {
    step = co_await driver_.clusters_.lower(frozen.references, Discard::kNever);
  } else {
    frozen.references.clear();
    step =
        co_await count_references(driver_.core_, driver_.refcounts_, frozen.l1, frozen.references);
  }
  PLATTER_CO_TRY(step);
  step = co_await regain(frozen.references);
  co_return step;
}

// Removing ---------------------------------------------------------------------------------------

Task<Result<void>> Snapshots::remove(std::string id_or_name) {
  if (driver_.core_.data_file) co_return no_data_file();
  const auto work = [this, &id_or_name] { return remove_now(id_or_name); };
  const std::function<Task<Result<void>>()> named(work);
  auto done = co_await driver_.alongside(named);
  co_return done;
}

Task<Result<void>> Snapshots::remove_now(std::string id_or_name) {
  const Result<std::size_t> which = find(id_or_name);
  PLATTER_CO_TRY(which);
  std::vector<Snapshot> left = snapshots_;
  std::vector<Snapshot> gone{std::move(left[*which])};
  left.erase(left.begin() + static_cast<std::ptrdiff_t>(*which));
  auto done = co_await replace_table(std::move(left), std::move(gone));
  co_return done;
}

Task<Result<void>> Snapshots::count_gone(const Snapshot& snapshot, RefcountMap& references) {
  Core& core = driver_.core_;
  const Geometry& g = core.geometry;
  const Result<void> valid = validate_snapshot_l1(snapshot, core.header, core.file->size());
  PLATTER_CO_TRY(valid);
  auto l1 = co_await driver_.tables_.read_l1(snapshot.l1_table_offset, snapshot.l1_size);
  PLATTER_CO_TRY(l1);
  auto counted = co_await count_references(core, driver_.refcounts_, *l1, references);
  PLATTER_CO_TRY(counted);
  co_return count_clusters(core, driver_.refcounts_, references,
                           g.cluster_index(snapshot.l1_table_offset),
                           g.clusters_for(l1_bytes(snapshot)));
}

Task<Result<void>> Snapshots::replace_table(std::vector<Snapshot> left,
                                            std::vector<Snapshot> gone) {
  Core& core = driver_.core_;
  const Geometry& g = core.geometry;
  NewTables tables;
  auto step = co_await place_table(std::move(left), tables);
  PLATTER_CO_TRY(step);
  const std::uint64_t old_offset = core.header.snapshots_offset;
  const std::uint64_t old_bytes = bytes_;
  // What would be wrong with the counts is found before anything is changed.
  RefcountMap references(0);
  for (const Snapshot& snapshot : gone) {
    step = co_await count_gone(snapshot, references);
    PLATTER_CO_TRY(step);
  }
  step = count_clusters(core, driver_.refcounts_, references, g.cluster_index(old_offset),
                        g.clusters_for(old_bytes));
  PLATTER_CO_TRY(step);
  step = co_await driver_.clusters_.may_lower(references);
  PLATTER_CO_TRY(step);

  if (!gone.empty()) step = co_await driver_.begin_changing_counts();
  if (step) step = co_await write_table(tables);
  if (step) step = co_await driver_.write_back_.commit(WriteBack::Flush::kIfNeeded);
  if (step) step = co_await switch_table(tables);
  if (!step) {
    auto settled = co_await give_up(tables);
    static_cast<void>(settled);
    co_return step;
  }
  take_over(tables);
  {
    MutexLock lock(core.mutex());
    core.metadata.remove(old_offset, old_bytes);
    for (const Snapshot& snapshot : gone)
      core.metadata.remove(snapshot.l1_table_offset, l1_bytes(snapshot));
  }
  // Nothing on disk names what is gone any more.
  step = co_await driver_.clusters_.lower(references, Discard::kSnapshot);
  // (An old table alone says nothing about what is the disk's alone.)
  if (!gone.empty()) {
    auto regained = co_await regain(references);
    if (step) step = std::move(regained);
    if (!step) driver_.needs_repair_ = true;
  }
  co_return step;
}

// Renaming ---------------------------------------------------------------------------------------

Task<Result<void>> Snapshots::rename(std::string id_or_name, std::string new_name) {
  if (driver_.core_.data_file) co_return no_data_file();
  if (new_name.empty()) co_return fail(EINVAL, "the new name is empty");
  const Result<void> named_well = name_fits(new_name);
  PLATTER_CO_TRY(named_well);
  const auto work = [this, &id_or_name, &new_name] { return rename_now(id_or_name, new_name); };
  const std::function<Task<Result<void>>()> named(work);
  auto done = co_await driver_.alongside(named);
  co_return done;
}

Task<Result<void>> Snapshots::rename_now(std::string id_or_name, std::string new_name) {
  const Result<std::size_t> which = find(id_or_name);
  PLATTER_CO_TRY(which);
  std::vector<Snapshot> left;
  std::vector<Snapshot> gone;
  for (std::size_t i = 0; i < snapshots_.size(); ++i) {
    const bool replaced = i != *which && snapshots_[i].name == new_name;
    (replaced ? gone : left).push_back(snapshots_[i]);
    if (i == *which) left.back().name = new_name;
  }
  if (gone.empty() && snapshots_[*which].name == new_name) co_return {};
  auto done = co_await replace_table(std::move(left), std::move(gone));
  co_return done;
}

// Applying ---------------------------------------------------------------------------------------

Task<Result<void>> Snapshots::apply(std::string id_or_name) {
  if (driver_.core_.data_file) co_return no_data_file();
  const auto work = [this, &id_or_name] { return apply_now(id_or_name); };
  const std::function<Task<Result<void>>()> named(work);
  auto done = co_await driver_.exclusively(named, true);
  co_return done;
}

// The disk shows what the snapshot has, and so nothing of it is the disk's alone: no flag says so,
// and counts are too high at worst.
Task<Result<void>> Snapshots::apply_now(std::string id_or_name) {
  // The disk would change without its bitmaps showing it.
  if (!driver_.bitmaps_.empty()) co_return fail(EBUSY, "Device has active dirty bitmaps");
  Core& core = driver_.core_;
  const Geometry& g = core.geometry;
  const Result<std::size_t> which = find(id_or_name);
  PLATTER_CO_TRY(which);
  const Snapshot& snapshot = snapshots_[*which];
  const Result<void> valid = validate_snapshot_l1(snapshot, core.header, core.file->size());
  PLATTER_CO_TRY(valid);
  const Result<std::uint64_t> size = validate_disk_size(snapshot, core.header);
  PLATTER_CO_TRY(size);
  auto l1 = co_await driver_.tables_.read_l1(snapshot.l1_table_offset, snapshot.l1_size);
  PLATTER_CO_TRY(l1);
  std::vector<std::uint64_t> old(driver_.tables_.l1_size());
  for (std::size_t i = 0; i < old.size(); ++i) old[i] = driver_.tables_.l1(i);
  std::vector<std::uint64_t> shown = *l1;
  for (std::uint64_t& entry : shown) entry = l1_entry(l1_offset(entry), false);
  shown.resize(std::max<std::uint64_t>({shown.size(), old.size(), g.l1_entries_for(*size)}), 0);
  RefcountMap more(0);
  RefcountMap less(0);
  auto step = co_await count_references(core, driver_.refcounts_, shown, more);
  if (step) step = co_await count_references(core, driver_.refcounts_, old, less);
  if (step) {
    step =
        count_clusters(core, driver_.refcounts_, less, g.cluster_index(core.header.l1_table_offset),
                       g.clusters_for(core.header.l1_table_bytes()));
  }
  PLATTER_CO_TRY(step);
  NewTables tables;
  step = co_await place_l1(shown.size(), tables);
  if (step) step = co_await driver_.clusters_.may_lower(less);
  if (step) step = co_await clear_copied_in_file(core, shown);
  if (step) step = co_await driver_.clusters_.raise(more);
  PLATTER_CO_TRY(step);
  step = co_await write_l1(tables.l1_offset, shown);
  if (step) step = co_await driver_.write_back_.commit(WriteBack::Flush::kOwn);
  const std::function<void(Header&)> change = [&](Header& header) {
    header.l1_table_offset = tables.l1_offset;
    header.l1_size = static_cast<std::uint32_t>(shown.size());
    header.size = *size;
  };
  if (step) step = co_await switch_header(change);
  if (!step) {
    auto settled = co_await give_up(tables);
    if (settled) settled = co_await driver_.clusters_.lower(more, Discard::kNever);
    co_return step;
  }
  if (tables.l1_place) {
    MutexLock lock(core.mutex());
    tables.l1_place.link();
  }
  step = co_await driver_.clusters_.lower(less, Discard::kSnapshot);
  if (step) step = co_await driver_.write_back_.commit(WriteBack::Flush::kOwn);
  PLATTER_CO_TRY(step);
  // A refcount table that has grown has left its old place: who loads all again forgets that.
  auto turned_away = core.in_flight.wait();
  co_await turned_away;
  auto freeing = driver_.clusters_.reap_alone();
  co_await freeing;
  step = co_await driver_.write_back_.commit(WriteBack::Flush::kIfNeeded);
  co_return step;
}

}  // namespace platter::qcow2
