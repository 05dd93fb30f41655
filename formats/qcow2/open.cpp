// Opening, reopening, and the registration of the driver.
#include <cstdio>

#include "block/base/checked.h"
#include "formats/qcow2/check.h"
#include "formats/qcow2/create.h"
#include "formats/qcow2/driver.h"
#include "formats/qcow2/header_io.h"
#include "formats/qcow2/storage_io.h"

namespace platter::qcow2 {
namespace {

int probe(std::span<const std::byte> head, std::string_view) {
  if (head.size() < 8) return 0;
  const auto version = load_be<std::uint32_t>(head.data() + 4);
  return load_be<std::uint32_t>(head.data()) == kMagic && version >= 2 ? 100 : 0;
}

Geometry geometry_of(const Header& header) {
  return Geometry{.version = header.version,
                  .cluster_bits = header.cluster_bits,
                  .refcount_order = header.refcount_order,
                  .extended_l2 = header.extended_l2(),
                  .external_data = header.has_data_file()};
}

const RegisterDriver registered{DriverType{.name = "qcow2",
                                           .supports_backing = true,
                                           .probe = probe,
                                           .open = Qcow2Driver::open,
                                           .create_options = create_options(),
                                           .amend_options = amend_options(),
                                           .create = create,
                                           .measure = measure}};

}  // namespace

Task<Result<std::unique_ptr<Driver>>> Qcow2Driver::open(OpenContext& context) {
  const Permissions rights =
      context.flags.read_only ? Permissions::reader() : Permissions::writer();
  auto file = co_await context.open_child("file", rights);
  PLATTER_CO_TRY(file);
  // (What a file that was cut off has lost, the checker is to tell.)
  const TableBounds bounds = context.flags.check ? TableBounds::kAnywhere : TableBounds::kInFile;
  auto header = co_await read_header(**file, bounds);
  PLATTER_CO_TRY(header);
  const Geometry geometry = geometry_of(*header);
  const Options given = take_runtime_keys(context.options);
  Options unread = given;
  auto options = take_runtime_options(unread, geometry, header->l1_size);
  PLATTER_CO_TRY(options);
  if (auto known = unread.all_taken("qcow2"); !known) co_return forward_error(known);
  auto driver = std::make_unique<Qcow2Driver>(geometry, *options);
  driver->core_.file = std::move(*file);
  driver->bounds_ = bounds;
  driver->given_ = given;
  auto started = co_await driver->start(context, std::move(*header));
  PLATTER_CO_TRY(started);
  driver->start_shedding();
  std::unique_ptr<Driver> result = std::move(driver);
  co_return std::move(result);
}

Task<Result<void>> Qcow2Driver::start(OpenContext& context, Header header) {
  const OpenFlags flags = context.flags;
  auto encryption = co_await open_encryption(context, header);
  PLATTER_CO_TRY(encryption);
  if (header.has_data_file() && !flags.no_io) {
    const std::optional<std::string>& stored = header.extensions.data_file;
    const bool named = context.options.has("data-file") || context.options.has_child("data-file");
    if (!named && stored) context.options.set("data-file.filename", *stored);
    if (!named && !stored) {
      co_return fail(EINVAL, "'data-file' is required for this image");
    }
    auto data = co_await context.open_child(
        "data-file", flags.read_only ? Permissions::reader() : Permissions::writer());
    if (!data) co_return forward_error(data, "Could not open the external data file");
    core_.data_file = std::move(*data);
  }
  if (!flags.read_only) {
    if (header.corrupt() && !flags.check) {
      co_return fail(EACCES, "qcow2: Image is corrupt; cannot be opened read/write");
    }
    if (!flags.check) {
      const Result<void> counted = require_refcount_table(header);
      PLATTER_CO_TRY(counted);
    }
    if (header.dirty() && !flags.check) {
      auto rebuilt = co_await rebuild_refcounts(*core_.file, header);
      if (!rebuilt) co_return forward_error(rebuilt, "Could not repair dirty image");
    }
  }
  if (header.extensions.stale_bitmaps) {
    std::fprintf(stderr,
                 "qcow2: warning: a program lacking bitmap support modified this file, so all "
                 "bitmaps are now considered inconsistent; some clusters may be leaked\n");
  }
  core_.header = std::move(header);
  core_.writable = !flags.read_only;
  if (core_.geometry.l1_entries_for(core_.header.size) > core_.header.l1_size) {
    co_return fail(EINVAL, "L1 table is too small");
  }
  if (!flags.check) {
    // (A broken directory is for the checker to report, which looks at it itself.)
    auto bitmaps = co_await bitmaps_.open(context.node_name);
    PLATTER_CO_TRY(bitmaps);
  }
  auto loaded = co_await load_tables();
  PLATTER_CO_TRY(loaded);
  auto backing = co_await context.open_backing(core_.header.backing_file, backing_format());
  PLATTER_CO_TRY(backing);
  core_.backing_edge = std::move(*backing);
  choose_discards(flags.discard_unmap);
  if (core_.writable) {
    auto bitmaps = co_await bitmaps_.load_enabled();
    PLATTER_CO_TRY(bitmaps);
    auto begun = co_await begin_writing();
    PLATTER_CO_TRY(begun);
    bitmaps_.start();
  }
  co_return {};
}

Task<Result<void>> Qcow2Driver::open_encryption(OpenContext& context, const Header& header) {
  auto secret = take_encryption_options(context.options, header.crypt_method);
  PLATTER_CO_TRY(secret);
  core_.encrypted = header.crypt_method != CryptMethod::kNone;
  if (!core_.encrypted) co_return {};
  if (header.crypt_method == CryptMethod::kLuks) {
    auto luks = co_await read_encryption_header(*core_.file, header);
    PLATTER_CO_TRY(luks);
    luks_ = std::move(*luks);
  }
  if (context.flags.no_io) co_return {};
  auto cipher = co_await unlock(*core_.file, header, luks_ ? &*luks_ : nullptr, *secret);
  PLATTER_CO_TRY(cipher);
  cipher_ = std::move(*cipher);
  key_secret_ = std::move(*secret);
  set_transform(cipher_.get());
  co_return {};
}

Task<Result<void>> Qcow2Driver::load_tables() {
  const auto clean = [this] { return write_back_.clean(); };
  core_.size.store(core_.header.size);
  const L2Tables::CacheSizes sizes{.bytes = options_.l2_cache,
                                   .entry_bytes = options_.l2_cache_entry};
  auto tables = co_await tables_.open(sizes, clean);
  PLATTER_CO_TRY(tables);
  auto snapshots = co_await snapshots_.open(bounds_, core_.writable);
  PLATTER_CO_TRY(snapshots);
  if (core_.writable) {
    auto refcounts = co_await refcounts_.open(options_.refcount_cache, clean);
    PLATTER_CO_TRY(refcounts);
    list_metadata();
    clusters_.open();
  }
  co_return {};
}

void Qcow2Driver::list_metadata() {
  MutexLock lock(core_.mutex());
  const Geometry& g = core_.geometry;
  MetadataMap& map = core_.metadata;
  map.clear();
  map.add(0, g.cluster_size());
  map.add(tables_.l1_table_offset(), tables_.l1_size() * 8);
  for (std::uint64_t i = 0; i < tables_.l1_size(); ++i) {
    if (const std::uint64_t table = l1_offset(tables_.l1(i))) map.add(table, g.cluster_size());
  }
  const Refcounts::Place place = refcounts_.place();
  map.add(place.offset, place.clusters << g.cluster_bits);
  for (std::uint64_t i = 0; i < refcounts_.block_count(); ++i) {
    if (const std::uint64_t block = refcounts_.block(i)) map.add(block, g.cluster_size());
  }
  if (const auto& encryption = core_.header.extensions.encryption)
    map.add(encryption->offset, encryption->length);
  map.add(core_.header.snapshots_offset, snapshots_.table_bytes());
  for (const Snapshot& snapshot : snapshots_.table())
    map.add(snapshot.l1_table_offset, std::uint64_t{snapshot.l1_size} * 8);
  bitmaps_.list_metadata();
}

void Qcow2Driver::choose_discards(bool unmap) {
  discard_unmap_ = unmap;
  core_.discard_passes[static_cast<std::size_t>(Discard::kNever)] = false;
  core_.discard_passes[static_cast<std::size_t>(Discard::kAlways)] = true;
  core_.discard_passes[static_cast<std::size_t>(Discard::kRequest)] =
      options_.pass_discard_request.value_or(unmap);
  core_.discard_passes[static_cast<std::size_t>(Discard::kSnapshot)] =
      options_.pass_discard_snapshot;
  core_.discard_passes[static_cast<std::size_t>(Discard::kOther)] = options_.pass_discard_other;
}

Task<Result<void>> Qcow2Driver::begin_writing() {
  write_back_.set_lazy(wants_lazy());
  if ((core_.header.autoclear_features & ~autoclear::kKnown) == 0 &&
      !core_.header.extensions.stale_bitmaps) {
    co_return {};
  }
  // What we do not keep up to date, others must not trust.
  auto guard = co_await core_.header_mutex.lock();
  core_.header.autoclear_features &= autoclear::kKnown;
  auto written = co_await core_.publish_header();
  co_return written;
}

// Reopening --------------------------------------------------------------------------------------

// (The node is drained. What comes another way, an operation or VM state, is not of its requests.)
Task<Result<void>> Qcow2Driver::prepare_reopen(OpenFlags flags) {
  auto alone = co_await operations_.lock();
  auto holding = hold();
  co_await holding;
  auto prepared = co_await prepare_mode(flags);
  if (prepared) {
    reopening_ = Reopening{.flags = flags, .alone = std::move(alone)};
  } else {
    release();
  }
  co_return prepared;
}

Task<Result<void>> Qcow2Driver::prepare_mode(OpenFlags flags) {
  if (core_.writable && flags.read_only) {
    auto ended = co_await end_writing();
    PLATTER_CO_TRY(ended);
  }
  if (!core_.writable && !flags.read_only) {
    // What is written would go into the snapshot's own tables.
    if (snapshots_.shows_one())
      co_return fail(EBUSY, "the image shows a snapshot: it cannot be opened read/write");
    if (core_.header.corrupt())
      co_return fail(EACCES, "qcow2: Image is corrupt; cannot be opened read/write");
    const Result<void> counted = require_refcount_table(core_.header);
    PLATTER_CO_TRY(counted);
    if (core_.header.dirty())
      co_return fail(EACCES, "the image is dirty: open it for writing anew, to repair it");
    const auto clean = [this] { return write_back_.clean(); };
    auto refcounts = co_await refcounts_.open(options_.refcount_cache, clean);
    PLATTER_CO_TRY(refcounts);
    auto snapshots = co_await snapshots_.open(bounds_, true);
    PLATTER_CO_TRY(snapshots);
    auto bitmaps = co_await bitmaps_.load_enabled();
    PLATTER_CO_TRY(bitmaps);
  }
  co_return {};
}

void Qcow2Driver::commit_reopen() {
  if (!reopening_) return;
  const bool was = core_.writable;
  core_.writable = !reopening_->flags.read_only;
  choose_discards(reopening_->flags.discard_unmap);
  if (core_.writable) write_back_.set_lazy(wants_lazy());
  if (!was && core_.writable) {
    list_metadata();
    clusters_.open();
    write_back_.clear_autoclear_first();
    bitmaps_.start();
  }
  if (was && !core_.writable) bitmaps_.stop();
  release();
  reopening_.reset();
}

void Qcow2Driver::abort_reopen() {
  if (core_.writable) {
    write_back_.set_lazy(wants_lazy());
  } else {
    bitmaps_.stop();
  }
  release();
  reopening_.reset();
}

}  // namespace platter::qcow2
