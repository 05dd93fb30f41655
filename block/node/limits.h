// What requests a driver can take, and what suits it. All sizes in bytes, alignments powers of two.
#pragma once

#include <cstdint>

namespace platter {

struct Limits {
  // Offsets and lengths of do_read/do_write are multiples of this; the node pads and splits.
  std::uint32_t request_alignment = 1;
  // Buffer addresses (and segment lengths, when above 1) are multiples of this.
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
};

// What do_write_zeroes can do better than writing a buffer of zeroes, and flags it honours.
enum class Ability : std::uint8_t { kNone, kEmulated, kNative };

}  // namespace platter
