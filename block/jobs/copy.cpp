#include "block/jobs/copy.h"

#include <bit>
#include <utility>

#include "block/base/checked.h"
#include "block/exec/timer.h"
#include "block/jobs/copy_run.h"

namespace platter {
namespace detail {
namespace {

// A buffer that stays in the processor's cache between the read, the search for zeroes and the
// write.
constexpr std::uint64_t kChunk = std::uint64_t{512} << 10;
// The longest piece of zeroes or skipped range that is handled, and counted as progress, at once.
constexpr std::uint64_t kLongPiece = std::uint64_t{1} << 30;
// How long a held back walk sleeps before it looks whether it has been cancelled.
constexpr std::chrono::nanoseconds kNap = std::chrono::milliseconds(50);

std::uint64_t grain_for(BlockNode& target, const CopyOptions& options) {
  if (options.compressed_unit != 0) return options.compressed_unit;
  const Limits limits = target.limits();
  const std::uint64_t unit = std::max(
      {std::uint64_t{limits.zeroes_alignment}, std::uint64_t{limits.discard_alignment},
       std::uint64_t{limits.request_alignment}, std::bit_floor(std::max(options.sparse, kSector))});
  // A device with enormous units is not worth enormous buffers.
  return std::clamp(unit, kSector, kChunk * 4);
}

}  // namespace

CopyRun::CopyRun(std::span<const CopySource> sources, BlockNode& target, const CopyOptions& options)
    : sources_(sources),
      target_(target),
      options_(options),
      total_(sources.empty() ? 0 : sources.back().target_offset + sources.back().length),
      grain_(grain_for(target, options)),
      chunk_(options.compressed_unit != 0 ? options.compressed_unit : std::max(kChunk, grain_)),
      offload_(options.offload),
      unseen_(options.still_sources && !options.salvage && options.compressed_unit == 0 &&
              (options.sparse == 0 || grain_ >= kCopyLeastUnseen) && !target.flags().direct) {}

void CopyRun::count(const Piece& piece) {
  done_ += piece.length;
  if (options_.progress) options_.progress(done_);
}

std::unexpected<Error> CopyRun::read_failed(const Result<void>& read, std::uint64_t offset) const {
  const std::string& name = source_at(offset).node->filename();
  return forward_naming(name, read, "{}: error while reading at byte {}", name, offset);
}

std::unexpected<Error> CopyRun::write_failed(const Result<void>& written,
                                             std::uint64_t offset) const {
  const std::string& name = target_.filename();
  return forward_naming(name, written, "{}: error while writing at byte {}", name, offset);
}

void CopyRun::give_up(Error error) {
  const MutexLock lock(turn_mutex_);
  if (!error_) error_ = std::move(error);
  turn_changed_.notify_all();
}

bool CopyRun::gives_up() {
  if (cancelled()) give_up(Error(ECANCELED, "cancelled"));
  const MutexLock lock(turn_mutex_);
  return error_.has_value();
}

const CopySource& CopyRun::source_at(std::uint64_t offset) const {
  const auto after = std::upper_bound(
      sources_.begin(), sources_.end(), offset,
      [](std::uint64_t value, const CopySource& source) { return value < source.target_offset; });
  return *(after - 1);
}

// Fills found_ with the extent at position_.
Task<Result<void>> CopyRun::look_up() {
  const CopySource& source = source_at(position_);
  const std::uint64_t done = position_ - source.target_offset;
  const std::uint64_t within = source.offset + done;
  const std::uint64_t size = source.node->size();
  found_ = Piece{.kind = Kind::kZero, .offset = position_, .length = source.length - done};
  if (within >= size) co_return {};
  const std::uint64_t length = std::min(size - within, source.length - done);
  const bool copying = options_.mode == CopyOptions::Mode::kCopy;
  BlockNode* base = options_.keep_unallocated || !copying ? source.base : nullptr;
  const Result<ChainExtent> extent = co_await chain_extent(*source.node, base, within, length);
  if (!extent && copying && options_.salvage) {
    // Data, a sector of it: reading that tells whether it is lost.
    found_.kind = Kind::kData;
    found_.length = std::min(length, kSector - within % kSector);
    co_return {};
  }
  if (!extent) {
    const std::string& name = source.node->filename();
    co_return forward_naming(name, extent, "{}: error while reading block status at offset {}",
                             name, within);
  }
  found_.length = std::min(extent->length, length);
  if (!copying) {
    const Result<void> chosen = co_await choose_take_up(*extent, source, within);
    co_return chosen;
  }
  if (options_.keep_unallocated && !extent->present) {
    // What no image below the source holds is zeroes of the source's own making.
    const std::uint64_t below = base != nullptr ? base->size() : 0;
    if (within < below && position_ < options_.keep_until) {
      found_.kind = Kind::kSkip;
      found_.length = std::min({found_.length, options_.keep_until - position_, below - within});
    }
  } else if (extent->present && !extent->zero) {
    found_.kind = Kind::kData;
    // (A filter on top may want to see the reads.)
    if (!extent->compressed && extent->host_offset != Extent::kNoHost &&
        &source.node->skip_filters() == source.node) {
      found_.node = extent->node;
      found_.host = extent->host_offset;
    }
  }
  co_return {};
}

// The next piece to be worked on: at most one buffer long when it is data.
Task<std::optional<CopyRun::Piece>> CopyRun::next_piece() {
  const AsyncMutex::Guard guard = co_await walk_mutex_.lock();
  if (position_ >= total_ || gives_up()) co_return std::nullopt;
  if (found_.length == 0) {
    const Result<void> looked = co_await look_up();
    if (!looked) {
      // Before anybody else takes what is not known for a piece.
      give_up(looked.error());
      co_return std::nullopt;
    }
  }
  Piece piece = found_;
  if (options_.compressed_unit != 0) {
    // Whole units only: a shorter extent makes its whole unit data.
    if (piece.length < options_.compressed_unit) {
      piece.kind = Kind::kData;
      piece.length = std::min<std::uint64_t>(options_.compressed_unit, total_ - position_);
    } else {
      piece.length = align_down(piece.length, std::uint64_t{options_.compressed_unit});
    }
  }
  if (piece.kind == Kind::kZero && options_.sparse == 0) piece.kind = Kind::kData;
  const bool compared =
      piece.kind == Kind::kZero && options_.mode == CopyOptions::Mode::kKeepDifferences;
  if (piece.kind == Kind::kData || compared) {
    // Pieces end at multiples of the buffer's size, which grains divide.
    piece.length = std::min(piece.length, chunk_ - piece.offset % chunk_);
  } else {
    piece.length = std::min(piece.length, kLongPiece);
  }
  piece.sequence = next_sequence_++;
  position_ += piece.length;
  const std::uint64_t used = std::min(piece.length, found_.length);
  found_.offset += used;
  found_.host += used;
  found_.length -= used;
  if (used < piece.length) found_.length = 0;
  if (piece.kind == Kind::kData && options_.bytes_per_second != 0) {
    co_await pace(piece.length);
    if (gives_up()) co_return std::nullopt;
  }
  co_return piece;
}

// Holds the walk back so that data pieces leave it no faster than the rate that was asked for.
Task<void> CopyRun::pace(std::uint64_t bytes) {
  const auto now = std::chrono::steady_clock::now();
  due_ = std::max(due_, now);
  for (auto left = due_ - now; left.count() > 0 && !cancelled();
       left = due_ - std::chrono::steady_clock::now()) {
    co_await sleep_for(std::min<std::chrono::nanoseconds>(left, kNap));
  }
  due_ += std::chrono::nanoseconds(static_cast<std::int64_t>(
      static_cast<double>(bytes) * 1e9 / static_cast<double>(options_.bytes_per_second)));
}

Task<Result<void>> CopyRun::wait_for_turn(std::uint64_t sequence) {
  for (;;) {
    UniqueMutexLock lock(turn_mutex_);
    if (error_) co_return std::unexpected(*error_);
    if (!options_.in_order || turn_ == sequence) co_return {};
    co_await turn_changed_.wait(lock);
  }
}

void CopyRun::end_turn() {
  const MutexLock lock(turn_mutex_);
  ++turn_;
  if (!turn_changed_.empty()) turn_changed_.notify_all();
}

Task<void> CopyRun::work() {
  Bench bench;
  for (;;) {
    const std::optional<Piece> next = co_await next_piece();
    if (!next) co_return;
    bool goes_on = false;
    if (options_.mode == CopyOptions::Mode::kCopy) {
      goes_on = co_await copy_piece(*next, bench);
    } else {
      goes_on = co_await take_up(*next, bench);
    }
    if (!goes_on) co_return;
    count(*next);
  }
}

Task<Result<void>> CopyRun::run() {
  std::vector<Task<void>> workers;
  const unsigned count = std::max(options_.in_flight, 1u);
  workers.reserve(count);
  for (unsigned i = 0; i < count; ++i) workers.push_back(work());
  for (Task<void>& worker : workers) co_await worker;
  const MutexLock lock(turn_mutex_);
  if (error_) co_return std::unexpected(*error_);
  co_return {};
}

}  // namespace detail

Task<Result<void>> copy(std::span<const CopySource> sources, BlockNode& target,
                        const CopyOptions& options) {
  detail::CopyRun run(sources, target, options);
  const Result<void> result = co_await run.run();
  co_return result;
}

}  // namespace platter
