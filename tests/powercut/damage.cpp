#include "powercut/damage.h"

#include <algorithm>
#include <optional>

#include "block/base/bytes.h"
#include "block/base/checked.h"
#include "formats/qcow2/layout.h"
#include "formats/qcow2/snapshot_table.h"

namespace platter::powercut {
namespace {

class Image {
 public:
  explicit Image(MemoryDisk& disk) : disk_(disk) {
    const auto parsed = qcow2::parse_header(bytes(0, 1 << 16), disk.size());
    if (parsed) header = *parsed;
  }

  std::optional<qcow2::Header> header;

  std::vector<std::byte> bytes(std::uint64_t offset, std::uint64_t length) const {
    std::vector<std::byte> read(length);
    disk_.read(offset, IoVec(std::span(read)));
    return read;
  }
  template <class T>
  T load(std::uint64_t offset) const {
    return load_be<T>(bytes(offset, sizeof(T)).data());
  }
  template <class T>
  void store(std::uint64_t offset, T value) {
    std::byte stored[sizeof(T)];
    store_be(stored, value);
    disk_.write(offset, IoVec(std::span(stored)));
  }
  void store_bytes(std::uint64_t offset, std::vector<std::byte> stored) {
    disk_.write(offset, IoVec(std::span(stored)));
  }
  // Where the disk has its cluster at `offset`; 0: nowhere.
  std::uint64_t host(std::uint64_t offset) const {
    const qcow2::Geometry g = header->geometry();
    const std::uint64_t table =
        qcow2::l1_offset(load<std::uint64_t>(header->l1_table_offset + g.l1_index(offset) * 8));
    if (table == 0) return 0;
    const std::uint64_t index = offset % g.l2_coverage() / g.cluster_size();
    return load<std::uint64_t>(table + index * g.l2_entry_size()) & qcow2::kOffsetMask;
  }

 private:
  MemoryDisk& disk_;
};

void damage_counts(MemoryDisk& disk, bool table_too) {
  Image image(disk);
  if (!image.header) return;
  const std::uint64_t entry = image.header->refcount_table_offset;
  const auto block = image.load<std::uint64_t>(entry);
  const std::uint64_t cluster = image.header->cluster_size();
  const std::uint64_t last = disk.size() / cluster - 1;
  image.store(block + 2 * last, std::uint16_t{0});
  image.store(block + 2 * (last + 2), std::uint16_t{3});
  if (table_too) image.store(entry, disk.size() * 4 / cluster * cluster);
}

}  // namespace

void wrong_counts(MemoryDisk& disk, const Shape&, History&) { damage_counts(disk, false); }
void lost_counts(MemoryDisk& disk, const Shape&, History&) { damage_counts(disk, true); }

void overlapped_table(MemoryDisk& disk, const Shape&, History&) {
  Image image(disk);
  if (!image.header) return;
  const qcow2::Geometry g = image.header->geometry();
  const std::uint64_t last = g.l1_index(image.header->size - 1);
  const std::uint64_t behind = (last + 1) * g.l2_coverage() - image.header->size;
  const std::uint64_t table =
      qcow2::l1_offset(image.load<std::uint64_t>(image.header->l1_table_offset + last * 8));
  if (table == 0 || behind < 2 * g.cluster_size()) return;
  const std::uint64_t end = table + g.cluster_size();
  for (unsigned i = 1; i <= 2; ++i) {
    const std::uint64_t host = i == 1 ? table : std::uint64_t{1} << 50;
    image.store(end - i * g.l2_entry_size(), qcow2::data_entry(host, true));
    if (g.extended_l2) image.store(end - i * g.l2_entry_size() + 8, std::uint64_t{1});
  }
}

void table_in_data(MemoryDisk& disk, const Shape& shape, History& history) {
  Image image(disk);
  if (!image.header || image.header->nb_snapshots == 0) return;
  const std::uint64_t shared = 20 * shape.cluster;
  const std::uint64_t place = image.host(shared);
  if (place == 0) return;
  image.store_bytes(place, image.bytes(image.header->snapshots_offset, kSector));
  constexpr std::uint64_t kSnapshotsOffset = 64;  // in the header
  image.store(kSnapshotsOffset, place);
  history.spoil(shared / kSector);
}

void old_snapshots(MemoryDisk& disk, const Shape&, History&) {
  Image image(disk);
  if (!image.header) return;
  constexpr std::uint64_t kFixed = qcow2::kSnapshotEntryFixedSize;
  std::uint64_t from = image.header->snapshots_offset;
  std::uint64_t to = from;
  for (std::uint32_t i = 0; i < image.header->nb_snapshots; ++i) {
    const std::uint64_t text =
        image.load<std::uint16_t>(from + 12) + image.load<std::uint16_t>(from + 14);
    const auto extra = image.load<std::uint32_t>(from + 36);
    const std::vector<std::byte> fixed = image.bytes(from, kFixed);
    std::vector<std::byte> id_and_name = image.bytes(from + kFixed + extra, text);
    from += align_up(kFixed + extra + text, std::uint64_t{8});
    id_and_name.resize(align_up(kFixed + text, std::uint64_t{8}) - kFixed);
    image.store_bytes(to, fixed);
    image.store(to + 36, std::uint32_t{0});
    image.store_bytes(to + kFixed, std::move(id_and_name));
    to += align_up(kFixed + text, std::uint64_t{8});
  }
}

}  // namespace platter::powercut
