// raw: the bytes of the file are the bytes of the disk, or a window of them.
//
// Options: file, offset (bytes), size (bytes; default: to the end of the file).
// Threads: any. Members are immutable after open but for the window, which is atomic: it changes at
// the user's wish, who has no requests running then.
//
// Requests cost no coroutine of their own: the Task of the file's node is handed on.

#include <algorithm>
#include <atomic>
#include <functional>
#include <optional>

#include "block/base/checked.h"
#include "block/exec/executor.h"
#include "block/node/graph.h"

namespace platter {
namespace {

// Disks are whole sectors, whatever the size of the file.
constexpr std::uint64_t kSector = 512;

Result<void> check_window(std::uint64_t file_end, std::uint64_t start,
                          std::optional<std::uint64_t> size) {
  const std::uint64_t file_size = align_up<std::uint64_t>(file_end, kSector);
  if (size && !is_aligned(*size, kSector)) {
    return fail(EINVAL, "Specified size is not multiple of {}", kSector);
  }
  if (start > file_size) {
    return fail(EINVAL, "Offset ({}) cannot be greater than size of the containing file ({})",
                start, file_size);
  }
  if (size && *size > file_size - start) {
    return fail(EINVAL,
                "The sum of offset ({}) and size ({}) has to be smaller or equal to the  actual "
                "size of the containing file ({})",
                start, *size, file_size);
  }
  return {};
}

class RawDriver : public Driver {
 public:
  RawDriver(Edge file, std::uint64_t offset, std::optional<std::uint64_t> size, bool below_a_format)
      : file_(std::move(file)),
        offset_(offset),
        size_(size.value_or(kToTheEnd)),
        grows_(below_a_format && !size && file_->driver().can_grow()) {}

  std::uint64_t size() const override {
    if (const std::uint64_t fixed = size_.load(); fixed != kToTheEnd) return fixed;
    // Disks end at a sector's end; behind the end of the file are zeroes.
    const std::uint64_t end = file_->size();
    const std::uint64_t start = offset_.load();
    return end > start ? align_up<std::uint64_t>(end - start, kSector) : 0;
  }
  Limits limits() const override {
    Limits limits = file_->limits();
    // The file's node pads, locks and flushes; doing so here too would only cost time.
    limits.request_alignment = 1;
    // (Who listens to events is told of the flush by itself.)
    limits.native_fua = !file_->listens_to_events();
    return limits;
  }
  bool can_grow() const override { return grows_; }

  Task<Result<void>> do_read(std::uint64_t offset, IoVec iov, ReadFlags flags) override {
    if (file_->listens_to_events()) [[unlikely]]
      return announced_read(offset, iov, flags);
    return file_->read(offset_ + offset, iov, flags);
  }
  Task<Result<void>> do_write(std::uint64_t offset, IoVec iov, WriteFlags flags) override {
    if (flags.compressed) [[unlikely]]
      return no_compression();
    if (file_->listens_to_events()) [[unlikely]]
      return announced_write(offset, iov, flags);
    return file_->write(offset_ + offset, iov, flags);
  }
  Task<Result<void>> do_write_zeroes(std::uint64_t offset, std::uint64_t length,
                                     ZeroFlags flags) override {
    return file_->write_zeroes(offset_ + offset, length, flags);
  }
  Task<Result<void>> do_discard(std::uint64_t offset, std::uint64_t length) override {
    // Of the disk's last sector the file may hold only a part, or nothing.
    const std::uint64_t start = offset_ + offset;
    const std::uint64_t end = file_->size();
    if (start >= end) [[unlikely]]
      return nothing_to_discard();
    return file_->discard(start, std::min(length, end - start));
  }
  Task<Result<void>> do_flush() override { return file_->flush(); }

  Task<Result<Extent>> do_extent(std::uint64_t offset, std::uint64_t length) override {
    const std::uint64_t end = file_->size();
    const std::uint64_t start = offset_.load();
    if (start + offset >= end) [[unlikely]]
      return behind_end(offset, length);
    length = std::min(length, end - start - offset);
    if (start == 0) return file_->extent(offset, length);
    return shifted_extent(offset, length);
  }

  Task<Result<void>> do_resize(ResizeRequest request) override {
    if (size_.load() != kToTheEnd) co_return fail(ENOTSUP, "Cannot resize fixed-size raw disks");
    const auto end = checked_add(request.size, offset_.load());
    if (!end) co_return fail(EINVAL, "Disk size too large for the chosen offset");
    const std::uint64_t own_end = offset_.load() + size();
    if (request.preallocation != Preallocation::kOff && own_end <= *end &&
        file_->size() < own_end) {
      // The disk's last sector may be written to while the file is filled from its end on, or gets
      // back the end it had: the file holds all of that sector before.
      const ResizeRequest whole{.size = own_end};
      auto rounded = co_await file_->resize(whole);
      PLATTER_CO_TRY(rounded);
    }
    request.size = *end;
    auto resized = co_await file_->resize(request);
    co_return resized;
  }

  Task<Result<void>> do_copy_from(BlockNode& source, std::uint64_t source_offset,
                                  std::uint64_t offset, std::uint64_t length,
                                  CopyFlags flags) override {
    // Both windows go; what remains is between the files.
    auto* const raw = dynamic_cast<RawDriver*>(&source.driver());
    if (!raw) return file_->copy_from(source, source_offset, offset_ + offset, length, flags);
    return file_->copy_from(*raw->file_, raw->offset_ + source_offset, offset_ + offset, length,
                            flags);
  }

