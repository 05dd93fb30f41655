// What requests a driver can take, and what suits it. All sizes in bytes, alignments powers of two.
// Threads: a value.
#pragma once

#include <cstdint>

#include "block/exec/iovec.h"

namespace platter {

struct Limits {
  // Offsets and lengths of do_read/do_write are multiples of this; the node pads and splits.
  std::uint32_t request_alignment = 1;
  // Buffer addresses are multiples of this; unless it is 1, lengths of segments are multiples of
  // request_alignment.
  std::uint32_t memory_alignment = 1;
  // Longest do_read/do_write.
  std::uint64_t max_transfer = std::uint64_t{1} << 30;
  // Zeroing and discarding: what smaller pieces are not worth, and the longest call.
  std::uint32_t zeroes_alignment = 1;
  std::uint64_t max_zeroes = std::uint64_t{1} << 40;
  std::uint32_t discard_alignment = 1;
  std::uint64_t max_discard = std::uint64_t{1} << 40;
  // Best size of a request (a cluster, a stripe); 0: no opinion.
  std::uint32_t optimal_transfer = 0;
  // WriteFlags::fua and ZeroFlags::fua are honoured; otherwise the node flushes after such a write.
  bool native_fua = false;

  // Whether a buffer may be handed to the driver as it is.
  bool memory_fits(const IoVec& iov) const {
    if (memory_alignment == 1) return true;
    bool fits = true;
    iov.for_each([&](std::span<std::byte> s) {
      fits = fits && (reinterpret_cast<std::uintptr_t>(s.data()) & (memory_alignment - 1)) == 0 &&
             (s.size() & (request_alignment - 1)) == 0;
    });
    return fits;
  }
};

// What do_write_zeroes can do better than writing a buffer of zeroes, and flags it honours.
enum class Ability : std::uint8_t { kNone, kEmulated, kNative };

}  // namespace platter
