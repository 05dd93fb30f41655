#include "block/jobs/copy.h"

#include <algorithm>
#include <array>
#include <bit>
#include <chrono>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "block/base/checked.h"
#include "block/exec/buffer.h"
#include "block/exec/sync.h"
#include "block/exec/timer.h"

namespace platter {
namespace {

constexpr std::uint64_t kSector = 512;
// A buffer that stays in the processor's cache between the read, the search for zeroes and the
// write.
constexpr std::uint64_t kChunk = std::uint64_t{512} << 10;
// The longest piece of zeroes or skipped range that is handled, and counted as progress, at once.
constexpr std::uint64_t kLongPiece = std::uint64_t{1} << 30;

// Data is copied unseen when this much or more of it can be judged by its first bytes, and those
// are in memory. Where they are not, or the files do not take it, the next pieces are not tried.
constexpr std::uint64_t kLeastUnseen = std::uint64_t{32} << 10;
constexpr std::size_t kLookAt = 512;
constexpr unsigned kPause = 64;

enum class Kind : std::uint8_t { kSkip, kZero, kData };

// A piece of the target, and what is to be done with it.
struct Piece {
  Kind kind = Kind::kSkip;
  std::uint64_t offset = 0;
  std::uint64_t length = 0;
  std::uint64_t sequence = 0;
  // Where the stored bytes of data lie, if that is known.
  BlockNode* node = nullptr;
  std::uint64_t host = 0;
};

class CopyRun {
 public:
  CopyRun(std::span<const CopySource> sources, BlockNode& target, const CopyOptions& options);
  Task<Result<void>> run();

 private:
  Task<void> work();
  Task<Result<std::optional<Piece>>> next_piece();
  Task<Result<void>> look_up();
  Task<Result<void>> read(std::uint64_t offset, std::span<std::byte> buffer);
  Task<Result<void>> read_salvaging(std::uint64_t offset, std::span<std::byte> buffer);
  Task<Result<void>> wait_for_turn(std::uint64_t sequence);
  void end_turn();
  Task<bool> offloaded(const Piece& piece);
  Task<bool> may_pass_unseen(const Piece& piece);
  Task<bool> fetch(const Piece& piece, std::span<std::byte> bytes);
  Task<Result<void>> write_one(std::uint64_t offset, std::span<std::byte> bytes);
  Task<Result<void>> zero_one(std::uint64_t offset, std::uint64_t length);
  Task<void> pace(std::uint64_t bytes);
  void give_up(Error error);
  const CopySource& source_at(std::uint64_t offset) const;

  struct Writes {
    std::vector<Task<Result<void>>> tasks;
  };
  void start_writes(const Piece& piece, std::span<std::byte> buffer, Writes& writes);
  // Bytes from `offset` to the end of its grain.
  std::uint64_t left_in_grain(std::uint64_t offset) const { return grain_ - offset % grain_; }

  const std::span<const CopySource> sources_;
  BlockNode& target_;
  const CopyOptions& options_;
  const std::uint64_t total_;
  // Zeroes are looked for in grains of this many bytes, so that no zeroes are left out of a unit
  // which the target has to allocate as a whole anyway.
  const std::uint64_t grain_;
  const std::uint64_t chunk_;
  bool offload_;
  const bool unseen_;   // whether pieces may be copied unseen,
  unsigned pause_ = 0;  // but not the next so many

  AsyncMutex walk_mutex_;
  std::uint64_t position_ = 0;  // of the next piece
  Piece found_;                 // the rest of the extent at position_; length 0: look up
  std::uint64_t next_sequence_ = 0;
  std::chrono::steady_clock::time_point due_ = std::chrono::steady_clock::now();

