#include "formats/qcow2/storage_io.h"

#include <fmt/format.h>

#include <algorithm>

#include "block/base/bytes.h"

namespace platter::qcow2 {

Task<Result<void>> read_padded(BlockNode& file, std::uint64_t offset, std::span<std::byte> out) {
  const std::uint64_t size = file.size();
  const std::size_t there =
      offset >= size ? 0
                     : static_cast<std::size_t>(std::min<std::uint64_t>(out.size(), size - offset));
  if (there != 0) {
    const IoVec iov(out.first(there));
    auto read = co_await file.read(offset, iov);
    PLATTER_CO_TRY(read);
  }
  std::fill(out.begin() + static_cast<std::ptrdiff_t>(there), out.end(), std::byte{0});
  co_return Result<void>{};
}

Task<Result<Header>> read_header(BlockNode& file, TableBounds bounds) {
  constexpr std::uint64_t kUsual = 65536;
  const std::uint64_t size = file.size();
  Buffer head(std::min(size, kUsual));
  if (head.size() != 0) {
    const IoVec iov = head.iov();
    auto read = co_await file.read(0, iov);
    if (!read) co_return forward_error(read, "could not read the qcow2 header");
  }
  auto cluster_size = probe_cluster_size(head.span());
  PLATTER_CO_TRY(cluster_size);
  if (const std::uint64_t wanted = std::min(size, *cluster_size); wanted > head.size()) {
    head = Buffer(wanted);
    const IoVec iov = head.iov();
    auto read = co_await file.read(0, iov);
    if (!read) co_return forward_error(read, "could not read the qcow2 header");
  }
  // (Above kMaxHostOffset nothing can lie in any file.)
  co_return parse_header(head.span(), bounds == TableBounds::kInFile ? size : kMaxHostOffset);
}

Task<Result<std::vector<std::uint64_t>>> read_table(BlockNode& file, std::string_view name,
                                                    std::uint64_t offset, std::uint64_t entries) {
  std::vector<std::uint64_t> table(entries);
  const std::span<std::byte> bytes = std::as_writable_bytes(std::span(table));
  auto read = co_await read_padded(file, offset, bytes);
  if (!read) co_return forward_error(read, "could not read the {} at {:#x}", name, offset);
  for (std::uint64_t& entry : table) entry = load_be<std::uint64_t>(&entry);
  co_return table;
}

Task<Result<SnapshotTable>> read_snapshot_table(BlockNode& file, const Header& header,
                                                bool keep_unknown, TableBounds bounds) {
  constexpr std::size_t kWindow = std::size_t{1} << 20;
  static_assert(kWindow > kMaxSnapshotEntryBytes);
  SnapshotTable table;
  SnapshotTableParser parser(header.nb_snapshots, header.version, keep_unknown);
  Buffer window;
  while (!parser.done()) {
    const std::uint64_t offset = header.snapshots_offset + parser.table_bytes();
    const std::uint64_t size = file.size();
    const std::uint64_t left = bounds == TableBounds::kAnywhere ? kWindow + 1
                               : offset < size                  ? size - offset
                                                                : 0;
    const bool last = left <= kWindow;
    if (window.size() == 0) window = Buffer(kWindow);
    const std::span<std::byte> bytes = window.span().first(std::min<std::uint64_t>(left, kWindow));
    auto read = co_await read_padded(file, offset, bytes);
    if (!read) co_return forward_error(read, "could not read the snapshot table at {:#x}", offset);
    auto used = parser.feed(bytes, last);
    PLATTER_CO_TRY(used);
  }
  table.bytes = parser.table_bytes();
  table.snapshots = parser.take();
  co_return table;
}

Task<Result<std::vector<BitmapEntry>>> read_bitmap_directory(BlockNode& file,
                                                             const Header& header) {
  const BitmapsExtension& extension = *header.extensions.bitmaps;
  if (extension.directory_size > file.size()) {
    co_return fail(EINVAL, "bitmaps_ext: bitmap directory size {} exceeds the file's {} bytes",
                   extension.directory_size, file.size());
  }
  if (extension.directory_offset > file.size() - extension.directory_size) {
    co_return fail(
        EINVAL,
        "bitmaps_ext: bitmap directory offset {:#x}: {} bytes from there on are exceeding "
        "the end of the file",
        extension.directory_offset, extension.directory_size);
  }
  Buffer bytes(extension.directory_size);
  const std::span<std::byte> span = bytes.span();
  auto read = co_await read_padded(file, extension.directory_offset, span);
  if (!read) {
    co_return forward_error(read, "could not read the bitmap directory at {:#x}",
                            extension.directory_offset);
  }
  co_return parse_bitmap_directory(span, extension, header);
}

Task<void> BulkWriter::settle(Slot& slot) {
  if (!slot.busy) co_return;
  auto written = co_await slot.task;
  slot.busy = false;
  if (!written && result_) result_ = std::move(written);
}

Task<std::span<std::byte>> BulkWriter::buffer() {
  Slot& slot = slots_[next_];
  co_await settle(slot);
  if (slot.buffer.size() == 0) slot.buffer = Buffer(kPiece);
  co_return slot.buffer.span();
}

void BulkWriter::write(std::uint64_t offset, std::size_t length) {
  Slot& slot = slots_[next_];
  slot.task = file_.write(offset, IoVec(slot.buffer.span(0, length)));
  slot.busy = true;
  next_ = (next_ + 1) % kInFlight;
}

Task<Result<void>> BulkWriter::finish() {
  for (Slot& slot : slots_) co_await settle(slot);
  co_return result_;
}

}  // namespace platter::qcow2