  // What the users of the disk need and allow is needed and allowed of the file.
  Task<Result<void>> do_set_permissions(Permissions cumulative) override {
    Permissions rights = cumulative;
    if (file_->flags().force_share) rights.shared = perm::kAll;
    return file_.set_permissions(rights);
  }

  std::vector<Edge*> children() override { return {&file_}; }
  BlockNode* storage() override { return file_.get(); }
  std::optional<std::uint64_t> allocated_size() override {
    return file_->driver().allocated_size();
  }
  std::string exact_filename() const override {
    return offset_.load() == 0 && size_.load() == kToTheEnd ? file_->driver().exact_filename()
                                                            : std::string();
  }
  Result<std::function<Task<Result<void>>()>> plan_change(Options& options) override {
    const auto offset = options.take_size("offset");
    PLATTER_TRY(offset);
    const auto size = options.take_size("size");
    PLATTER_TRY(size);
    if (!*offset && !*size) return std::function<Task<Result<void>>()>();
    const std::uint64_t start = offset->value_or(offset_.load());
    std::optional<std::uint64_t> length = *size;
    if (!length && size_.load() != kToTheEnd) length = size_.load();
    const Result<void> fits = check_window(file_->size(), start, length);
    PLATTER_TRY(fits);
    return [this, start, length] { return change_window(start, length.value_or(kToTheEnd)); };
  }
  bool listens_to_events() const override { return file_->listens_to_events(); }
  Task<void> do_announce(FaultEvent event) override { return file_->announce(event); }

 private:
  Task<Result<void>> announced_read(std::uint64_t offset, IoVec iov, ReadFlags flags) {
    PLATTER_FAULT(*file_, FaultEvent::kReadAio);
    auto read = co_await file_->read(offset_ + offset, iov, flags);
    co_return read;
  }
  Task<Result<void>> announced_write(std::uint64_t offset, IoVec iov, WriteFlags flags) {
    PLATTER_FAULT(*file_, FaultEvent::kWriteAio);
    auto written = co_await file_->write(offset_ + offset, iov, flags);
    co_return written;
  }
  // The rest of the disk's last sector, of which the file holds only a part.
  Task<Result<Extent>> behind_end(std::uint64_t offset, std::uint64_t length) {
    co_return Extent{.offset = offset,
                     .length = length,
                     .kind = ExtentKind::kZero,
                     .node = file_.get(),
                     .host_offset = offset_ + offset};
  }
  Task<Result<Extent>> shifted_extent(std::uint64_t offset, std::uint64_t length) {
    auto extent = co_await file_->extent(offset_ + offset, length);
    PLATTER_CO_TRY(extent);
    extent->offset = offset;
    co_return extent;
  }
  Task<Result<void>> change_window(std::uint64_t start, std::uint64_t length) {
    offset_.store(start);
    size_.store(length);
    co_return {};
  }
  static Task<Result<void>> nothing_to_discard() { co_return {}; }
  static Task<Result<void>> no_compression() {
    co_return fail(ENOTSUP, "the raw format cannot store compressed data");
  }

  Edge file_;
  static constexpr std::uint64_t kToTheEnd = ~std::uint64_t{0};

  std::atomic<std::uint64_t> offset_;
  std::atomic<std::uint64_t> size_;
  const bool grows_;
};

Task<Result<std::unique_ptr<Driver>>> open_raw(OpenContext& context) {
  const auto offset = context.options.take_size("offset");
  PLATTER_CO_TRY(offset);
  const auto size = context.options.take_size("size");
  PLATTER_CO_TRY(size);
  // Rights come with the users (do_set_permissions).
  const Permissions none{.need = 0, .shared = perm::kAll};
  auto file = co_await context.open_child("file", none);
  PLATTER_CO_TRY(file);
  const std::uint64_t start = offset->value_or(0);
  const Result<void> fits = check_window((*file)->size(), start, *size);
  if (!fits) {
    auto closed = co_await file->detach();
    static_cast<void>(closed);
    co_return forward_error(fits);
  }
  co_return std::make_unique<RawDriver>(std::move(*file), start, *size, context.as_storage);
}

// Anything may be a raw image, and everything else is a better guess.
int probe_raw(std::span<const std::byte>, std::string_view) { return 1; }

Task<Result<void>> create_raw(CreateRequest request) {
  auto created = co_await create_protocol(std::move(request.filename),
                                          align_up<std::uint64_t>(request.size, kSector),
                                          std::move(request.protocol_options));
  co_return created;
}

// (All else is the ground floor's: preallocation, ...)
constexpr CreateOption kCreateOptions[] = {
    {.name = "size", .type = CreateOption::Type::kSize, .help = "Virtual disk size"},
};

Task<Result<MeasureResult>> measure_raw(MeasureRequest request) {
  const std::uint64_t size = request.source ? request.source->size() : request.size;
  const std::uint64_t rounded = align_up<std::uint64_t>(size, kSector);
  co_return MeasureResult{.required = rounded, .fully_allocated = rounded, .bitmaps = std::nullopt};
}

const RegisterDriver registered{DriverType{.name = "raw",
                                           .probe = probe_raw,
                                           .open = open_raw,
                                           .create_options = kCreateOptions,
                                           .create = create_raw,
                                           .measure = measure_raw}};

}  // namespace
}  // namespace platter
