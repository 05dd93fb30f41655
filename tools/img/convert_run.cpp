// convert: the work. Opens the sources, makes the target, and hands both to the copy engine.
#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <thread>

#include "block/base/checked.h"
#include "block/jobs/copy.h"
#include "block/node/dirty_bitmap.h"
#include "block/node/open_plain.h"
#include "tools/img/cancel.h"
#include "tools/img/convert.h"
#include "tools/img/new_image.h"
#include "tools/img/progress.h"

namespace platter::img {
namespace {

constexpr std::uint64_t kLargestCluster = std::uint64_t{1} << 30;  // bytes
constexpr std::uint64_t kMostBitmapBytes = std::uint64_t{1} << 28;

class Conversion {
 public:
  explicit Conversion(const ConvertArguments& arguments)
      : arguments_(arguments),
        image_(arguments.target),
        progress_(arguments.common.progress && !arguments.common.quiet) {}

  Task<Result<void>> run() {
    progress_.start();
    const Result<void> sources = co_await open_sources();
    PLATTER_CO_TRY(sources);
    Options options;
    const Result<void> checked = about_target(check_target(options));
    PLATTER_CO_TRY(checked);
    if (arguments_.bitmaps) {
      const Result<void> bitmaps = check_bitmaps();
      PLATTER_CO_TRY(bitmaps);
    }
    if (!arguments_.no_create) {
      for (const Edge& source : sources_) {
        const Result<void> kept = about_target(check_data_file_is_not_of(*source, options));
        PLATTER_CO_TRY(kept);
      }
      const Result<void> backing = co_await check_backing(options);
      PLATTER_CO_TRY(backing);
      const Result<void> created = co_await create_target(std::move(options));
      PLATTER_CO_TRY(created);
    }
    Result<void> step = co_await open_target();
    PLATTER_CO_TRY(step);
    step = co_await copy_all();
    PLATTER_CO_TRY(step);
    if (arguments_.bitmaps) {
      step = co_await copy_bitmaps();
      step = about_target(std::move(step));
    }
    co_return step;
  }

  // Closes everything; tells the first error, unless there was one before.
  Task<Result<void>> close(Result<void> before) {
    Result<void> result = std::move(before);
    if (target_) {
      const Result<void> closed = co_await target_.detach();
      if (result && !closed) result = closed;
    }
    for (Edge& source : sources_) {
      const Result<void> closed = co_await source.detach();
      if (result && !closed) result = closed;
    }
    co_return image_.finish(std::move(result), "convert");
  }

 private:
  Task<Result<void>> open_sources();
  Result<void> check_target(Options& options);
  Result<void> check_bitmaps();
  Task<Result<void>> copy_bitmaps();
  Task<Result<void>> check_backing(const Options& options);
  Task<Result<void>> create_target(Options options);
  Task<Result<void>> open_target();
  Task<Result<void>> copy_all();

  Result<void> about_target(Result<void> result) const {
    if (result) return result;
    return std::unexpected<Error>(about(arguments_.target, result.error()));
  }

