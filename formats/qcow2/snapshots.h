// Snapshots: the internal snapshots of an open image.
//
// A snapshot is a copy of the L1 table; the L2 tables and clusters it names get one more reference,
// and the active disk's flags that say "mine alone" are taken away. Requests are held back while
// that happens: those in flight have ended first.
//
// The order on disk: counts up, then the new tables, then the header; for what goes away, the
// header first and counts down last. A power cut leaves leaks at most.
//
// Threads: one operation at a time (the driver's operations mutex).
#pragma once

#include <span>
#include <string>
#include <vector>

#include "block/node/abilities.h"
#include "formats/qcow2/core.h"
#include "formats/qcow2/snapshot_table.h"

namespace platter::qcow2 {

class Qcow2Driver;

class Snapshots final : public SnapshotAbility {
 public:
  explicit Snapshots(Qcow2Driver& driver) : driver_(driver) {}

  Task<Result<void>> open();

  std::vector<SnapshotInfo> list() const override;
  Task<Result<void>> create(std::string name, std::uint64_t date_seconds,
                            std::uint32_t date_nanoseconds) override;
  Task<Result<void>> apply(std::string id_or_name) override;
  Task<Result<void>> remove(std::string id_or_name) override;
  Task<Result<void>> load(std::string id_or_name) override;

  const std::vector<Snapshot>& table() const { return snapshots_; }
  std::uint64_t table_bytes() const { return bytes_; }

 private:
  Result<std::size_t> find(const std::string& id_or_name) const;
  // snapshot_ops.cpp; each with requests held back and everything written back.
  Task<Result<void>> create_now(Snapshot snapshot);
  Task<Result<void>> apply_now(std::size_t which);
  Task<Result<void>> remove_now(std::size_t which);
  // Writes tables for `snapshots` and an L1 at new places and makes the header name them.
  struct NewTables;
  Task<Result<void>> place_table(const std::vector<Snapshot>& snapshots, NewTables& tables);
  Task<Result<void>> write_table(const NewTables& tables);
  Task<Result<void>> switch_header(Header header);
  Task<Result<void>> write_l1(std::uint64_t offset, std::span<const std::uint64_t> entries);
  std::string free_id() const;
  struct OldTable {
    std::uint64_t first = 0;  // cluster
    std::uint64_t clusters = 0;
  };
  OldTable old_table() const;

  Qcow2Driver& driver_;
  std::vector<Snapshot> snapshots_;  // changed with requests held back
  std::uint64_t bytes_ = 0;          // of the table in the file
};

}  // namespace platter::qcow2
