#include "formats/qcow2/driver.h"

#include <chrono>

#include "block/base/checked.h"
#include "block/exec/task_window.h"
#include "formats/qcow2/check.h"
#include "formats/qcow2/codec.h"
#include "formats/qcow2/info.h"

namespace platter::qcow2 {
namespace {

// Space that discards have freed but no flush has confirmed, above which a discard waits for a
// write-back.
constexpr std::uint64_t kMaxUnsettled = std::uint64_t{256} << 20;
// Clusters of one request that are packed at the same time.
constexpr std::size_t kMaxPacking = 16;
// How often tables that were changed are read again when reading them fails.
constexpr int kLoadAgain = 2;

}  // namespace

Qcow2Driver::Qcow2Driver(const Geometry& geometry, const RuntimeOptions& options)
    : core_(geometry, in_flight()),
      options_(options),
      refcounts_(core_),
      clusters_(core_, refcounts_),
      tables_(core_, clusters_),
      write_back_(core_, tables_, refcounts_, clusters_),
      writer_(core_, tables_, clusters_),
      snapshots_(*this),
      vm_state_(*this),
      bitmaps_(*this),
      shedding_([this] { shed_unused(); }) {
  core_.metadata_name = [this](std::uint64_t cluster) { return metadata_name(cluster); };
  core_.table_loads = [this] { shedding_.begin(); };
}

Qcow2Driver::~Qcow2Driver() = default;

Limits Qcow2Driver::limits() const {
  const Limits below = core_.data_node().limits();
  Limits limits;
  limits.request_alignment = transforms() ? std::max(below.request_alignment, DataTransform::kUnit)
                                          : below.request_alignment;
  limits.memory_alignment = below.memory_alignment;
  limits.discard_alignment = static_cast<std::uint32_t>(core_.geometry.cluster_size());
  limits.optimal_transfer = static_cast<std::uint32_t>(core_.geometry.cluster_size());
  return limits;
}

std::vector<Edge*> Qcow2Driver::children() {
  std::vector<Edge*> edges{&core_.file};
  if (core_.data_file) edges.push_back(&core_.data_file);
  if (core_.backing_edge) edges.push_back(&core_.backing_edge);
  return edges;
}

std::uint64_t Qcow2Driver::refcount_of(std::uint64_t host_cluster) {
  MutexLock lock(core_.mutex());
  return refcounts_.get(host_cluster).value_or(~std::uint64_t{0});
}

// Mapping ----------------------------------------------------------------------------------------

bool Qcow2Driver::try_map(std::uint64_t offset, std::uint64_t length, bool for_write,
                          Mapping& mapping) {
  if (for_write && core_.poisoned.load(std::memory_order_relaxed)) return false;
  return tables_.try_lookup(offset, length, for_write, mapping);
}

void Qcow2Driver::shed_unused() {
  MutexLock lock(core_.mutex());
  tables_.cache().shed_unused();
  refcounts_.cache().shed_unused();
}

void Qcow2Driver::start_shedding() {
  shedding_.every(std::chrono::seconds(options_.cache_clean_interval));
}

Task<Result<Mapping>> Qcow2Driver::map(std::uint64_t offset, std::uint64_t length, bool for_write) {
  if (for_write && core_.poisoned.load()) return refuse_writing();
  return tables_.lookup(offset, length, for_write);
}

Task<Result<Mapping>> Qcow2Driver::refuse_writing() { co_return core_.given_up(); }

// Reads are bounded by who asks for them. But a walk over all extents of a small file with a few
// tables, named again and again, would not end.
Task<Result<Extent>> Qcow2Driver::do_extent(std::uint64_t offset, std::uint64_t length) {
  if (tables_.repeats()) [[unlikely]]
    return refuse_extents();
  return MappedDriver::do_extent(offset, length);
}

Task<Result<Extent>> Qcow2Driver::refuse_extents() {
  co_return fail(kCorrupt,
                 "the L1 table at {:#x} names the same L2 tables again and again: its {} entries "
                 "cannot all be right",
                 tables_.l1_table_offset(), tables_.l1_size());
}

Task<Result<WritePlan>> Qcow2Driver::plan_write(std::uint64_t offset, std::uint64_t length) {
  return writer_.plan(offset, length);
}

void Qcow2Driver::publish(WritePlan& plan) { writer_.publish(plan); }

void Qcow2Driver::abandon(WritePlan& plan) { writer_.abandon(plan); }

Task<Result<void>> Qcow2Driver::zero_units(std::uint64_t offset, std::uint64_t length,
                                           bool may_unmap) {
  return writer_.zero(offset, length, may_unmap);
}

Task<Result<void>> Qcow2Driver::may_zero_units(std::uint64_t offset, std::uint64_t length,
                                               bool may_unmap) {
  return writer_.may_zero(offset, length, may_unmap);
}

bool Qcow2Driver::can_hide_units() const {
  // Version 2 has no zero clusters, and a raw data file says by itself what the disk reads as.
  return core_.geometry.version >= 3 && !core_.header.data_file_raw();
}

Task<Result<void>> Qcow2Driver::hide_units(std::uint64_t offset, std::uint64_t length) {
  return writer_.hide(offset, length);
}

Result<void> Qcow2Driver::unpack(std::span<const std::byte> packed, std::span<std::byte> out) {
  return inflate_cluster(core_.header.compression_type, packed, out);
}

Task<Result<void>> Qcow2Driver::write_packed(std::uint64_t offset, IoVec iov) {
  const std::uint64_t cluster = core_.geometry.cluster_size();
  // Packed data is not encrypted in this format: it would stand in the file for all to read.
  if (transforms())
    co_return fail(ENOTSUP, "Compression and encryption not supported at the same time");
  if (core_.geometry.external_data)
    co_return fail(ENOTSUP, "an external data file has no compressed data");
  const std::uint64_t end = offset + iov.size();
  if (core_.geometry.in_cluster(offset) != 0 ||
      (core_.geometry.in_cluster(end) != 0 && end < size())) {
    co_return fail(EINVAL, "compressed writes cover whole clusters");
  }
  TaskWindow window(kMaxPacking);
  while (!iov.empty() && window.good()) {
    if (window.full()) co_await window.oldest();
    const IoVec part = iov.first(std::min<std::uint64_t>(cluster, iov.size()));
    window.add(write_one_packed(offset, part));
    offset += part.size();
    iov = iov.from(part.size());
  }
  while (window.busy()) co_await window.oldest();
  co_return window.take();
}

Task<Result<void>> Qcow2Driver::write_one_packed(std::uint64_t offset, IoVec iov) {
  const Buffer copy = Buffer::zeroed(core_.geometry.cluster_size());
  iov.copy_to(copy.data());
  auto packed = co_await writer_.write_packed(offset, copy.span());
  PLATTER_CO_TRY(packed);
  if (*packed) co_return {};
  auto plain = co_await write_inside(offset, iov);
  co_return plain;
}

// Space and durability ---------------------------------------------------------------------------

Task<Result<void>> Qcow2Driver::do_discard(std::uint64_t offset, std::uint64_t length) {
  {
    auto ticket = co_await admit();
    // Subclusters have no space of their own to give back.
    const std::uint64_t unit = core_.geometry.cluster_size();
    const std::uint64_t end = std::min(offset + length, align_up(size(), unit));
    const std::uint64_t first = align_up(offset, unit);
    // The disk's last unit is whole when the range reaches the disk's end.
    const std::uint64_t last = end >= size() ? align_up(end, unit) : align_down(end, unit);
    if (first >= last) co_return fail(ENOTSUP, "parts of clusters cannot be discarded");
    auto announced = co_await announce_change(first, last - first);
    PLATTER_CO_TRY(announced);
    auto discarded = co_await writer_.discard(first, last - first, Discard::kRequest, false);
    PLATTER_CO_TRY(discarded);
  }
  auto relieved = co_await relieve();
  co_return relieved;
}

bool Qcow2Driver::too_much_unsettled() {
  MutexLock lock(core_.mutex());
  return clusters_.unlinked_clusters() << core_.geometry.cluster_bits >= kMaxUnsettled;
}

Task<Result<void>> Qcow2Driver::relieve() {
  if (!too_much_unsettled()) co_return {};
  {
    auto ticket = co_await admit();
    auto committed = co_await write_back_.commit(WriteBack::Flush::kIfNeeded);
    PLATTER_CO_TRY(committed);
  }
  auto reaping = clusters_.reap(HostClusters::Wait::kNo);
  co_await reaping;
  co_return {};
}

// What a flush does for space, and waits for those who keep it in quarantine. Nothing is held here
// that one of them could wait for: neither a ticket nor a claim. Where reaping has been stopped, or
// somebody else is at it, nothing waits for that.
Task<bool> Qcow2Driver::regain_space() {
  {
    MutexLock lock(core_.mutex());
    if (!clusters_.is_space_coming()) co_return false;
  }
  // (Who comes second tries again when the first has made an end of it.)
  auto alone = co_await regaining_.lock();
  {
    auto ticket = co_await admit();
    // What fails here stays to be written: a flush will say so. This request has its error.
    auto committed = co_await write_back_.commit(WriteBack::Flush::kIfNeeded);
    if (!committed) co_return false;
  }
  auto ended = core_.in_flight.wait();
  co_await ended;
  auto reaping = clusters_.reap(HostClusters::Wait::kNo);
  co_await reaping;
  co_return true;
}

Task<Result<void>> Qcow2Driver::do_flush() {
  if (!core_.writable) co_return {};
  {
    // Held back like a request while tables are replaced. The ticket goes before anything is freed:
    // it would keep what this flush has made free to go in quarantine.
    auto ticket = co_await admit();
    PLATTER_FAULT(*core_.file, FaultEvent::kFlushToOs);
    auto committed = co_await write_back_.commit(WriteBack::Flush::kAsked);
    PLATTER_CO_TRY(committed);
    PLATTER_FAULT(*core_.file, FaultEvent::kFlushToDisk);
  }
  auto reaping = clusters_.reap(HostClusters::Wait::kNo);
  co_await reaping;
  co_return clusters_.take_error();
}

Task<Result<void>> Qcow2Driver::settle(WriteBack::Flush flush, Requests requests) {
  if (!core_.writable || core_.poisoned.load()) co_return {};
  auto committed = co_await write_back_.commit(flush);
  PLATTER_CO_TRY(committed);
  if (requests == Requests::kHeld) {
    auto turned_away = core_.in_flight.wait();
    co_await turned_away;
  }
  auto reaping = clusters_.reap(HostClusters::Wait::kYes);
  co_await reaping;
  auto counted = co_await write_back_.commit(flush);
  PLATTER_CO_TRY(counted);
  // (What a hole below could not be made for, an operation on its way is not the one to be told.)
  if (flush != WriteBack::Flush::kAsked) co_return {};
  co_return clusters_.take_error();
}

Task<Result<void>> Qcow2Driver::end_writing() {
  if (!core_.writable || core_.poisoned.load()) co_return {};
  write_back_.set_lazy(false);
  auto settled = co_await settle(WriteBack::Flush::kAsked);
  PLATTER_CO_TRY(settled);
  auto stored = co_await bitmaps_.store();
  settled = co_await settle(WriteBack::Flush::kAsked);
  PLATTER_CO_TRY(settled);
  if (core_.header.dirty() && !needs_repair_) {
    auto cleaned = co_await core_.set_incompatible(incompatible::kDirty, false);
    PLATTER_CO_TRY(cleaned);
  }
  if (!stored) co_return forward_error(stored, "Lost persistent bitmaps");
  co_return {};
}

bool Qcow2Driver::wants_lazy() const {
  return core_.header.version >= 3 &&
         options_.lazy_refcounts.value_or(core_.header.lazy_refcounts());
}

Result<void> Qcow2Driver::may_operate() const {
  if (!core_.writable) return fail(EROFS, "the image is read-only");
  if (core_.poisoned.load()) return core_.given_up();
  return {};
}

Task<Result<void>> Qcow2Driver::alongside(const std::function<Task<Result<void>>()>& work) {
  auto alone = co_await operations_.lock();
  const Result<void> may = may_operate();
  PLATTER_CO_TRY(may);
  write_back_.set_lazy(false);  // counts are on disk before a header that shows what they count
  began_ = false;
  Result<void> result;
  {
    auto nothing_freed = co_await clusters_.stop_reaping();
    auto working = work();
    result = co_await working;
  }
  if (began_ && !wants_lazy() && !needs_repair_) {
    // The file says that counts and flags are right only once they have reached the disk.
    auto cleaned = co_await write_back_.commit(WriteBack::Flush::kOwn);
    if (cleaned) cleaned = co_await core_.set_incompatible(incompatible::kDirty, false);
    if (result) result = std::move(cleaned);
  }
  write_back_.set_lazy(wants_lazy());
  auto reaping = clusters_.reap(HostClusters::Wait::kNo);
  co_await reaping;
  co_return result;
}

Task<Result<void>> Qcow2Driver::exclusively(const std::function<Task<Result<void>>()>& work,
                                            bool reload) {
  auto alone = co_await operations_.lock();
  const Result<void> may = may_operate();
  PLATTER_CO_TRY(may);
  auto holding = hold();
  co_await holding;
  write_back_.set_lazy(false);  // counts on disk are looked at
  auto result = co_await settle(WriteBack::Flush::kIfNeeded, Requests::kHeld);
  if (result && !reload) {
    auto working = work();
    result = co_await working;
    // Also after a failure: what it had set aside goes back.
    auto settled = co_await settle();
    if (result) result = std::move(settled);
  } else if (result) {
    began_ = false;
    {
      auto nothing_freed = co_await clusters_.stop_reaping();
      auto working = work();
      result = co_await working;
    }
    if (!result && began_) needs_repair_ = true;
    if (!result && !began_) {
      auto settled = co_await settle(WriteBack::Flush::kOwn, Requests::kHeld);
      static_cast<void>(settled);
    }
    auto loaded = co_await load_tables();
    // An error that passes is no reason to give the image up.
    for (int again = 0; !loaded && again < kLoadAgain; ++again) loaded = co_await load_tables();
    if (!loaded) {
      // Memory and file may differ now.
      core_.poisoned.store(true);
      if (result) result = forward_error(loaded, "the image must be opened anew: its tables");
    }
  }
  write_back_.set_lazy(wants_lazy());
  release();
  co_return result;
}

Task<Result<void>> Qcow2Driver::begin_changing_counts() {
  began_ = true;
  if (core_.geometry.version < 3) co_return {};
  auto marked = co_await core_.set_incompatible(incompatible::kDirty, true);
  co_return marked;
}

Error Qcow2Driver::name_unwritten(const Error& reason) const {
  const WriteBack::Unwritten unwritten = write_back_.unwritten();
  const Error tables = reason.in("Failed to flush the L2 table cache");
  const Error counts = reason.in("Failed to flush the refcount block cache");
  if (!unwritten.counts) return unwritten.tables ? tables : reason;
  return unwritten.tables ? tables.also(counts) : counts;
}

Task<Result<void>> Qcow2Driver::do_close() {
  auto ended = co_await end_writing();
  if (ended || core_.poisoned.load()) co_return ended;
  co_return std::unexpected<Error>(name_unwritten(ended.error()));
}

// Checking and the backing reference -------------------------------------------------------------

Task<Result<CheckResult>> Qcow2Driver::check(const CheckRequest& request) {
  Result<CheckResult> result = CheckResult{};
  Header header = core_.header;
  if (!core_.writable) {
    result = co_await check_image(*core_.file, header, request);
    co_return result;
  }
  const auto work = [this, &request, &result] { return check_now(request, &result); };
  const std::function<Task<Result<void>>()> named(work);
  auto done = co_await exclusively(named, true);
  PLATTER_CO_TRY(done);
  co_return result;
}

Task<Result<void>> Qcow2Driver::check_now(const CheckRequest& request,
                                          Result<CheckResult>* result) {
  Header header = core_.header;
  *result = co_await check_image(*core_.file, header, request);
  if (!request.fix_leaks && !request.fix_errors) co_return {};
  auto guard = co_await core_.header_mutex.lock();
  // As far as a repair came, it is on disk. What the header leads to is there in any case; whether
  // the header is, nobody knows after a failure.
  if (!*result && header != core_.header) core_.header_unsure.store(true);
  core_.header = std::move(header);
  if (*result && (*result)->corruptions == 0) needs_repair_ = false;
  co_return {};
}

std::string Qcow2Driver::backing_filename() const { return core_.header.backing_file; }

std::string Qcow2Driver::backing_format() const {
  return core_.header.extensions.backing_format.value_or("");
}

Task<Result<void>> Qcow2Driver::change_backing(std::string filename, std::string format,
                                               std::function<Result<void>()> allowed) {
  auto alone = co_await operations_.lock();
  const Result<void> may = may_operate();
  PLATTER_CO_TRY(may);
  // The data file would not read as the disk does any more.
  if (!filename.empty() && core_.header.data_file_raw())
    co_return fail(EINVAL, "an image with data_file_raw has no backing file");
  if (allowed) {
    const Result<void> still = allowed();
    PLATTER_CO_TRY(still);
  }
  const auto name_it = [&filename, &format](Header& header) {
    header.backing_file = std::move(filename);
    header.extensions.backing_format.reset();
    if (!header.backing_file.empty() && !format.empty())
      header.extensions.backing_format = std::move(format);
  };
  const std::function<void(Header&)> named(name_it);
  auto written = co_await change_header(named);
  co_return written;
}

// Data is where the guest has it: it goes once nothing on disk leads there any more, and nobody
// writes there anew.
Task<Result<void>> Qcow2Driver::empty_data_file_now() {
  const std::uint64_t end = align_up(size(), core_.geometry.cluster_size());
  auto discarded = co_await writer_.discard(0, end, Discard::kNever, true);
  PLATTER_CO_TRY(discarded);
  auto settled = co_await settle(WriteBack::Flush::kOwn, Requests::kHeld);
  PLATTER_CO_TRY(settled);
  BlockNode& data = core_.data_node();
  const std::uint64_t held = std::min(end, data.size());
  if (held == 0 || !core_.discard_passes[static_cast<std::size_t>(Discard::kSnapshot)])
    co_return {};
  const ZeroFlags flags{.may_unmap = true, .no_fallback = true};
  auto zeroed = co_await data.write_zeroes(0, held, flags);
  if (!zeroed && zeroed.error().code() != ENOTSUP) co_return zeroed;
  co_return {};
}

Task<Result<void>> Qcow2Driver::make_empty() {
  PLATTER_FAULT(*core_.file, FaultEvent::kEmptyImagePrepare);
  if (core_.data_file) {
    const auto work = [this] { return empty_data_file_now(); };
    const std::function<Task<Result<void>>()> named(work);
    auto done = co_await exclusively(named, false);
    co_return done;
  }
  {
    auto ticket = co_await admit();
    const std::uint64_t end = align_up(size(), core_.geometry.cluster_size());
    auto discarded = co_await writer_.discard(0, end, Discard::kSnapshot, true);
    PLATTER_CO_TRY(discarded);
  }
  auto flushed = co_await do_flush();
  co_return flushed;
}

// Information ------------------------------------------------------------------------------------

FormatInfo Qcow2Driver::info() {
  return format_info(core_.header, bitmaps_.entries(), luks_ ? &*luks_ : nullptr);
}

// A file that takes up clearly less than its clusters would has holes among them. A few clusters'
// room is left for what a file system packs tightly.
bool Qcow2Driver::may_have_holes() {
  const SparseFile known = sparse_file_.load(std::memory_order_relaxed);
  if (known != SparseFile::kUnknown) return known == SparseFile::kYes;
  BlockNode* const file = storage();
  const std::optional<std::uint64_t> allocated = file->driver().allocated_size();
  const std::uint64_t cluster_size = core_.geometry.cluster_size();
  const std::uint64_t clusters = div_round_up(file->size(), cluster_size);
  const std::uint64_t real = allocated.value_or(file->size()) / cluster_size;
  const bool sparse = clusters >= std::max(real * 10 / 9, real + 2);
  sparse_file_.store(sparse ? SparseFile::kYes : SparseFile::kNo, std::memory_order_relaxed);
  return sparse;
}

}  // namespace platter::qcow2