  std::mutex turn_mutex_;
  ConditionQueue turn_changed_;
  std::uint64_t turn_ = 0;
  std::optional<Error> error_;
  std::uint64_t done_ = 0;
};

std::uint64_t grain_for(BlockNode& target, const CopyOptions& options) {
  if (options.compressed_unit != 0) return options.compressed_unit;
  const Limits limits = target.limits();
  const std::uint64_t unit = std::max(
      {std::uint64_t{limits.zeroes_alignment}, std::uint64_t{limits.discard_alignment},
       std::uint64_t{limits.request_alignment}, std::bit_floor(std::max(options.sparse, kSector))});
  // A device with enormous units is not worth enormous buffers.
  return std::clamp(unit, kSector, kChunk * 4);
}

CopyRun::CopyRun(std::span<const CopySource> sources, BlockNode& target, const CopyOptions& options)
    : sources_(sources),
      target_(target),
      options_(options),
      total_(sources.empty() ? 0 : sources.back().target_offset + sources.back().length),
      grain_(grain_for(target, options)),
      chunk_(options.compressed_unit != 0 ? options.compressed_unit : std::max(kChunk, grain_)),
      offload_(options.offload),
      unseen_(options.still_sources && !options.salvage && options.compressed_unit == 0 &&
              (options.sparse == 0 || grain_ >= kLeastUnseen) && !target.flags().direct) {}

void CopyRun::give_up(Error error) {
  const std::scoped_lock lock(turn_mutex_);
  if (!error_) error_ = std::move(error);
  turn_changed_.notify_all();
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
  BlockNode* base = options_.keep_unallocated ? source.base : nullptr;
  const Result<ChainExtent> extent = co_await chain_extent(*source.node, base, within, length);
  if (!extent)
    co_return forward_error(extent, "error while reading block status at offset {}", within);
  found_.length = std::min(extent->length, length);
  if (options_.keep_unallocated && !extent->present) {
    if (position_ < options_.keep_until) {
      found_.kind = Kind::kSkip;
      found_.length = std::min(found_.length, options_.keep_until - position_);
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
Task<Result<std::optional<Piece>>> CopyRun::next_piece() {
  const AsyncMutex::Guard guard = co_await walk_mutex_.lock();
  if (position_ >= total_ || error_) co_return std::nullopt;
  if (found_.length == 0) {
    const Result<void> looked = co_await look_up();
    PLATTER_CO_TRY(looked);
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
  if (piece.kind == Kind::kData) {
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
  if (piece.kind == Kind::kData && options_.bytes_per_second != 0) co_await pace(piece.length);
  co_return piece;
}

// Holds the walk back so that data pieces leave it no faster than the rate that was asked for.
Task<void> CopyRun::pace(std::uint64_t bytes) {
  const auto now = std::chrono::steady_clock::now();
  due_ = std::max(due_, now);
  if (due_ > now) co_await sleep_for(due_ - now);
  due_ += std::chrono::nanoseconds(static_cast<std::int64_t>(
      static_cast<double>(bytes) * 1e9 / static_cast<double>(options_.bytes_per_second)));
}

// Reads [offset, ...) of the sources laid end to end.
Task<Result<void>> CopyRun::read(std::uint64_t offset, std::span<std::byte> buffer) {
  while (!buffer.empty()) {
    const CopySource& source = source_at(offset);
    const std::uint64_t done = offset - source.target_offset;
    const std::uint64_t within = source.offset + done;
    const std::uint64_t here = std::min<std::uint64_t>(buffer.size(), source.length - done);
    const std::uint64_t size = source.node->size();
    const std::uint64_t stored = within < size ? std::min(here, size - within) : 0;
    if (stored != 0) {
      const Result<void> result = co_await source.node->read(within, IoVec(buffer.first(stored)));
      PLATTER_CO_TRY(result);
    }
    std::ranges::fill(buffer.subspan(stored, here - stored), std::byte{0});
    offset += here;
    buffer = buffer.subspan(here);
  }
  co_return {};
}

// Reads sector by sector, with zeroes for what cannot be read.
Task<Result<void>> CopyRun::read_salvaging(std::uint64_t offset, std::span<std::byte> buffer) {
  for (std::size_t at = 0; at < buffer.size(); at += kSector) {
    const std::span<std::byte> sector =
        buffer.subspan(at, std::min<std::size_t>(kSector, buffer.size() - at));
    const Result<void> result = co_await read(offset + at, sector);
    if (!result) {
      std::ranges::fill(sector, std::byte{0});
      if (options_.on_unreadable) options_.on_unreadable(offset + at, result.error());
    }
  }
  co_return {};
}

Task<Result<void>> CopyRun::wait_for_turn(std::uint64_t sequence) {
  for (;;) {
    std::unique_lock<std::mutex> lock(turn_mutex_);
    if (error_) co_return std::unexpected(*error_);
    if (!options_.in_order || turn_ == sequence) co_return {};
    co_await turn_changed_.wait(lock);
  }
}

void CopyRun::end_turn() {
  const std::scoped_lock lock(turn_mutex_);
  ++turn_;
  if (!turn_changed_.empty()) turn_changed_.notify_all();
}

Task<bool> CopyRun::offloaded(const Piece& piece) {
  const CopySource& source = source_at(piece.offset);
  const std::uint64_t done = piece.offset - source.target_offset;
  const std::uint64_t within = source.offset + done;
  if (!offload_ || !range_within(done, piece.length, source.length) ||
      !range_within(within, piece.length, source.node->size())) {
    co_return false;
  }
  const Result<void> result =
      co_await target_.copy_from(*source.node, within, piece.offset, piece.length);
  if (!result) offload_ = false;  // the ordinary way from here on; it finds the error, if it is one
  co_return result.has_value();
}

// Whether the piece can go from file to file: each of its grains begins with something other than
// zeroes, as a look at what is in memory tells.
Task<bool> CopyRun::may_pass_unseen(const Piece& piece) {
  if (!unseen_ || piece.node == nullptr || piece.node->flags().direct) co_return false;
  if (pause_ != 0) {
    --pause_;
    co_return false;
  }
  std::array<std::byte, kLookAt> head;
  for (std::uint64_t at = 0; at < piece.length;) {
    const std::uint64_t left = piece.length - at;
    const std::uint64_t step =
        options_.sparse == 0 ? kLeastUnseen : left_in_grain(piece.offset + at);
    const std::span<std::byte> seen = std::span(head).first(std::min<std::size_t>(left, kLookAt));
    auto look = piece.node->read(piece.host + at, IoVec(seen));
    const bool in_memory = look.done();
    const Result<void> looked = co_await look;
    if (!in_memory || !looked) {
      pause_ = kPause;
      co_return false;
    }
    if (options_.sparse != 0 && is_zero(seen)) co_return false;
    at += std::min(step, left);
  }
  co_return true;
}

Task<Result<void>> CopyRun::write_one(std::uint64_t offset, std::span<std::byte> bytes) {
  const WriteFlags flags{.compressed = options_.compressed_unit != 0};
  const Result<void> result = co_await target_.write(offset, IoVec(bytes), flags);
  if (!result) co_return forward_error(result, "error while writing at byte {}", offset);
  co_return {};
}

Task<Result<void>> CopyRun::zero_one(std::uint64_t offset, std::uint64_t length) {
  const ZeroFlags flags{.may_unmap = options_.sparse != 0};
  const Result<void> result = co_await target_.write_zeroes(offset, length, flags);
  if (!result) co_return forward_error(result, "error while writing at byte {}", offset);
  co_return {};
}

// Starts what a buffer of data needs: a write for each run of grains that hold something, and for
// each run of zeroes what zeroes need.
void CopyRun::start_writes(const Piece& piece, std::span<std::byte> buffer, Writes& writes) {
  if (options_.sparse == 0) {
    writes.tasks.push_back(write_one(piece.offset, buffer));
    return;
  }
  const auto grain_end = [&](std::size_t at) {
    return at + std::min<std::size_t>(left_in_grain(piece.offset + at), buffer.size() - at);
  };
  std::size_t start = 0;
  while (start < buffer.size()) {
    std::size_t end = grain_end(start);
    const bool zero = is_zero(buffer.subspan(start, end - start));
    while (end < buffer.size()) {
      const std::size_t next = grain_end(end);
      if (is_zero(buffer.subspan(end, next - end)) != zero) break;
      end = next;
    }
    if (!zero) {
      writes.tasks.push_back(write_one(piece.offset + start, buffer.subspan(start, end - start)));
    } else if (!options_.target_is_zero) {
      writes.tasks.push_back(zero_one(piece.offset + start, end - start));
    }
    start = end;
  }
}

// Reads a piece; false: it cannot be read, and the copy has been given up.
Task<bool> CopyRun::fetch(const Piece& piece, std::span<std::byte> bytes) {
  Result<void> got = co_await read(piece.offset, bytes);
  if (!got && options_.salvage) got = co_await read_salvaging(piece.offset, bytes);
  if (!got) give_up(got.error().in(fmt::format("error while reading at byte {}", piece.offset)));
  co_return got.has_value();
}

Task<void> CopyRun::work() {
  Buffer buffer;
  Writes writes;
  const auto buffer_for = [&](const Piece& piece) {
    if (buffer.size() == 0) buffer = Buffer(chunk_);
    return buffer.span(0, piece.length);
  };
  for (;;) {
    const Result<std::optional<Piece>> next = co_await next_piece();
    if (!next) give_up(next.error());
    if (!next || !*next) co_return;
    const Piece piece = **next;
    const bool data = piece.kind == Kind::kData;
    bool copied = false;
    bool unseen = false;
    std::span<std::byte> bytes;
    if (data) copied = co_await offloaded(piece);
    if (data && !copied) unseen = co_await may_pass_unseen(piece);
    if (data && !copied && !unseen) {
      bytes = buffer_for(piece);
      const bool fetched = co_await fetch(piece, bytes);
      if (!fetched) co_return;
    }
    const Result<void> turn = co_await wait_for_turn(piece.sequence);
    if (!turn) co_return;
    if (unseen) {
      const CopyFlags plain{.may_share = false};
      writes.tasks.push_back(
          target_.copy_from(*piece.node, piece.host, piece.offset, piece.length, plain));
    } else if (!bytes.empty()) {
      start_writes(piece, bytes, writes);
    } else if (piece.kind == Kind::kZero && !options_.target_is_zero) {
      writes.tasks.push_back(zero_one(piece.offset, piece.length));
    }
    end_turn();
    if (unseen) {
      const Result<void> passed = co_await writes.tasks.back();
      writes.tasks.clear();
      if (!passed) {
        // The ordinary way; it finds the error, if it is one.
        pause_ = kPause;
        bytes = buffer_for(piece);
        const bool fetched = co_await fetch(piece, bytes);
        if (!fetched) co_return;
        start_writes(piece, bytes, writes);
      }
    }
    for (Task<Result<void>>& task : writes.tasks) {
      const Result<void> written = co_await task;
      if (!written) give_up(written.error());
    }
    writes.tasks.clear();
    done_ += piece.length;
    if (options_.progress) options_.progress(done_);
  }
}

Task<Result<void>> CopyRun::run() {
  std::vector<Task<void>> workers;
  const unsigned count = std::max(options_.in_flight, 1u);
  workers.reserve(count);
  for (unsigned i = 0; i < count; ++i) workers.push_back(work());
  for (Task<void>& worker : workers) co_await worker;
  if (error_) co_return std::unexpected(*error_);
  co_return {};
}

}  // namespace

Task<Result<void>> copy(std::span<const CopySource> sources, BlockNode& target,
                        const CopyOptions& options) {
  CopyRun run(sources, target, options);
  const Result<void> result = co_await run.run();
  co_return result;
}

}  // namespace platter
