// The snapshot table of a qcow2 image: entries of variable length to values and back (qcow2
// specification, "Snapshots").
//
// Threads: pure functions over values; a SnapshotTableParser belongs to one caller.
// Errors: one line that names the entry, the field, its value and the limit.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "block/base/error.h"
#include "formats/qcow2/layout.h"

namespace platter::qcow2 {

inline constexpr std::uint64_t kMaxSnapshotTableBytes = std::uint64_t{1024} * kMaxSnapshots;
inline constexpr std::uint32_t kMaxSnapshotExtraBytes = 1024;
inline constexpr std::size_t kSnapshotEntryFixedSize = 40;
// The longest entry: fixed part, extra data, id and name, padding.
inline constexpr std::size_t kMaxSnapshotEntryBytes =
    kSnapshotEntryFixedSize + kMaxSnapshotExtraBytes + 65535 + 65535 + 7;

struct Snapshot {
  std::uint64_t l1_table_offset = 0;  // as stored: validate_snapshot_l1() before use
  std::uint32_t l1_size = 0;          // entries, as stored
  std::string id;                     // text from the image
  std::string name;                   // text from the image
  std::uint32_t date_seconds = 0;
  std::uint32_t date_nanoseconds = 0;
  std::uint64_t vm_clock_nanoseconds = 0;
  std::uint64_t vm_state_size = 0;  // bytes
  // Bytes, as stored: validate_disk_size() before use. Absent in old entries.
  std::optional<std::uint64_t> disk_size;
  std::optional<std::uint64_t> icount;
  std::vector<std::byte> unknown_extra;  // extra data after what we know, kept
  // Extra data was shorter than version 3 demands; such an entry is rewritten by repair.
  bool incomplete = false;

  bool operator==(const Snapshot&) const = default;
};

// Takes a table in pieces, so that its memory is that of its entries and not of a lie about them.
class SnapshotTableParser {
 public:
  // `keep_unknown`: entries keep the extra data that we do not know, which may be most of a table.
  SnapshotTableParser(std::uint32_t count, std::uint32_t version, bool keep_unknown = true)
      : left_(count), version_(version), keep_unknown_(keep_unknown) {}

  // Parses the whole entries at the start of `bytes`; gives how many bytes they were. `last` says
  // that the table's storage ends with `bytes`: an entry cut off there is an error. Give at least
  // kMaxSnapshotEntryBytes, or all that is left.
  Result<std::size_t> feed(std::span<const std::byte> bytes, bool last);

  bool done() const { return left_ == 0; }
  std::uint64_t table_bytes() const { return total_; }
  std::vector<Snapshot> take() { return std::move(snapshots_); }

 private:
  std::uint32_t left_;
  std::uint32_t version_;
  bool keep_unknown_;
  std::uint64_t total_ = 0;
  std::vector<Snapshot> snapshots_;
};

// The table's bytes; EFBIG above the limits on number and length. Writes the extra data that
// version 3 demands, with icount when a snapshot has one (or had one stored).
Result<std::vector<std::byte>> encode_snapshot_table(const std::vector<Snapshot>& snapshots);

// The place of a snapshot's L1 table, before it is read.
Result<void> validate_snapshot_l1(const Snapshot& snapshot, const Header& header,
                                  std::uint64_t file_size);

// The size that the disk has when the snapshot is shown or applied, before tables are made for it.
Result<std::uint64_t> validate_disk_size(const Snapshot& snapshot, const Header& header);

}  // namespace platter::qcow2
