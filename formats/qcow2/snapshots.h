// Snapshots: the internal snapshots of an open image.
//
// A snapshot is a copy of the L1 table; the L2 tables and clusters it names get one more reference,
// and the active disk's flags that say "mine alone" are taken away. Requests are held back while
// that happens: those in flight have ended first.
//
// The order on disk: counts up, then the new tables, then the header; for what goes away, the header
// first and counts down last. A power cut leaves leaks at most.
//
// Threads: one operation at a time (the driver's operations mutex).
#pragma once

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
  Task<Result<void>> create(std::string name, std::uint64_t date_seconds, std::uint32_t date_nanoseconds) override;
  Task<Result<void>> apply(std::string id_or_name) override;
  Task<Result<void>> remove(std::string id_or_name) override;
  Task<Result<void>> load(std::string id_or_name) override;

  const std::vector<Snapshot>& table() const { return snapshots_; }
  std::uint64_t table_bytes() const { return bytes_; }

 private:
  Result<std::size_t> find(const std::string& id_or_name) const;

  Qcow2Driver& driver_;
  std::vector<Snapshot> snapshots_;  // changed with requests held back
  std::uint64_t bytes_ = 0;          // of the table in the file
};

}  // namespace platter::qcow2
