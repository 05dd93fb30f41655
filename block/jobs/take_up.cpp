// What a target takes up from below itself: all of it (stream), or what it would read otherwise
// (rebase).
#include <cstring>

#include "block/jobs/copy_run.h"

namespace platter::detail {
namespace {

// Reads a range of what may be shorter, or not there at all: zeroes follow its end.
Task<Result<void>> read_padded(BlockNode* node, std::uint64_t offset, std::span<std::byte> bytes) {
  const std::uint64_t size = node == nullptr ? 0 : node->size();
  const std::uint64_t stored =
      offset < size ? std::min<std::uint64_t>(bytes.size(), size - offset) : 0;
  if (stored != 0) {
    const Result<void> read = co_await node->read(offset, IoVec(bytes.first(stored)));
    if (!read) {
      co_return forward_error(read, "error while reading from {} at byte {}", node->filename(),
                              offset);
    }
  }
  std::ranges::fill(bytes.subspan(stored), std::byte{0});
  co_return {};
}

}  // namespace

// Decides what becomes of found_, which `extent` of the target's own chain describes.
Task<Result<void>> CopyRun::choose_take_up(ChainExtent extent, const CopySource& source,
                                           std::uint64_t within) {
  const bool differences = options_.mode == CopyOptions::Mode::kKeepDifferences;
  const bool own = extent.present && extent.depth == 0;
  // What nobody holds reads as zeroes; above a base it is the base's.
  const bool zero = extent.zero || !extent.present;
  if (own || (!extent.present && source.base != nullptr)) {
    found_.kind = Kind::kSkip;
  } else if (!zero) {
    found_.kind = Kind::kData;
  } else if (!differences) {
    // Without a base nothing will show through zeroes that are left out.
    found_.kind = source.base != nullptr ? Kind::kZero : Kind::kSkip;
  } else if (options_.new_backing == nullptr || within >= options_.new_backing->size()) {
    found_.kind = Kind::kSkip;
  } else {
    const Result<ChainExtent> then =
        co_await chain_extent(*options_.new_backing, nullptr, within, found_.length);
    if (!then) {
      co_return forward_error(then, "{}: error while reading block status at offset {}",
                              options_.new_backing->filename(), within);
    }
    found_.length = std::min(found_.length, then->length);
    found_.kind = then->zero || !then->present ? Kind::kSkip : Kind::kZero;
  }
  co_return {};
}

// False: the work has been given up.
Task<bool> CopyRun::take_up(const Piece& piece, Bench& bench) {
  if (piece.kind == Kind::kSkip) co_return true;
  Result<void> done;
  if (options_.mode == CopyOptions::Mode::kTakeUp) {
    const TakeUpFlags flags{.hide_zeroes = source_at(piece.offset).base != nullptr};
    done = co_await target_.take_up(piece.offset, piece.length, flags);
    if (!done) {
      const std::string& name = target_.filename();
      done = forward_naming(name, done, "{}: error while taking up data at byte {}", name,
                            piece.offset);
    }
  } else {
    done = co_await keep_differences(piece, bench);
  }
  if (!done) give_up(done.error());
  co_return done.has_value();
}

// Makes zeroes the target's own, whatever it is to stand on. Where they show already, a format that
// has no zeroes without data may have nothing to do for them: there they are written.
Task<Result<void>> CopyRun::hold_zeroes(std::uint64_t offset, std::span<std::byte> zeroes) {
  const Result<void> zeroed = co_await zero_one(offset, zeroes.size());
  PLATTER_CO_TRY(zeroed);
  while (!zeroes.empty()) {
    const Result<ChainExtent> extent =
        co_await chain_extent(target_, target_.backing(), offset, zeroes.size());
    if (!extent) {
      const std::string& name = target_.filename();
      co_return forward_naming(name, extent, "{}: error while reading block status at offset {}",
                               name, offset);
    }
    const std::size_t length = std::min<std::uint64_t>(extent->length, zeroes.size());
    if (!extent->present) {
      if (target_.flags().detect_zeroes != OpenFlags::DetectZeroes::kOff) {
        co_return fail(ENOTSUP,
                       "zeroes at offset {} cannot be kept with detect-zeroes, which writes none",
                       offset);
      }
      const WriteFlags flags{.unchanged = true};
      const Result<void> written =
          co_await target_.write(offset, IoVec(zeroes.first(length)), flags);
      if (!written) co_return write_failed(written, offset);
    }
    offset += length;
    zeroes = zeroes.subspan(length);
  }
  co_return {};
}

// Writes to the target the sectors of the piece that would read otherwise.
Task<Result<void>> CopyRun::keep_differences(const Piece& piece, Bench& bench) {
  const std::span<std::byte> now = room(piece, bench.buffer);
  const std::span<std::byte> then = room(piece, bench.other);
  if (piece.kind == Kind::kZero) {
    std::ranges::fill(now, std::byte{0});
  } else {
    const Result<void> read_now = co_await read(piece.offset, now);
    if (!read_now) co_return read_failed(read_now, piece.offset);
  }
  const Result<void> read_then = co_await read_padded(options_.new_backing, piece.offset, then);
  PLATTER_CO_TRY(read_then);
  if (std::memcmp(now.data(), then.data(), now.size()) == 0) co_return {};
  const auto differs = [&](std::size_t at) {
    const std::size_t n = std::min<std::size_t>(kSector, now.size() - at);
    return std::memcmp(&now[at], &then[at], n) != 0;
  };
  for (std::size_t at = 0; at < now.size();) {
    const std::size_t start = at;
    const bool write = differs(at);
    while (at < now.size() && differs(at) == write) at += kSector;
    if (!write) continue;
    const std::size_t length = std::min(at, now.size()) - start;
    if (piece.kind == Kind::kZero) {
      // What are zeroes stays zeroes, and takes no space where the format can do without.
      const Result<void> zeroed =
          co_await hold_zeroes(piece.offset + start, now.subspan(start, length));
      PLATTER_CO_TRY(zeroed);
      continue;
    }
    const WriteFlags flags{.unchanged = true};
    const Result<void> written =
        co_await target_.write(piece.offset + start, IoVec(now.subspan(start, length)), flags);
    if (!written) co_return write_failed(written, piece.offset + start);
  }
  co_return {};
}

}  // namespace platter::detail
