// How a piece gets from a source to the target.
#include <array>

#include "block/base/checked.h"
#include "block/jobs/copy_run.h"

namespace platter::detail {
namespace {

constexpr std::size_t kLookAt = 512;
// So many pieces are not tried unseen after one that could not be.
constexpr unsigned kPause = 64;

}  // namespace

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
        options_.sparse == 0 ? kCopyLeastUnseen : left_in_grain(piece.offset + at);
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
  if (!result) co_return write_failed(result, offset);
  co_return {};
}

Task<Result<void>> CopyRun::zero_one(std::uint64_t offset, std::uint64_t length) {
  const ZeroFlags flags{.may_unmap = options_.sparse != 0};
  const Result<void> result = co_await target_.write_zeroes(offset, length, flags);
  if (!result) co_return write_failed(result, offset);
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
  if (!got) give_up(read_failed(got, piece.offset).error());
  co_return got.has_value();
}

std::span<std::byte> CopyRun::room(const Piece& piece, Buffer& buffer) const {
  if (buffer.size() == 0) buffer = Buffer(chunk_);
  return buffer.span(0, piece.length);
}

// False: the copy has been given up.
Task<bool> CopyRun::copy_piece(const Piece& piece, Bench& bench) {
  const bool data = piece.kind == Kind::kData;
  Writes& writes = bench.writes;
  bool copied = false;
  bool unseen = false;
  std::span<std::byte> bytes;
  if (data) copied = co_await offloaded(piece);
  if (data && !copied) unseen = co_await may_pass_unseen(piece);
  if (data && !copied && !unseen) {
    bytes = room(piece, bench.buffer);
    const bool fetched = co_await fetch(piece, bytes);
    if (!fetched) co_return false;
  }
  const Result<void> turn = co_await wait_for_turn(piece.sequence);
  if (!turn) co_return false;
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
      bytes = room(piece, bench.buffer);
      const bool fetched = co_await fetch(piece, bytes);
      if (!fetched) co_return false;
      start_writes(piece, bytes, writes);
    }
  }
  for (Task<Result<void>>& task : writes.tasks) {
    const Result<void> written = co_await task;
    if (!written) give_up(written.error());
  }
  writes.tasks.clear();
  co_return true;
}

}  // namespace platter::detail
