// BlkDriver: a virtio-blk driver for tests: builds requests of any shape, sends them, waits.
//
// Threads: one thread per queue, which plays the vCPU of that queue; set-up before they start.
#pragma once

#include <cstring>
#include <span>
#include <vector>

#include "virtio/blk.h"
#include "virtio/blk_request.h"
#include "virtio/testing/direct_driver.h"

namespace platter::virtio::testing {

struct BlkReply {
  std::uint8_t status = 0xff;
  std::uint32_t written = 0;    // what the used element says
  std::vector<std::byte> data;  // the device-writable part without the status
};

class BlkDriver : public DirectDriver {
 public:
  static constexpr std::uint8_t kUntouched = 0xee;  // a status byte that the device left alone

  BlkDriver(BlkDevice& device, TestGuest& guest) : DirectDriver(device, guest), guest_(guest) {}

  // Sends one request, in three descriptors or fewer, and waits for it.
  BlkReply call(std::uint32_t type, std::uint64_t sector, std::span<const std::byte> out,
                std::size_t in_size, unsigned queue = 0) {
    const std::size_t mark = guest_.mark();
    const std::uint64_t header = put_header(type, sector);
    const std::uint64_t data = put(out);
    const std::uint64_t in = guest_.allocate(in_size);
    const std::uint64_t status = guest_.allocate(1);
    *guest_.at(status) = std::byte{kUntouched};
    std::vector<Piece> pieces{{header, kBlkHeaderSize, false}};
    if (!out.empty()) pieces.push_back({data, static_cast<std::uint32_t>(out.size()), false});
    if (in_size != 0) pieces.push_back({in, static_cast<std::uint32_t>(in_size), true});
    pieces.push_back({status, 1, true});
    ring(queue).add(pieces);
    publish(queue);
    BlkReply reply;
    reply.written = wait(queue).length;
    reply.status = std::to_integer<std::uint8_t>(*guest_.at(status));
    reply.data.assign(guest_.at(in), guest_.at(in) + in_size);
    guest_.release(mark);
    return reply;
  }
  BlkReply read(std::uint64_t sector, std::size_t size, unsigned queue = 0) {
    return call(kBlkIn, sector, {}, size, queue);
  }
  BlkReply write(std::uint64_t sector, std::span<const std::byte> data, unsigned queue = 0) {
    return call(kBlkOut, sector, data, 0, queue);
  }
  BlkReply flush() { return call(kBlkFlush, 0, {}, 0); }
  // A discard or write-zeroes request of these segments.
  BlkReply ranges(std::uint32_t type, std::span<const BlkRange> segments) {
    std::vector<std::byte> bytes(segments.size() * kBlkRangeSize);
    for (std::size_t i = 0; i < segments.size(); ++i) {
      std::byte* p = bytes.data() + i * kBlkRangeSize;
      store_le(p, segments[i].sector);
      store_le(p + 8, segments[i].sectors);
      store_le(p + 12, segments[i].flags);
    }
    return call(type, 0, bytes, 0);
  }
  BlkReply ranges(std::uint32_t type, std::initializer_list<BlkRange> segments) {
    return ranges(type, std::span(segments.begin(), segments.size()));
  }

  std::uint64_t put(std::span<const std::byte> bytes) {
    const std::uint64_t at = guest_.allocate(bytes.size());
    if (!bytes.empty()) std::memcpy(guest_.at(at), bytes.data(), bytes.size());
    return at;
  }
  std::uint64_t put_header(std::uint32_t type, std::uint64_t sector) {
    const std::uint64_t at = guest_.allocate(kBlkHeaderSize);
    store_le(guest_.at(at), type);
    store_le(guest_.at(at) + 4, std::uint32_t{0});
    store_le(guest_.at(at) + 8, sector);
    return at;
  }

 private:
  TestGuest& guest_;
};

}  // namespace platter::virtio::testing
