#include "formats/qcow2/snapshot_table.h"

#include <fmt/format.h>

#include <algorithm>

#include "block/base/bytes.h"
#include "block/base/checked.h"

namespace platter::qcow2 {

namespace {

constexpr std::uint64_t kNoIcount = ~std::uint64_t{0};
// Bytes of extra data that we know: VM state size, disk size, icount.
constexpr std::size_t kKnownExtra = 24;
constexpr std::size_t kRequiredExtra = 16;

void parse_extra(std::span<const std::byte> extra, std::uint32_t version, bool keep_unknown,
                 Snapshot& snapshot) {
  Reader in(extra);
  if (extra.size() >= 8) snapshot.vm_state_size = in.be<std::uint64_t>();
  if (extra.size() >= kRequiredExtra) snapshot.disk_size = in.be<std::uint64_t>();
  if (extra.size() >= kKnownExtra) {
    const auto icount = in.be<std::uint64_t>();
    if (icount != kNoIcount) snapshot.icount = icount;
    const auto rest = extra.subspan(kKnownExtra);
    if (keep_unknown) snapshot.unknown_extra.assign(rest.begin(), rest.end());
  }
  snapshot.incomplete = version >= 3 && extra.size() < kRequiredExtra;
}

}  // namespace

Result<std::size_t> SnapshotTableParser::feed(std::span<const std::byte> bytes, bool last) {
  std::size_t consumed = 0;
  while (left_ != 0) {
    const std::size_t index = snapshots_.size();
    Reader in(bytes.subspan(consumed));
    Snapshot s;
    s.l1_table_offset = in.be<std::uint64_t>();
    s.l1_size = in.be<std::uint32_t>();
    const auto id_size = in.be<std::uint16_t>();
    const auto name_size = in.be<std::uint16_t>();
    s.date_seconds = in.be<std::uint32_t>();
    s.date_nanoseconds = in.be<std::uint32_t>();
    s.vm_clock_nanoseconds = in.be<std::uint64_t>();
    s.vm_state_size = in.be<std::uint32_t>();
    const auto extra_size = in.be<std::uint32_t>();
    if (in.ok() && extra_size > kMaxSnapshotExtraBytes) {
      return fail(EINVAL,
                  "Too much extra metadata in snapshot table entry {}: {} bytes, at most {}", index,
                  extra_size, kMaxSnapshotExtraBytes);
    }
    const auto extra = in.bytes(extra_size);
    s.id = text_of(in.bytes(id_size));
    s.name = text_of(in.bytes(name_size));
    if (!in.ok()) {
      if (!last) return consumed;
      return fail(EINVAL,
                  "Snapshot table entry {} lies beyond the end of the file (of {} entries left)",
                  index, left_);
    }
    parse_extra(extra, version_, keep_unknown_, s);
    // The padding of the last entry need not be there.
    const std::size_t used = align_up(in.position(), 8);
    if (used > bytes.size() - consumed && !last) return consumed;
    if (total_ + used > kMaxSnapshotTableBytes) {
      return fail(EFBIG, "Snapshot table is too large: more than {} bytes at entry {}",
                  kMaxSnapshotTableBytes, index);
    }
    total_ += used;
    consumed = std::min(consumed + used, bytes.size());
    snapshots_.push_back(std::move(s));
    --left_;
  }
  return consumed;
}

Result<std::vector<std::byte>> encode_snapshot_table(const std::vector<Snapshot>& snapshots) {
  if (snapshots.size() > kMaxSnapshots) {
    return fail(EFBIG, "too many snapshots: {}, at most {}", snapshots.size(), kMaxSnapshots);
  }
  std::vector<std::byte> out;
  for (const Snapshot& s : snapshots) {
    if (s.id.size() > 65535 || s.name.size() > 65535) {
      return fail(EINVAL, "the id or name of a snapshot is longer than 65535 bytes");
    }
    const std::size_t extra = kKnownExtra + s.unknown_extra.size();
    const std::size_t length =
        align_up(kSnapshotEntryFixedSize + extra + s.id.size() + s.name.size(), std::size_t{8});
    const std::size_t start = out.size();
    if (start + length > kMaxSnapshotTableBytes) {
      return fail(EFBIG, "Snapshot table is too large: more than {} bytes", kMaxSnapshotTableBytes);
    }
    out.resize(start + length);
    Writer w{std::span(out).subspan(start)};
    w.be(s.l1_table_offset);
    w.be(s.l1_size);
    w.be(static_cast<std::uint16_t>(s.id.size()));
    w.be(static_cast<std::uint16_t>(s.name.size()));
    w.be(s.date_seconds);
    w.be(s.date_nanoseconds);
    w.be(s.vm_clock_nanoseconds);
    // The 32-bit field is only for readers that know no extra data.
    w.be(s.vm_state_size <= 0xffffffff ? static_cast<std::uint32_t>(s.vm_state_size) : 0u);
    w.be(static_cast<std::uint32_t>(extra));
    w.be(s.vm_state_size);
    w.be(s.disk_size.value_or(0));
    w.be(s.icount.value_or(kNoIcount));
    w.bytes(s.unknown_extra);
    w.bytes(std::as_bytes(std::span(s.id)));
    w.bytes(std::as_bytes(std::span(s.name)));
  }
  return out;
}

Result<void> validate_snapshot_l1(const Snapshot& snapshot, const Header& header,
                                  std::uint64_t file_size) {
  return validate_table_in_file(fmt::format("Snapshot L1 table of '{}'", snapshot.id),
                                snapshot.l1_table_offset, snapshot.l1_size, 8, kMaxL1Bytes,
                                header.cluster_size(), file_size);
}

Result<std::uint64_t> validate_disk_size(const Snapshot& snapshot, const Header& header) {
  // (The header's own size is valid, whatever it is.)
  const std::uint64_t size = snapshot.disk_size.value_or(header.size);
  if (size == header.size) return size;
  if (!is_aligned(size, kSector)) {
    return fail(EINVAL, "disk_size of snapshot '{}' invalid: {} is not a multiple of {}",
                snapshot.id, size, kSector);
  }
  const std::uint64_t needed = header.geometry().l1_entries_for(size);
  if (needed > kMaxL1Bytes / 8) {
    return fail(EFBIG, "disk_size of snapshot '{}' too large: {} needs {} L1 entries, at most {}",
                snapshot.id, size, needed, kMaxL1Bytes / 8);
  }
  return size;
}

}  // namespace platter::qcow2
