#include "virtio/blk_request.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <string_view>

#include "block/base/bytes.h"
#include "block/base/checked.h"
#include "virtio/blk.h"

namespace platter::virtio {

BlkParts split_request(const Chain& chain) {
  BlkParts parts;
  const IoVec readable = chain.readable();
  if (readable.size() >= kBlkHeaderSize) {
    std::array<std::byte, kBlkHeaderSize> copy;
    readable.first(copy.size()).copy_to(copy.data());
    // The copy is what was checked and used from here on, whatever the driver does to the original.
    std::atomic_signal_fence(std::memory_order_seq_cst);
    parts.header = BlkHeader{load_le<std::uint32_t>(&copy[0]), load_le<std::uint64_t>(&copy[8])};
    parts.out = readable.from(kBlkHeaderSize);
  }
  const IoVec writable = chain.writable();
  if (!writable.empty()) {
    parts.in = writable.first(writable.size() - 1);
    parts.status = writable.from(writable.size() - 1).contiguous().data();
  }
  return parts;
}

BlkRange load_range(const IoVec& data, std::size_t index) {
  std::array<std::byte, kBlkRangeSize> copy;
  data.slice(index * kBlkRangeSize, kBlkRangeSize).copy_to(copy.data());
  std::atomic_signal_fence(std::memory_order_seq_cst);
  return {load_le<std::uint64_t>(&copy[0]), load_le<std::uint32_t>(&copy[8]),
          load_le<std::uint32_t>(&copy[12])};
}

bool BlkRequest::fits(const BlkDevice& device, std::uint64_t sector, std::uint64_t bytes) {
  return bytes % kSectorSize == 0 && range_within(sector, bytes / kSectorSize, device.capacity());
}

BlkStatus BlkRequest::report(const BlkDevice& device, const Error& error, std::string_view what,
                             std::uint64_t offset, std::uint64_t length) {
  device.report(error.in(fmt::format("{} of {} bytes at {}", what, length, offset)));
  return BlkStatus::kIoError;
}

BlkRequest::Outcome BlkRequest::get_id(const BlkDevice& device, const IoVec& in) {
  std::array<std::byte, BlkDevice::kSerialSize> id{};
  const std::string& serial = device.options_.serial;
  std::memcpy(id.data(), serial.data(), std::min(serial.size(), id.size()));
  const std::size_t n = std::min(in.size(), id.size());
  if (n == 0) return {BlkStatus::kIoError, 0};
  in.first(n).copy_from(id.data());
  return {BlkStatus::kOk, static_cast<std::uint32_t>(n)};
}

Task<BlkStatus> BlkRequest::ranges(BlkDevice& device, std::uint32_t type, IoVec data) {
  const bool discard = type == kBlkDiscard;
  const std::size_t count = data.size() / kBlkRangeSize;
  if (count == 0 || data.size() % kBlkRangeSize != 0) co_return BlkStatus::kIoError;
  if (count > BlkDevice::kMaxRangeSegments) co_return BlkStatus::kIoError;

  // All are copied and checked before the first is carried out: a request with a bad segment
  // changes nothing.
  std::array<BlkRange, BlkDevice::kMaxRangeSegments> segments;
  for (std::size_t i = 0; i < count; ++i) {
    const BlkRange range = load_range(data, i);
    // Discard may not carry the unmap flag; unknown flags are refused as such (5.2.6.2).
    const std::uint32_t allowed = discard ? 0 : kBlkRangeUnmap;
    if ((range.flags & ~allowed) != 0) co_return BlkStatus::kUnsupported;
    if (range.sectors > BlkDevice::kMaxRangeSectors ||
        !fits(device, range.sector, range.sectors * kSectorSize)) {
      co_return BlkStatus::kIoError;
    }
    segments[i] = range;
  }
  for (std::size_t i = 0; i < count; ++i) {
    const std::uint64_t offset = segments[i].sector * kSectorSize;
    const std::uint64_t length = segments[i].sectors * kSectorSize;
    if (length == 0) continue;
    if (discard) {
      auto done = co_await device.node_.discard(offset, length);
      if (!done) co_return report(device, done.error(), "discard", offset, length);
    } else {
      ZeroFlags flags;
      flags.fua = !device.writeback_.load(std::memory_order_relaxed);
      flags.may_unmap = device.options_.discard && (segments[i].flags & kBlkRangeUnmap) != 0;
      auto done = co_await device.node_.write_zeroes(offset, length, flags);
      if (!done) co_return report(device, done.error(), "write-zeroes", offset, length);
    }
  }
  co_return BlkStatus::kOk;
}

Detached BlkRequest::run(BlkDevice& device, Queue& queue, Chain& chain) {
  const BlkParts parts = split_request(chain);
  if (parts.status == nullptr) {
    device.break_device(
        Error(EPROTO, fmt::format("queue {}: a request has no status byte", queue.index())));
    queue.complete(chain, 0);
    co_return;
  }

  Outcome outcome;
  const BlkHeader header = parts.header.value_or(BlkHeader{});
  // Read-only and what is offered are the device's own, not what the driver acknowledged.
  const bool writable = !device.read_only();
  if (parts.header) {
    switch (header.type) {
      case kBlkIn: {
        if (!fits(device, header.sector, parts.in.size())) break;
        const std::uint64_t offset = header.sector * kSectorSize;
        if (!parts.in.empty()) {
          auto done = co_await device.node_.read(offset, parts.in);
          if (!done) {
            report(device, done.error(), "read", offset, parts.in.size());
            break;
          }
        }
        outcome = {BlkStatus::kOk, static_cast<std::uint32_t>(parts.in.size())};
        break;
      }
      case kBlkOut: {
        if (!writable || !fits(device, header.sector, parts.out.size())) break;
        const std::uint64_t offset = header.sector * kSectorSize;
        if (!parts.out.empty()) {
          WriteFlags flags;
          flags.fua = !device.writeback_.load(std::memory_order_relaxed);
          auto done = co_await device.node_.write(offset, parts.out, flags);
          if (!done) {
            report(device, done.error(), "write", offset, parts.out.size());
            break;
          }
        }
        outcome.status = BlkStatus::kOk;
        break;
      }
      case kBlkFlush: {
        auto done = co_await device.node_.flush();
        outcome.status = done ? BlkStatus::kOk : report(device, done.error(), "flush", 0, 0);
        break;
      }
      case kBlkGetId:
        outcome = get_id(device, parts.in);
        break;
      case kBlkDiscard:
      case kBlkWriteZeroes:
        if (!device.offers_ranges(header.type)) {
          outcome.status = BlkStatus::kUnsupported;
        } else if (writable) {
          outcome.status = co_await ranges(device, header.type, parts.out);
        }
        break;
      default:
        outcome.status = BlkStatus::kUnsupported;
        break;
    }
  }

  *parts.status = static_cast<std::byte>(outcome.status);
  // The used length counts from the start of the writable part, so it may include the status byte,
  // which comes last, only when all before it was written too (2.7.8.2).
  const bool all = outcome.written == parts.in.size();
  queue.complete(chain, outcome.written + (all ? 1u : 0u));
}

}  // namespace platter::virtio
