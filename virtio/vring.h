// SplitRing: the device's end of a split virtqueue (virtio 1.2, 2.7).
//
// pop() gives a validated Chain, nothing, or a RingFault: a value that the caller must handle (the
// device goes into DEVICE_NEEDS_RESET), never a chain that just ends. Everything the driver wrote
// is read once, then checked, then used. Used elements are gathered by add_used() and shown to the
// driver together by publish().
//
// Threads: belongs to one executor (the driver at the other end runs on vCPUs at the same time).
// Ownership: refers to guest memory.
// Errors: create() tells what is wrong with the layout; RingFault what is wrong with the contents.
#pragma once

#include <cstdint>
#include <expected>
#include <span>
#include <string_view>
#include <vector>

#include "block/base/error.h"
#include "virtio/chain.h"
#include "virtio/guest_memory.h"

namespace platter::virtio {

// The three areas of a queue (2.6): descriptor table, available ring, used ring in a split ring.
enum class RingPart : std::uint8_t { kDescriptors, kDriver, kDevice };

enum class [[nodiscard]] RingFault : std::uint8_t {
  kIndexJump,              // the available index is further ahead than the queue is long (2.7.6)
  kHeadOutOfRange,         // an available entry names a descriptor beyond the table
  kHeadInFlight,           // a head was made available again before it was used
  kNextOutOfRange,         // a chain continues beyond its table
  kChainTooLong,           // more descriptors than the table has: a loop, or too many segments
  kLengthOverflow,         // the buffers of a chain sum up to more than 2^32 - 1 bytes (2.7.4)
  kEmptyBuffer,            // a descriptor of length zero
  kBadAddress,             // a buffer outside guest memory, or not writable though it must be
  kReadableAfterWritable,  // a device-readable buffer after a device-writable one (2.7.4.2)
  kIndirectNotNegotiated,
  kIndirectNested,    // an indirect table inside an indirect table (2.7.5.3)
  kIndirectWithNext,  // a descriptor that is both indirect and continued (2.7.5.3)
  kIndirectBadTable,  // empty, not a multiple of 16 bytes, too long, or outside guest memory
};
std::string_view to_string(RingFault fault);

class SplitRing {
 public:
  static constexpr std::uint16_t kMaxSize = 1024;
  static constexpr std::size_t kDescriptorSize = 16;  // bytes

  struct Layout {
    std::uint16_t size = 0;         // entries: a power of two, at most kMaxSize
    std::uint64_t descriptors = 0;  // guest addresses
    std::uint64_t driver = 0;
    std::uint64_t device = 0;
  };

  // `features` are the negotiated ones; INDIRECT_DESC and EVENT_IDX matter here. EINVAL when size,
  // alignment (2.7: 16, 2 and 4 bytes) or place is wrong.
  static Result<SplitRing> create(const GuestMemory& memory, const Layout& layout,
                                  std::uint64_t features);

  std::uint16_t size() const { return size_; }

  // True: `chain` was filled. False: nothing is available. After a fault the ring is not to be
  // popped again.
  std::expected<bool, RingFault> pop(Chain& chain);

  // The device is done with `chain` and wrote the first `written` bytes of its writable part.
  void add_used(const Chain& chain, std::uint32_t written);
  bool has_unpublished() const { return used_index_ != published_index_; }
  // Shows the driver all used elements added so far; true when it wants a notification for them.
  bool publish();

  // Asks the driver to notify on the next buffer. True when one is there already: then pop again,
  // since its notification may never come.
  bool enable_notifications();
  void disable_notifications();

 private:
  struct Descriptor {
    std::uint64_t address;
    std::uint32_t length;
    std::uint16_t flags;
    std::uint16_t next;
  };

  SplitRing() = default;
  static Descriptor load_descriptor(const std::byte* table, std::size_t index);
  std::expected<void, RingFault> add_buffer(Chain& chain, const Descriptor& descriptor);
  std::expected<void, RingFault> walk(Chain& chain, std::uint16_t head);
  std::expected<void, RingFault> walk_indirect(Chain& chain, const Descriptor& pointer);
  std::uint16_t available_index(int order) const;
  bool test_and_set_in_flight(std::uint16_t head);

  const GuestMemory* memory_ = nullptr;
  std::byte* descriptors_ = nullptr;
  std::byte* available_ = nullptr;
  std::byte* used_ = nullptr;
  std::uint16_t size_ = 0;
  bool indirect_ = false;
  bool event_index_ = false;

  // Free-running 16-bit counters, as in the ring.
  std::uint16_t next_available_ = 0;      // what pop() takes next
  std::uint16_t known_available_ = 0;     // the driver's index as last read
  std::uint16_t used_index_ = 0;          // what add_used() writes next
  std::uint16_t published_index_ = 0;     // what the driver sees
  std::uint64_t chain_bytes_ = 0;         // of the chain being walked
  std::vector<std::uint64_t> in_flight_;  // a bit per descriptor that heads a popped chain
};

}  // namespace platter::virtio