  const ConvertArguments& arguments_;
  std::vector<Edge> sources_;
  std::vector<std::uint64_t> lengths_;  // of the sources, in whole sectors
  std::uint64_t total_ = 0;
  Edge target_;
  NewImage image_;
  Progress progress_;
  Options key_secrets_;                 // of the target
  std::optional<std::string> backing_;  // the target's, as given
  std::uint32_t cluster_ = 0;           // bytes that are compressed as one
};

Task<Result<void>> Conversion::open_sources() {
  for (const std::string& name : arguments_.sources) {
    OpenSpec spec;
    spec.filename = name;
    spec.format = arguments_.common.format;
    spec.image_opts = arguments_.common.image_opts;
    spec.cache = arguments_.common.source_cache;
    spec.flags.force_share = arguments_.common.force_share;
    Result<Edge> source = co_await open_image(std::move(spec));
    PLATTER_CO_TRY(source);
    sources_.push_back(std::move(*source));
    // What is copied is to be that of one moment.
    if (!sources_.back()->flags().force_share) {
      const Result<void> still = co_await sources_.back().set_permissions(Permissions::reader());
      if (!still) co_return std::unexpected(not_opened(name, still.error()));
    }
    if (arguments_.snapshot) {
      const Result<void> loaded = co_await load_snapshot(*sources_.back(), *arguments_.snapshot);
      if (!loaded) co_return forward_error(loaded, "{}", name);
    }
    const std::uint64_t length = align_up(sources_.back()->size(), kSector);
    const std::optional<std::uint64_t> sum = checked_add(total_, length);
    if (!sum) co_return fail(EFBIG, "{}: The images are too large to be put together", name);
    lengths_.push_back(length);
    total_ = *sum;
  }
  co_return {};
}

Result<void> Conversion::check_bitmaps() {
  BitmapAbility* const bitmaps = sources_.front()->driver().bitmaps();
  if (bitmaps == nullptr || !bitmaps->supported())
    return fail(ENOTSUP, "{}: Source lacks bitmap support", arguments_.sources.front());
  const std::string format = arguments_.target_format.value_or("raw");
  if (!arguments_.target_image_opts && format != "qcow2") {
    return fail(ENOTSUP, "{}: Format driver '{}' does not support bitmaps", arguments_.target,
                format);
  }
  if (arguments_.skip_broken_bitmaps) return {};
  const std::vector<BitmapInfo> list = bitmaps->list();
  const auto broken = std::find_if(list.rbegin(), list.rend(),
                                   [](const BitmapInfo& bitmap) { return bitmap.inconsistent; });
  if (broken == list.rend()) return {};
  return fail(EINVAL,
              "{}: Cannot copy inconsistent bitmap '{}': "
              "Try --skip-broken-bitmaps, or use 'qemu-img bitmap --remove' to delete it",
              arguments_.sources.front(), broken->name);
}

Task<Result<void>> Conversion::copy_bitmaps() {
  BitmapAbility& from = *sources_.front()->driver().bitmaps();
  BitmapAbility& to = *target_->driver().bitmaps();
  const std::vector<BitmapInfo> list = from.list();
  // What is wrong is said of the last ones first.
  const std::vector<BitmapInfo> there = to.list();
  for (auto bitmap = list.rbegin(); bitmap != list.rend(); ++bitmap) {
    if (bitmap->inconsistent) {
      report("warning: Skipping inconsistent bitmap '{}'", bitmap->name);
      continue;
    }
    if (std::ranges::any_of(there, [&](const BitmapInfo& t) { return t.name == bitmap->name; })) {
      co_return fail(EEXIST, "Failed to create bitmap {}: Bitmap already exists: {}", bitmap->name,
                     bitmap->name);
    }
    if (target_->size() != sources_.front()->size()) {
      co_return fail(
          EINVAL,
          "Failed to populate bitmap {}: Bitmaps are of different sizes (destination size "
          "is {}, source size is {}) and can't be merged",
          bitmap->name, target_->size(), sources_.front()->size());
    }
  }
  // Together, because each step takes space for another directory; but not all that a strange
  // image may hold is kept in memory at once.
  std::vector<BitmapCopy> copies;
  std::uint64_t bytes = 0;
  for (const BitmapInfo& bitmap : list) {
    if (bitmap.inconsistent) continue;
    auto contents = co_await from.contents(bitmap.name);
    if (!contents) co_return forward_error(contents, "Failed to populate bitmap {}", bitmap.name);
    bytes += (*contents)->bytes();
    copies.push_back({bitmap.name, bitmap.enabled, std::move(*contents)});
    if (bytes < kMostBitmapBytes) continue;
    const Result<void> added = co_await to.add_copies(std::move(copies));
    PLATTER_CO_TRY(added);
    copies.clear();
    bytes = 0;
  }
  if (copies.empty()) co_return {};
  const Result<void> added = co_await to.add_copies(std::move(copies));
  co_return added;
}

// Everything about the target that can be wrong before it is made.
Result<void> Conversion::check_target(Options& options) {
  backing_ = arguments_.backing_file;
  if (!arguments_.target_image_opts && !arguments_.no_create) {
    const std::string format = arguments_.target_format.value_or("raw");
    const Result<CreateOptions> known = create_options(format, arguments_.target);
    PLATTER_TRY(known);
    if (arguments_.options) {
      Result<Options> parsed = parse_create_options(*known, *arguments_.options);
      PLATTER_TRY(parsed);
      options = std::move(*parsed);
    }
    if (arguments_.backing_file) {
      if (known->find("backing_file") == nullptr) {
        return fail(ENOTSUP, "Backing file not supported for file format '{}'", format);
      }
      options.set("backing_file", *arguments_.backing_file);
    }
    if (arguments_.backing_format) {
      if (known->find("backing_fmt") == nullptr) {
        return fail(ENOTSUP, "Backing file format not supported for file format '{}'", format);
      }
      options.set("backing_fmt", *arguments_.backing_format);
    }
    if (const std::string* backing = options.peek("backing_file")) {
      backing_ = *backing;
      if (backing->empty()) return fail(EINVAL, "Expected backing file name, got empty string");
      if (sources_.size() > 1) {
        return fail(
            EINVAL,
            "Having a backing file for the target makes no sense when concatenating multiple "
            "input images");
      }
      if (!options.has("backing_fmt")) {
        return fail(EINVAL, "Use of backing file requires explicit backing format");
      }
    }
    if (arguments_.compress) {
      if (known->find("compression_type") == nullptr) {
        return fail(ENOTSUP, "Compression not supported for this file format");
      }
      const Result<std::optional<bool>> encryption = Options(options).take_bool("encryption");
      PLATTER_TRY(encryption);
      if (options.has("encrypt.format") || encryption->value_or(false)) {
        return fail(ENOTSUP, "Compression and encryption not supported at the same time");
      }
      if (options.has("data_file")) {
        return fail(ENOTSUP,
                    "Compression and an external data file not supported at the same time");
      }
      const std::string* preallocation = options.peek("preallocation");
      if (preallocation != nullptr && *preallocation != "off") {
        return fail(ENOTSUP, "Compression and preallocation not supported at the same time");
      }
    }
  }
  // What is made with a key is opened with it.
  for (const auto& [key, value] : options) {
    if (key.ends_with("key-secret")) key_secrets_.set(key, value);
  }
  return {};
}

// That the target could be opened on its backing file, before anything old is overwritten for it.
Task<Result<void>> Conversion::check_backing(const Options& options) {
  const std::string* const format = options.peek("backing_fmt");
  // (An unknown format is refused by the target's own.)
  if (!backing_ || format == nullptr || find_driver(*format) == nullptr) co_return {};
  const auto in_context = [&](const auto& failed) {
    return forward_error(failed, "Could not open '{}': Could not open backing file",
                         arguments_.target);
  };
  const Result<std::string> full = resolve_backing(arguments_.target, *backing_);
  if (!full) co_return in_context(full);
  if (same_file(*full, arguments_.target)) {
    co_return fail(EINVAL,
                   "{}: Trying to create an image with the same filename as the backing file",
                   arguments_.target);
  }
  OpenSpec spec;
  spec.filename = *full;
  spec.format = *format;
  spec.flags.no_io = true;
  spec.flags.force_share = true;
  Result<Edge> opened = co_await open_image(std::move(spec));
  if (!opened) co_return in_context(opened);
  const Result<void> kept = about_target(check_is_not_below(**opened, arguments_.target, options));
  const Result<void> closed = co_await opened->detach();
  co_return kept ? closed : kept;
}

Task<Result<void>> Conversion::create_target(Options options) {
  const std::string format = arguments_.target_format.value_or("raw");
  options.take_string("size");  // the sources decide
  const Result<void> created = co_await image_.create(format, total_, std::move(options));
  if (created) co_return {};
  co_return forward_error(created, "{}: error while converting {}", arguments_.target, format);
}

Task<Result<void>> Conversion::open_target() {
  OpenSpec spec;
  spec.more = key_secrets_;
  image_.locate(spec);
  spec.image_opts = arguments_.target_image_opts;
  if (!arguments_.target_image_opts) spec.format = arguments_.target_format.value_or("raw");
  spec.cache = arguments_.common.cache;
  spec.flags.read_only = false;
  spec.flags.discard_unmap = arguments_.sparse.value_or(CopyOptions::kDefaultSparse) != 0;
  Result<Edge> target = co_await open_image(std::move(spec));
  PLATTER_CO_TRY(target);
  target_ = std::move(*target);
  BitmapAbility* const bitmaps = target_->driver().bitmaps();
  if (arguments_.bitmaps && (bitmaps == nullptr || !bitmaps->supported())) {
    co_return fail(ENOTSUP, "{}: Format driver '{}' does not support bitmaps", arguments_.target,
                   target_->driver_name());
  }
  if (arguments_.compress) {
    const std::uint64_t cluster = target_->driver().info().cluster_size;
    if (cluster == 0 || cluster > kLargestCluster) {
      co_return fail(ENOTSUP, "{}: Compression not supported for this file format",
                     arguments_.target);
    }
    cluster_ = static_cast<std::uint32_t>(cluster);
  }
  if (target_->size() < total_) {
    co_return fail(EINVAL, "{}: output file is smaller than input file", arguments_.target);
  }
  co_return {};
}

Task<Result<void>> Conversion::copy_all() {
  CopyOptions options;
  options.in_flight = arguments_.in_flight;
  options.in_order = !arguments_.out_of_order;
  options.sparse = arguments_.sparse.value_or(CopyOptions::kDefaultSparse);
  options.offload = arguments_.offload;
  options.still_sources = true;
  options.salvage = arguments_.salvage;
  options.bytes_per_second = arguments_.rate;
  // A new image without a backing file reads as zeroes; of another one the caller may know it.
  const bool new_and_empty = !arguments_.no_create && target_->backing() == nullptr;
  options.target_is_zero = (arguments_.target_is_zero || new_and_empty) && options.sparse != 0;
  if (backing_ && target_->backing() != nullptr) {
    // What the source leaves to its backing file, the target leaves to its own, as far as that
    // goes.
    options.keep_unallocated = true;
    options.keep_until = target_->backing()->size();
  }
  if (arguments_.compress) {
    options.compressed_unit = cluster_;
    // Enough to keep every core's compressor busy while others read and write.
    options.in_flight =
        std::max(options.in_flight, 4 * std::max(std::thread::hardware_concurrency(), 1u));
  }
  const bool quiet = arguments_.common.quiet;
  options.on_unreadable = [&](std::uint64_t offset, const Error& error) {
    if (!quiet) report("warning: error while reading offset {}: {}", offset, error.message());
  };
  options.progress = [this](std::uint64_t done) { progress_.update(done, total_); };
  options.cancelled = Cancellation::flag();

  std::vector<CopySource> sources;
  std::uint64_t offset = 0;
  for (std::size_t i = 0; i < sources_.size(); ++i) {
    BlockNode& node = *sources_[i];
    sources.push_back(
        {.node = &node, .target_offset = offset, .length = lengths_[i], .base = node.backing()});
    offset += lengths_[i];
  }
  const Result<void> copied = co_await copy(sources, *target_, options);
  PLATTER_CO_TRY(copied);
  const Result<void> flushed = co_await target_->flush();
  if (!flushed) co_return forward_error(flushed, "error while writing to {}", arguments_.target);
  progress_.finish();
  co_return {};
}

}  // namespace

Task<int> convert(ConvertArguments arguments) {
  Result<void> result;
  {
    Conversion conversion(arguments);
    result = co_await conversion.run();
    result = co_await conversion.close(std::move(result));
  }
  if (result) co_return 0;
  report_error(result.error());
  co_return Cancellation::ended(result) ? Cancellation::status() : 1;
}

}  // namespace platter::img
