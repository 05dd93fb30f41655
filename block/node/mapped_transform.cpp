// Data that is stored transformed (encrypted): the pieces of a request go through the transform
// side by side, on the codec threads when there is much of it. What a guest wrote is copied before
// it is encoded: its memory keeps what it holds, and a change meanwhile cannot tear a sector's
// cipher.
#include <vector>

#include "block/exec/task_window.h"
#include "block/exec/workers.h"
#include "block/node/mapped_driver.h"

namespace platter {
namespace {

constexpr std::size_t kPiece = std::size_t{256} << 10;  // bytes that one step encodes and writes
constexpr std::size_t kMaxPieces = 8;                   // of one request, at a time
// Less than this is encoded sooner than another thread wakes up.
constexpr std::size_t kInline = std::size_t{32} << 10;

bool has_whole_units(IoVec iov) {
  bool whole = true;
  iov.for_each([&](std::span<std::byte> piece) {
    whole = whole && piece.size() % DataTransform::kUnit == 0;
  });
  return whole;
}

Error unaligned(std::uint64_t host, std::size_t length) {
  return Error(EINVAL, fmt::format("{} bytes at {} are no whole encrypted sectors", length, host));
}

bool aligned(std::uint64_t host, std::uint64_t guest, std::size_t length) {
  return (host | guest | length) % DataTransform::kUnit == 0;
}

}  // namespace

Task<Result<void>> MappedDriver::pass_through(std::span<std::byte> bytes, std::uint64_t host,
                                              std::uint64_t guest, bool encode) {
  auto work = [this, bytes, host, guest, encode] {
    return encode ? transform_->encode(bytes, host, guest) : transform_->decode(bytes, host, guest);
  };
  if (bytes.size() <= kInline) co_return work();
  auto done = co_await run_on(WorkerPool::codecs(), work);
  co_return done;
}

Task<Result<void>> MappedDriver::read_encoded(BlockNode& node, std::uint64_t host,
                                              std::uint64_t guest, IoVec iov) {
  const bool straight = has_whole_units(iov);
  const Buffer bounce = straight ? Buffer() : Buffer(iov.size());
  const IoVec to = straight ? iov : bounce.iov();
  auto read = co_await read_at(node, host, to);
  PLATTER_CO_TRY(read);
  std::vector<std::span<std::byte>> pieces;
  to.for_each([&](std::span<std::byte> piece) { pieces.push_back(piece); });
  std::uint64_t at = 0;
  for (const std::span<std::byte> piece : pieces) {
    auto decoded = co_await pass_through(piece, host + at, guest + at, false);
    PLATTER_CO_TRY(decoded);
    at += piece.size();
  }
  if (!straight) iov.copy_from(bounce.data());
  co_return {};
}

Task<Result<void>> MappedDriver::write_encoded(BlockNode& node, std::uint64_t host,
                                               std::uint64_t guest, IoVec iov) {
  const Buffer bounce(iov.size());
  iov.copy_to(bounce.data());
  auto encoded = co_await pass_through(bounce.span(), host, guest, true);
  PLATTER_CO_TRY(encoded);
  auto written = co_await write_at(node, host, bounce.iov());
  co_return written;
}

Task<Result<void>> MappedDriver::read_transformed(BlockNode& node, std::uint64_t host,
                                                  std::uint64_t guest, IoVec iov) {
  if (!aligned(host, guest, iov.size())) {
    // The start or the end of a sector, where a node below or the disk ends: all of it is read.
    const std::uint64_t skip = host % DataTransform::kUnit;
    if (guest % DataTransform::kUnit != skip)
      co_return std::unexpected(unaligned(host, iov.size()));
    const std::size_t whole = (skip + iov.size() + DataTransform::kUnit - 1) /
                              DataTransform::kUnit * DataTransform::kUnit;
    const Buffer sectors(whole);
    auto read = co_await read_transformed(node, host - skip, guest - skip, sectors.iov());
    PLATTER_CO_TRY(read);
    iov.copy_from(sectors.data() + skip);
    co_return {};
  }
  TaskWindow window(kMaxPieces);
  while (!iov.empty() && window.good()) {
    const IoVec part = iov.first(std::min(iov.size(), kPiece));
    if (window.full()) co_await window.oldest();
    window.add(read_encoded(node, host, guest, part));
    host += part.size();
    guest += part.size();
    iov = iov.from(part.size());
  }
  while (window.busy()) co_await window.oldest();
  co_return window.take();
}

Task<Result<void>> MappedDriver::write_transformed(BlockNode& node, std::uint64_t host,
                                                   std::uint64_t guest, IoVec iov) {
  if (!aligned(host, guest, iov.size())) co_return std::unexpected(unaligned(host, iov.size()));
  TaskWindow window(kMaxPieces);
  while (!iov.empty() && window.good()) {
    const IoVec part = iov.first(std::min(iov.size(), kPiece));
    if (window.full()) co_await window.oldest();
    window.add(write_encoded(node, host, guest, part));
    host += part.size();
    guest += part.size();
    iov = iov.from(part.size());
  }
  while (window.busy()) co_await window.oldest();
  co_return window.take();
}

}  // namespace platter
