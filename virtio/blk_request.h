// One virtio-blk request: its parts, found in a chain whatever its descriptors (virtio 1.2, 5.2.6),
// and the coroutine that carries it out.
//
// Threads: a request belongs to its queue's executor.
// Ownership: refers to device, queue and chain, which outlive it: the device is stopped only after
// the last request has completed.
// Errors: the status byte. A chain without room for a status byte cannot be answered and breaks
// the device.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

#include "block/base/error.h"
#include "block/exec/iovec.h"
#include "virtio/chain.h"
#include "virtio/queue.h"

namespace platter::virtio {

class BlkDevice;

enum class BlkStatus : std::uint8_t { kOk = 0, kIoError = 1, kUnsupported = 2 };

// Request types (5.2.6).
inline constexpr std::uint32_t kBlkIn = 0;
inline constexpr std::uint32_t kBlkOut = 1;
inline constexpr std::uint32_t kBlkFlush = 4;
inline constexpr std::uint32_t kBlkGetId = 8;
inline constexpr std::uint32_t kBlkDiscard = 11;
inline constexpr std::uint32_t kBlkWriteZeroes = 13;

inline constexpr std::uint64_t kSectorSize = 512;   // bytes, always (5.2.4)
inline constexpr std::size_t kBlkHeaderSize = 16;   // bytes
inline constexpr std::size_t kBlkRangeSize = 16;    // bytes of one discard/write-zeroes segment
inline constexpr std::uint32_t kBlkRangeUnmap = 1;  // flag of such a segment

struct BlkHeader {
  std::uint32_t type = 0;
  std::uint64_t sector = 0;
};

// A chain cut into the parts of a request.
struct BlkParts {
  std::optional<BlkHeader> header;  // absent: fewer than 16 readable bytes
  IoVec out;                        // readable, after the header
  IoVec in;                         // writable, before the status byte
  std::byte* status = nullptr;      // the last writable byte; nullptr: there is none
};
BlkParts split_request(const Chain& chain);

// One segment of a discard or write-zeroes request.
struct BlkRange {
  std::uint64_t sector = 0;
  std::uint32_t sectors = 0;
  std::uint32_t flags = 0;
};
// Segment `index` of the request's data, which has that many.
BlkRange load_range(const IoVec& data, std::size_t index);

class BlkRequest {
 public:
  // Carries the request out and completes the chain.
  static Detached run(BlkDevice& device, Queue& queue, Chain& chain);

 private:
  struct Outcome {
    BlkStatus status = BlkStatus::kIoError;
    std::uint32_t written = 0;  // bytes from the start of the writable part, without the status
  };
  static Task<BlkStatus> ranges(BlkDevice& device, std::uint32_t type, IoVec data);
  static Outcome get_id(const BlkDevice& device, const IoVec& in);
  // Whether `bytes` at `sector` is whole sectors inside the disk.
  static bool fits(const BlkDevice& device, std::uint64_t sector, std::uint64_t bytes);
  static BlkStatus report(const BlkDevice& device, const Error& error, std::string_view what,
                          std::uint64_t offset, std::uint64_t length);
};

}  // namespace platter::virtio
