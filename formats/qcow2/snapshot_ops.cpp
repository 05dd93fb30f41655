// Taking, applying and removing internal snapshots. Each runs inside Qcow2Driver::exclusively():
// requests are held back, the file is as memory has it, and tables are loaded anew afterwards.
#include <algorithm>
#include <charconv>

#include "formats/qcow2/bulk_refcounts.h"
#include "formats/qcow2/driver.h"
#include "formats/qcow2/snapshots.h"

namespace platter::qcow2 {

struct Snapshots::NewTables {
  Reservation table_place;  // of the snapshot table
  std::vector<std::byte> table;
  std::uint64_t table_offset = 0;  // 0: no snapshots
  Reservation l1_place;
  std::uint64_t l1_place_offset = 0;
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

Task<void> punch(BlockNode& file, unsigned cluster_bits, std::vector<BulkRefcounts::Run> runs) {
  std::sort(runs.begin(), runs.end(),
            [](const auto& a, const auto& b) { return a.first < b.first; });
  for (std::size_t i = 0; i < runs.size();) {
    std::uint64_t end = runs[i].first + runs[i].count;
    const std::uint64_t first = runs[i++].first;
    while (i < runs.size() && runs[i].first == end) end += runs[i++].count;
    // Whoever uses the clusters next writes all of each, so that a failure costs space only.
    const std::uint64_t stop = std::min(end << cluster_bits, file.size());
    if (first << cluster_bits >= stop) break;
    auto discarded = co_await file.discard(first << cluster_bits, stop - (first << cluster_bits));
    static_cast<void>(discarded);
  }
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

Task<Result<void>> Snapshots::place_table(const std::vector<Snapshot>& snapshots,
                                          NewTables& tables) {
  tables.table_offset = 0;
  if (snapshots.empty()) co_return {};
  auto bytes = encode_snapshot_table(snapshots);
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

Task<Result<void>> Snapshots::switch_header(Header header) {
  Core& core = driver_.core_;
  auto settled = co_await core.file->flush();
  PLATTER_CO_TRY(settled);
  auto guard = co_await core.header_mutex.lock();
  const Header before = core.header;
  header.incompatible_features = before.incompatible_features;
  core.header = std::move(header);
  auto written = co_await core.publish_header();
  if (!written) core.header = before;
  co_return written;
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
  const auto work = [this, &snapshot] { return create_now(snapshot); };
  const std::function<Task<Result<void>>()> named(work);
  auto done = co_await driver_.exclusively(named, true);
  co_return done;
}

Task<Result<void>> Snapshots::create_now(Snapshot snapshot) {
  Core& core = driver_.core_;
  const Geometry& g = core.geometry;
  NewTables tables;
  std::vector<std::uint64_t> l1(driver_.tables_.l1_size());
  for (std::size_t i = 0; i < l1.size(); ++i) l1[i] = driver_.tables_.l1(i);
  if (!l1.empty()) {
    auto place = co_await driver_.clusters_.reserve_exactly(g.clusters_for(l1.size() * 8));
    PLATTER_CO_TRY(place);
    tables.l1_place = std::move(*place);
    tables.l1_place_offset = tables.l1_place.host();
  }
  snapshot.id = free_id();
  snapshot.disk_size = driver_.size();
  snapshot.l1_table_offset = tables.l1_place_offset;
  snapshot.l1_size = static_cast<std::uint32_t>(l1.size());
  std::vector<Snapshot> all = snapshots_;
  all.push_back(snapshot);
  auto placed = co_await place_table(all, tables);
  PLATTER_CO_TRY(placed);
  auto counted = co_await driver_.write_back_.commit(true);
  PLATTER_CO_TRY(counted);

  // Nothing on disk but the new tables' space has changed so far.
  BulkRefcounts counts(core, driver_.refcounts_);
  auto raised = co_await counts.count(l1, +1);
  PLATTER_CO_TRY(raised);
  const Snapshots::OldTable old = old_table();
  auto began = co_await driver_.begin_changing_counts();
  PLATTER_CO_TRY(began);
  auto written = co_await counts.write();
  if (written) written = co_await core.file->flush();
  if (written) written = co_await counts.mark_copied(l1);
  if (written) written = co_await write_l1(tables.l1_place_offset, l1);
  if (written) written = co_await write_l1(driver_.tables_.l1_table_offset(), l1);
  if (written) written = co_await write_table(tables);
  PLATTER_CO_TRY(written);
  Header header = core.header;
  header.nb_snapshots = static_cast<std::uint32_t>(all.size());
  header.snapshots_offset = tables.table_offset;
  auto switched = co_await switch_header(std::move(header));
  PLATTER_CO_TRY(switched);
  {
    std::lock_guard lock(core.mutex);
    if (tables.l1_place) tables.l1_place.link();
    tables.table_place.link();
  }
  auto lowered = co_await counts.change(old.first, old.clusters, -1);
  if (lowered) lowered = co_await counts.write();
  if (lowered) lowered = co_await core.file->flush();
  co_return lowered;
}

Snapshots::OldTable Snapshots::old_table() const {
  const Geometry& g = driver_.core_.geometry;
  return {g.cluster_index(driver_.core_.header.snapshots_offset), g.clusters_for(bytes_)};
}

// Removing ---------------------------------------------------------------------------------------

Task<Result<void>> Snapshots::remove(std::string id_or_name) {
  if (driver_.core_.data_file) co_return no_data_file();
  const Result<std::size_t> which = find(id_or_name);
  PLATTER_CO_TRY(which);
  const std::size_t index = *which;
  const auto work = [this, index] { return remove_now(index); };
  const std::function<Task<Result<void>>()> named(work);
  auto done = co_await driver_.exclusively(named, true);
  co_return done;
}

Task<Result<void>> Snapshots::remove_now(std::size_t which) {
  Core& core = driver_.core_;
  const Geometry& g = core.geometry;
  const Snapshot snapshot = snapshots_[which];
  const Result<void> valid = validate_snapshot_l1(snapshot, core.header, core.file->size());
  PLATTER_CO_TRY(valid);
  auto gone = co_await driver_.tables_.read_l1(snapshot.l1_table_offset, snapshot.l1_size);
  PLATTER_CO_TRY(gone);
  std::vector<std::uint64_t> l1(driver_.tables_.l1_size());
  for (std::size_t i = 0; i < l1.size(); ++i) l1[i] = driver_.tables_.l1(i);
  std::vector<Snapshot> rest = snapshots_;
  rest.erase(rest.begin() + static_cast<std::ptrdiff_t>(which));
  const OldTable old = old_table();
  NewTables tables;
  auto placed = co_await place_table(rest, tables);
  PLATTER_CO_TRY(placed);
  auto counted = co_await driver_.write_back_.commit(true);
  PLATTER_CO_TRY(counted);

  // What would be wrong with the counts is found before anything is changed.
  BulkRefcounts counts(core, driver_.refcounts_);
  auto lowered = co_await counts.count(*gone, -1);
  PLATTER_CO_TRY(lowered);
  lowered = co_await counts.change(g.cluster_index(snapshot.l1_table_offset),
                                   g.clusters_for(std::uint64_t{snapshot.l1_size} * 8), -1);
  PLATTER_CO_TRY(lowered);
  lowered = co_await counts.change(old.first, old.clusters, -1);
  PLATTER_CO_TRY(lowered);

  auto written = co_await driver_.begin_changing_counts();
  if (written) written = co_await write_table(tables);
  PLATTER_CO_TRY(written);
  Header header = core.header;
  header.nb_snapshots = static_cast<std::uint32_t>(rest.size());
  header.snapshots_offset = tables.table_offset;
  auto switched = co_await switch_header(std::move(header));
  PLATTER_CO_TRY(switched);
  {
    std::lock_guard lock(core.mutex);
    if (tables.table_place) tables.table_place.link();
  }
  written = co_await counts.mark_copied(l1);
  if (written) written = co_await write_l1(driver_.tables_.l1_table_offset(), l1);
  if (written) written = co_await core.file->flush();
  if (written) written = co_await counts.write();
  if (written) written = co_await core.file->flush();
  PLATTER_CO_TRY(written);
  if (core.discard_passes[static_cast<std::size_t>(Discard::kSnapshot)]) {
    auto punching = punch(*core.file, g.cluster_bits, counts.take_freed());
    co_await punching;
  }
  co_return {};
}

// Applying ---------------------------------------------------------------------------------------

Task<Result<void>> Snapshots::apply(std::string id_or_name) {
  // The disk would change without its bitmaps showing it.
  if (!driver_.bitmaps_.empty()) co_return fail(EBUSY, "Device has active dirty bitmaps");
  if (driver_.core_.data_file) co_return no_data_file();
  const Result<std::size_t> which = find(id_or_name);
  PLATTER_CO_TRY(which);
  const std::size_t index = *which;
  const auto work = [this, index] { return apply_now(index); };
  const std::function<Task<Result<void>>()> named(work);
  auto done = co_await driver_.exclusively(named, true);
  co_return done;
}

Task<Result<void>> Snapshots::apply_now(std::size_t which) {
  Core& core = driver_.core_;
  const Geometry& g = core.geometry;
  const Snapshot& snapshot = snapshots_[which];
  const Result<void> valid = validate_snapshot_l1(snapshot, core.header, core.file->size());
  PLATTER_CO_TRY(valid);
  auto l1 = co_await driver_.tables_.read_l1(snapshot.l1_table_offset, snapshot.l1_size);
  PLATTER_CO_TRY(l1);
  std::vector<std::uint64_t> old(driver_.tables_.l1_size());
  for (std::size_t i = 0; i < old.size(); ++i) old[i] = driver_.tables_.l1(i);
  const std::uint64_t size = snapshot.disk_size.value_or(core.header.size);
  std::vector<std::uint64_t> shown = *l1;
  shown.resize(std::max<std::uint64_t>({shown.size(), old.size(), g.l1_entries_for(size)}), 0);
  if (shown.size() * 8 > kMaxL1Bytes) co_return fail(EFBIG, "the L1 table would be too large");
  NewTables tables;
  if (!shown.empty()) {
    auto place = co_await driver_.clusters_.reserve_exactly(g.clusters_for(shown.size() * 8));
    PLATTER_CO_TRY(place);
    tables.l1_place = std::move(*place);
    tables.l1_place_offset = tables.l1_place.host();
  }
  auto counted = co_await driver_.write_back_.commit(true);
  PLATTER_CO_TRY(counted);

  BulkRefcounts counts(core, driver_.refcounts_);
  auto raised = co_await counts.count(*l1, +1);
  PLATTER_CO_TRY(raised);
  auto written = co_await driver_.begin_changing_counts();
  if (written) written = co_await counts.write();
  if (written) written = co_await core.file->flush();
  // Not written before the old tables are out of use.
  if (written) written = co_await counts.count(old, -1);
  if (written) {
    written = co_await counts.change(g.cluster_index(core.header.l1_table_offset),
                                     g.clusters_for(std::uint64_t{core.header.l1_size} * 8), -1);
  }
  if (written) written = co_await counts.mark_copied(shown);
  if (written) written = co_await write_l1(tables.l1_place_offset, shown);
  PLATTER_CO_TRY(written);
  Header header = core.header;
  header.l1_table_offset = tables.l1_place_offset;
  header.l1_size = static_cast<std::uint32_t>(shown.size());
  header.size = size;
  auto switched = co_await switch_header(std::move(header));
  PLATTER_CO_TRY(switched);
  if (tables.l1_place) {
    std::lock_guard lock(core.mutex);
    tables.l1_place.link();
  }
  written = co_await counts.write();
  if (written) written = co_await core.file->flush();
  PLATTER_CO_TRY(written);
  if (core.discard_passes[static_cast<std::size_t>(Discard::kSnapshot)]) {
    auto punching = punch(*core.file, g.cluster_bits, counts.take_freed());
    co_await punching;
  }
  co_return {};
}

}  // namespace platter::qcow2
