#include "formats/qcow2/create.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "block/base/bytes.h"
#include "block/base/checked.h"
#include "block/node/graph.h"
#include "block/node/new_file.h"
#include "formats/qcow2/header_io.h"
#include "formats/qcow2/storage_io.h"

namespace platter::qcow2 {

namespace {

// A table of `entries` 64-bit entries: entry k points at first + k clusters.
Task<void> write_pointer_table(BulkWriter& writer, const Geometry& g, std::uint64_t table,
                               std::uint64_t entries, std::uint64_t padded_entries,
                               std::uint64_t first, std::uint64_t flags, unsigned entry_size) {
  const std::uint64_t per_piece = BulkWriter::kPiece / entry_size;
  for (std::uint64_t k = 0; k < padded_entries && !writer.failed(); k += per_piece) {
    const std::uint64_t n = std::min(per_piece, padded_entries - k);
    const std::span<std::byte> bytes = co_await writer.buffer();
    const std::size_t length = n * entry_size;
    const std::uint64_t used = k < entries ? std::min(n, entries - k) : 0;
    if (entry_size != 8 || used != n) std::memset(bytes.data(), 0, length);
    std::uint64_t target = (first + (k << g.cluster_bits)) | flags;
    for (std::uint64_t i = 0; i < used; ++i, target += g.cluster_size()) {
      store_be(bytes.data() + i * entry_size, target);
    }
    writer.write(table + k * entry_size, length);
  }
}

// Refcount blocks in which the first `clusters` clusters have refcount 1.
Task<void> write_refcount_blocks(BulkWriter& writer, const Geometry& g, std::uint64_t offset,
                                 std::uint64_t blocks, std::uint64_t clusters) {
  std::vector<std::byte> ones(g.cluster_size());
  for (std::uint64_t i = 0; i < g.refblock_entries(); ++i) refcount_set(g, ones.data(), i, 1);
  const std::uint64_t per_piece = std::max<std::uint64_t>(BulkWriter::kPiece >> g.cluster_bits, 1);
  // A piece holds a cluster of the largest size only in halves.
  const std::size_t part = std::min<std::size_t>(g.cluster_size(), BulkWriter::kPiece);
  for (std::uint64_t b = 0; b < blocks && !writer.failed();) {
    const bool partial = (b + 1) * g.refblock_entries() > clusters;
    if (partial) {
      std::vector<std::byte> last(g.cluster_size());
      const std::uint64_t start = b * g.refblock_entries();
      for (std::uint64_t i = 0; start + i < clusters; ++i) refcount_set(g, last.data(), i, 1);
      ones.swap(last);
    }
    const std::uint64_t whole =
        clusters / g.refblock_entries() - std::min(b, clusters / g.refblock_entries());
    const std::uint64_t n = partial || part < g.cluster_size() ? 1 : std::min(per_piece, whole);
    for (std::size_t at = 0; at < g.cluster_size(); at += part) {
      const std::span<std::byte> bytes = co_await writer.buffer();
      for (std::uint64_t i = 0; i < n; ++i) {
        std::memcpy(bytes.data() + (i << g.cluster_bits), ones.data() + at, part);
      }
      const std::size_t length = n == 1 ? part : n << g.cluster_bits;
      writer.write(offset + (b << g.cluster_bits) + at, length);
    }
    b += n;
  }
}

Task<Result<void>> write_tables(BlockNode& file, const CreatePlan& plan) {
  const Header& header = plan.header;
  const Geometry g = header.geometry();
  BulkWriter writer(file);
  co_await write_refcount_blocks(writer, g, plan.refcount_blocks_offset, plan.refcount_blocks,
                                 plan.clusters);
  co_await write_pointer_table(
      writer, g, header.refcount_table_offset, plan.refcount_blocks,
      std::uint64_t{header.refcount_table_clusters} * g.reftable_entries_per_cluster(),
      plan.refcount_blocks_offset, 0, 8);
  if (plan.l2_tables != 0) {
    // What lies in the file would not decrypt to zeroes.
    const bool as_zeroes = header.crypt_method != CryptMethod::kNone && !g.extended_l2;
    co_await write_pointer_table(writer, g, plan.l2_tables_offset, plan.data_clusters,
                                 plan.l2_tables * g.l2_entries(), plan.data_offset,
                                 kCopied | (as_zeroes ? kZeroBit : 0),
                                 static_cast<unsigned>(g.l2_entry_size()));
  }
  // An empty one too: what it leads to later must not fail for lack of space in it.
  co_await write_pointer_table(writer, g, header.l1_table_offset, plan.l2_tables, header.l1_size,
                               plan.l2_tables_offset, kCopied, 8);
  co_return co_await writer.finish();
}

// Gives the file its size, and makes sure that nothing old shows through the metadata: on a device,
// or a file whose protocol does not empty it.
Task<Result<void>> prepare_file(BlockNode& file, const CreatePlan& plan) {
  const std::uint64_t before = file.size();
  if (before < plan.file_size) {
    ResizeRequest request;
    request.size = plan.file_size;
    if (!plan.header.has_data_file() && (plan.preallocation == Preallocation::kFalloc ||
                                         plan.preallocation == Preallocation::kFull)) {
      request.preallocation = plan.preallocation;
    }
    auto resized = co_await file.resize(request);
    PLATTER_CO_TRY(resized);
  }
  if (before != 0) {
    const std::uint64_t metadata = std::min(
        {before, plan.file_size, plan.header.l1_table_offset + plan.header.l1_table_bytes()});
    // An image that was here goes before its tables do: never its header with the new one's tables.
    auto gone = co_await file.write_zeroes(0, std::min(before, kHeaderSwitch), ZeroFlags{});
    if (gone) gone = co_await file.flush();
    PLATTER_CO_TRY(gone);
    ZeroFlags flags;
    flags.may_unmap = true;
    auto zeroed = co_await file.write_zeroes(0, metadata, flags);
    PLATTER_CO_TRY(zeroed);
  }
  co_return Result<void>{};
}

}  // namespace

Task<Result<void>> write_image(BlockNode& file, CreatePlan plan) {
  const auto encoded = encode_header(plan.header);
  PLATTER_CO_TRY(encoded);
  auto step = co_await prepare_file(file, plan);
  PLATTER_CO_TRY(step);
  step = co_await write_tables(file, plan);
  PLATTER_CO_TRY(step);
  if (!plan.encryption_header.empty()) {
    const IoVec area = IoVec::of_const(plan.encryption_header);
    step = co_await file.write(plan.header.extensions.encryption->offset, area);
    PLATTER_CO_TRY(step);
  }
  if (const auto rest = std::span(*encoded).subspan(kHeaderSwitch); !rest.empty()) {
    const IoVec iov = IoVec::of_const(rest);
    step = co_await file.write(kHeaderSwitch, iov);
    PLATTER_CO_TRY(step);
  }
  step = co_await file.flush();
  PLATTER_CO_TRY(step);
  step = co_await put_header(file, plan.header);
  PLATTER_CO_TRY(step);
  step = co_await file.flush();
  co_return step;
}

namespace {

// Makes the empty file and writes the image into it.
Task<Result<void>> create_at(std::string filename, CreatePlan plan) {
  const NewFile new_file(filename);
  const Options none;
  auto made = co_await create_protocol(filename, 0, none);
  PLATTER_CO_TRY(made);
  OpenFlags flags;
  flags.read_only = false;
  auto file = co_await open_protocol(filename, flags, "create");
  if (!file) {
    new_file.remove();
    co_return forward_error(file);
  }
  auto written = co_await write_image(**file, std::move(plan));
  auto closed = co_await file->detach();
  if (written && !closed) written = std::move(closed);
  if (!written) new_file.remove();
  co_return written;
}

Task<Result<void>> create_data_file(const std::string& name, const CreatePlan& plan) {
  Options options;
  if (plan.data_preallocation == Preallocation::kFalloc) {
    options.set("preallocation", "falloc");
  } else if (plan.data_preallocation == Preallocation::kFull) {
    options.set("preallocation", "full");
  }
  auto created = co_await create_protocol(name, plan.header.size, std::move(options));
  if (!created) co_return forward_error(created, "Could not create the external data file");
  co_return created;
}

}  // namespace

Task<Result<void>> create(CreateRequest request) {
  // Overlays with a backing format that nobody knows could not be opened again.
  const std::string* const backing_format = request.options.peek("backing_fmt");
  if (backing_format && !backing_format->empty() && !find_driver(*backing_format)) {
    co_return fail(EINVAL, "Parameter 'backing-fmt' does not accept value '{}'", *backing_format);
  }
  auto plan = plan_create(request.options, request.size);
  PLATTER_CO_TRY(plan);
  if (plan->encryption.method != CryptMethod::kNone) {
    auto key = plan->encryption.key();
    PLATTER_CO_TRY(key);
    if (plan->encryption.method == CryptMethod::kLuks) {
      auto volume = co_await crypto::make_luks_volume_aside(plan->encryption.luks, std::move(*key));
      PLATTER_CO_TRY(volume);
      plan->encryption_header = std::move(volume->area);
    }
  }
  const std::optional<std::string> data_file = plan->header.extensions.data_file;
  if (!data_file) {
    auto created = co_await create_at(std::move(request.filename), std::move(*plan));
    co_return created;
  }
  if (*data_file == request.filename) {
    co_return fail(EINVAL, "'{}' cannot be the image and its external data file at once",
                   *data_file);
  }
  const std::string data_filename =
      request.data_filename.empty() ? *data_file : std::move(request.data_filename);
  const NewFile new_data_file(data_filename);
  auto created = co_await create_data_file(data_filename, *plan);
  PLATTER_CO_TRY(created);
  created = co_await create_at(std::move(request.filename), std::move(*plan));
  if (!created) new_data_file.remove();
  co_return created;
}

namespace {

// Bytes of the clusters that hold data of `source`, as qemu-img measure counts them.
Task<Result<std::uint64_t>> data_bytes(BlockNode& source, std::uint64_t cluster_size) {
  std::uint64_t required = 0;
  const std::uint64_t size = source.size();
  for (std::uint64_t offset = 0; offset < size;) {
    auto extent = co_await chain_extent(source, nullptr, offset, size - offset);
    PLATTER_CO_TRY(extent);
    std::uint64_t length = extent->length;
    if (!extent->zero && extent->data && extent->present) {
      length = align_up(offset + length, cluster_size) - offset;
      required += offset % cluster_size + length;
    }
    offset += length;
  }
  co_return required;
}

// What the bitmaps of `source` would take in an image with clusters of this size, if every bit in
// them were set; nothing where the source cannot keep bitmaps.
std::optional<std::uint64_t> bitmap_bytes(BlockNode& source, std::uint64_t cluster_size) {
  const BitmapAbility* const bitmaps = source.driver().bitmaps();
  if (bitmaps == nullptr || !bitmaps->supported()) return std::nullopt;
  std::uint64_t bytes = 0;
  std::vector<BitmapEntry> directory;
  for (const BitmapInfo& bitmap : bitmaps->list()) {
    const std::uint64_t bits = div_round_up(source.size(), bitmap.granularity);
    const std::uint64_t clusters = div_round_up(div_round_up(bits, 8), cluster_size);
    bytes += clusters * cluster_size + align_up(clusters * 8, cluster_size);
    directory.push_back({});
    directory.back().name = bitmap.name;
  }
  return bytes + align_up(encode_bitmap_directory(directory).size(), cluster_size);
}

}  // namespace

Task<Result<MeasureResult>> measure(MeasureRequest request) {
  std::uint64_t size = request.size;
  if (request.source) size = request.source->size();
  const bool has_backing = request.options.has("backing_file");
  auto plan = plan_create(request.options, size);
  if (!plan && plan.error().code() == EFBIG) {
    co_return fail(EFBIG, "The image size is too large (try using a larger cluster size)");
  }
  PLATTER_CO_TRY(plan);
  const Geometry g = plan->header.geometry();
  const std::uint64_t rounded = align_up(size, g.cluster_size());
  std::uint64_t data = 0;
  if (plan->preallocation == Preallocation::kFalloc ||
      plan->preallocation == Preallocation::kFull || (request.source && has_backing)) {
    data = rounded;
  } else if (request.source) {
    auto counted = co_await data_bytes(*request.source, g.cluster_size());
    PLATTER_CO_TRY(counted);
    data = *counted;
  }
  MeasureResult result;
  const std::uint64_t crypto_bytes = plan->encryption.header_bytes();
  if (crypto_bytes != 0) {
    const auto key = plan->encryption.key();
    PLATTER_CO_TRY(key);
  }
  result.fully_allocated = fully_allocated_size(g, size) + align_up(crypto_bytes, g.cluster_size());
  // Overestimates: it keeps the tables that the full image would have.
  result.required = result.fully_allocated - rounded + data;
  if (request.source && plan->header.version >= 3)
    result.bitmaps = bitmap_bytes(*request.source, g.cluster_size());
  co_return result;
}

}  // namespace platter::qcow2
