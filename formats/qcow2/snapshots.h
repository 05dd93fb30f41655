// Snapshots: the internal snapshots of an open image.
//
// A snapshot is a copy of the L1 table; the L2 tables and clusters it names get one more reference,
// and the disk's flags that say "mine alone" are taken away.
//
// Taking one holds requests back only while the L1 table in memory is frozen: its flags go, and so
// all of the disk is shared (l2_tables.h). From then on every write makes itself new tables and
// clusters, so that what the snapshot shows changes neither in memory nor on disk, and its
// references are counted while requests run. Nothing loses a count meanwhile: what the disk gives
// up may be what the snapshot will be the last to have. Removing one never holds requests back.
//
// The order on disk: flags go, counts up, then the new tables, then the header; for what goes away,
// the header first, counts down, and the flags of what is the disk's alone again last. A power cut
// leaves leaks at most, and flags that are missing, which version 3 repairs when next opened.
//
// Threads: one operation at a time (the driver's operations mutex).
#pragma once

#include <functional>
#include <span>
#include <string>
#include <vector>

#include "block/node/abilities.h"
#include "formats/qcow2/core.h"
#include "formats/qcow2/refcount_map.h"
#include "formats/qcow2/snapshot_table.h"

namespace platter::qcow2 {

class Qcow2Driver;

class Snapshots final : public SnapshotAbility {
 public:
  explicit Snapshots(Qcow2Driver& driver) : driver_(driver) {}

  // `keep_unknown`: also what we do not know of the entries, as who writes the table needs it.
  Task<Result<void>> open(TableBounds bounds, bool keep_unknown);

  std::vector<SnapshotInfo> list() const override;
  Task<Result<void>> create(std::string name, std::uint64_t date_seconds,
                            std::uint32_t date_nanoseconds) override;
  Task<Result<void>> apply(std::string id_or_name) override;
  Task<Result<void>> remove(std::string id_or_name) override;
  Task<Result<void>> rename(std::string id_or_name, std::string new_name) override;
  Task<Result<void>> load(std::string id_or_name) override;

  const std::vector<Snapshot>& table() const { return snapshots_; }
  std::uint64_t table_bytes() const { return bytes_; }
  // Whether load() has made the disk show a snapshot: its tables are not the active ones then.
  bool shows_one() const { return shows_one_; }

 private:
  Result<std::size_t> find(const std::string& id_or_name) const;
  // snapshot_ops.cpp. Requests run, but for apply_now().
  Task<Result<void>> create_now(Snapshot snapshot);
  Task<Result<void>> remove_now(std::string id_or_name);
  Task<Result<void>> rename_now(std::string id_or_name, std::string new_name);
  // What has the table's place: `left`, without those that are `gone`, whose references go back.
  Task<Result<void>> replace_table(std::vector<Snapshot> left, std::vector<Snapshot> gone);
  // The references of a snapshot that goes: those of its tables, and to its L1 table.
  Task<Result<void>> count_gone(const Snapshot& snapshot, RefcountMap& references);
  Task<Result<void>> apply_now(std::string id_or_name);
  // Tables at new places, which the header is then made to name.
  struct NewTables;
  Task<Result<void>> place_l1(std::size_t entries, NewTables& tables);
  Task<Result<void>> place_table(std::vector<Snapshot> snapshots, NewTables& tables);
  Task<Result<void>> write_table(const NewTables& tables);
  Task<Result<void>> write_l1(std::uint64_t offset, std::span<const std::uint64_t> entries);
  // `change` makes the header what it shall be, with snapshots or an L1 table at a new place.
  Task<Result<void>> switch_header(const std::function<void(Header&)>& change);
  Task<Result<void>> switch_table(const NewTables& tables);
  void take_over(NewTables& tables);
  // The header could not be switched, or nobody has tried.
  Task<Result<void>> give_up(NewTables& tables);
  // The disk as it was at one moment, on the way to become a snapshot.
  struct Frozen;
  Task<void> freeze(Frozen& frozen);
  Task<Result<void>> publish(Frozen& frozen, NewTables& tables);
  // What has not become a snapshot is the disk's alone again.
  Task<Result<void>> unfreeze(Frozen& frozen, NewTables& tables);
  // Makes the flags of the disk's tables agree with the counts of what `references` names.
  Task<Result<void>> regain(RefcountMap& references);
  std::string free_id() const;

  Qcow2Driver& driver_;
  std::vector<Snapshot> snapshots_;  // changed under the operations mutex
  std::uint64_t bytes_ = 0;          // of the table in the file
  bool shows_one_ = false;           // under the operations mutex
};

}  // namespace platter::qcow2
