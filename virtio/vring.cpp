#include "virtio/vring.h"

#include <array>
#include <limits>

#include "block/base/checked.h"
#include "virtio/features.h"

namespace platter::virtio {
namespace {

// Descriptor flags (2.7.5).
constexpr std::uint16_t kFlagNext = 1;
constexpr std::uint16_t kFlagWrite = 2;
constexpr std::uint16_t kFlagIndirect = 4;

// Where things lie in the available and used rings (2.7.6, 2.7.8), in bytes.
constexpr std::size_t kRingFlags = 0;
constexpr std::size_t kRingIndex = 2;
constexpr std::size_t kRingEntries = 4;
constexpr std::size_t kAvailableEntry = 2;
constexpr std::size_t kUsedEntry = 8;

constexpr std::uint16_t kAvailableNoInterrupt = 1;
constexpr std::uint16_t kUsedNoNotify = 1;

constexpr std::size_t available_size(std::size_t entries) {
  return kRingEntries + entries * kAvailableEntry + 2;
}
constexpr std::size_t used_size(std::size_t entries) {
  return kRingEntries + entries * kUsedEntry + 2;
}

Result<std::byte*> locate(const GuestMemory& memory, std::string_view what, std::uint64_t address,
                          std::uint64_t length, std::uint64_t alignment,
                          GuestMemory::Access access) {
  if (!is_aligned(address, alignment)) {
    return fail(EINVAL, "the {} at {:#x} is not aligned to {} bytes", what, address, alignment);
  }
  const auto span = memory.find(address, length, access);
  if (!span) {
    return fail(EINVAL, "the {} at {:#x} of {} bytes is not in guest memory", what, address,
                length);
  }
  return span->data();
}

}  // namespace

std::string_view to_string(RingFault fault) {
  switch (fault) {
    case RingFault::kIndexJump:
      return "the available index jumps further than the queue is long";
    case RingFault::kHeadOutOfRange:
      return "an available entry is beyond the descriptor table";
    case RingFault::kHeadInFlight:
      return "a buffer was made available again before it was used";
    case RingFault::kNextOutOfRange:
      return "a descriptor chain leaves its table";
    case RingFault::kChainTooLong:
      return "a descriptor chain is too long or loops";
    case RingFault::kLengthOverflow:
      return "a descriptor chain is longer than 4 GiB";
    case RingFault::kEmptyBuffer:
      return "a descriptor has length zero";
    case RingFault::kBadAddress:
      return "a descriptor refers to what is not guest memory";
    case RingFault::kReadableAfterWritable:
      return "a readable descriptor follows a writable one";
    case RingFault::kIndirectNotNegotiated:
      return "an indirect descriptor although the feature was not negotiated";
    case RingFault::kIndirectNested:
      return "an indirect table refers to another";
    case RingFault::kIndirectWithNext:
      return "an indirect descriptor is continued";
    case RingFault::kIndirectBadTable:
      return "an indirect table has a bad place or length";
  }
  return "an unknown ring fault";
}

Result<SplitRing> SplitRing::create(const GuestMemory& memory, const Layout& layout,
                                    std::uint64_t features) {
  const std::size_t n = layout.size;
  if (!is_power_of_two(n) || n > kMaxSize) {
    return fail(EINVAL, "queue size {} is not a power of two up to {}", n, kMaxSize);
  }
  using Access = GuestMemory::Access;
  auto descriptors = locate(memory, "descriptor table", layout.descriptors, n * kDescriptorSize, 16,
                            Access::kRead);
  PLATTER_TRY(descriptors);
  auto available =
      locate(memory, "available ring", layout.driver, available_size(n), 2, Access::kRead);
  PLATTER_TRY(available);
  auto used = locate(memory, "used ring", layout.device, used_size(n), 4, Access::kWrite);
  PLATTER_TRY(used);

  SplitRing ring;
  ring.memory_ = &memory;
  ring.descriptors_ = *descriptors;
  ring.available_ = *available;
  ring.used_ = *used;
  ring.size_ = layout.size;
  ring.indirect_ = (features & kFeatureIndirectDesc) != 0;
  ring.event_index_ = (features & kFeatureEventIdx) != 0;
  ring.in_flight_.assign(div_round_up(n, 64), 0);
  return ring;
}

std::uint16_t SplitRing::available_index(int order) const {
  return load_shared<std::uint16_t>(available_ + kRingIndex, order);
}

SplitRing::Descriptor SplitRing::load_descriptor(const std::byte* table, std::size_t index) {
  std::array<std::byte, kDescriptorSize> copy;
  copy_shared(copy, table + index * kDescriptorSize);
  return {load_le<std::uint64_t>(&copy[0]), load_le<std::uint32_t>(&copy[8]),
          load_le<std::uint16_t>(&copy[12]), load_le<std::uint16_t>(&copy[14])};
}

bool SplitRing::test_and_set_in_flight(std::uint16_t head) {
  std::uint64_t& word = in_flight_[head / 64];
  const std::uint64_t mask = std::uint64_t{1} << (head % 64);
  const bool was = (word & mask) != 0;
  word |= mask;
  return was;
}

std::expected<bool, RingFault> SplitRing::pop(Chain& chain) {
  if (next_available_ == known_available_) {
    // Acquire: pairs with the driver's barrier between its entries and its index
    // (2.7.13.2, 2.7.13.3), so that entries and descriptors below this index are what the driver
    // wrote.
    known_available_ = available_index(__ATOMIC_ACQUIRE);
    const auto pending = static_cast<std::uint16_t>(known_available_ - next_available_);
    if (pending == 0) return false;
    if (pending > size_) return std::unexpected(RingFault::kIndexJump);
  }
  const std::size_t slot = next_available_ & (size_ - 1u);
  const auto head = load_shared<std::uint16_t>(available_ + kRingEntries + slot * kAvailableEntry);
  if (head >= size_) return std::unexpected(RingFault::kHeadOutOfRange);
  if (test_and_set_in_flight(head)) return std::unexpected(RingFault::kHeadInFlight);
  ++next_available_;

  chain.clear();
  chain_bytes_ = 0;
  if (auto walked = walk(chain, head); !walked) return std::unexpected(walked.error());
  return true;
}

std::expected<void, RingFault> SplitRing::walk(Chain& chain, std::uint16_t head) {
  std::uint16_t index = head;
  for (std::uint16_t count = 1; count <= size_; ++count) {
    const Descriptor d = load_descriptor(descriptors_, index);
    if ((d.flags & kFlagIndirect) != 0) {
      // Direct descriptors may come before the one indirect table, none after it (2.7.5.3.2).
      if ((d.flags & kFlagNext) != 0) return std::unexpected(RingFault::kIndirectWithNext);
      chain.identify(head, count);
      return walk_indirect(chain, d);
    }
    if (auto added = add_buffer(chain, d); !added) return added;
    if ((d.flags & kFlagNext) == 0) {
      chain.identify(head, count);
      return {};
    }
    if (d.next >= size_) return std::unexpected(RingFault::kNextOutOfRange);
    index = d.next;
  }
  return std::unexpected(RingFault::kChainTooLong);
}

std::expected<void, RingFault> SplitRing::walk_indirect(Chain& chain, const Descriptor& pointer) {
  if (!indirect_) return std::unexpected(RingFault::kIndirectNotNegotiated);
  const std::size_t entries = pointer.length / kDescriptorSize;
  if (entries == 0 || pointer.length % kDescriptorSize != 0 || entries > Chain::kMaxSegments) {
    return std::unexpected(RingFault::kIndirectBadTable);
  }
  const auto table = memory_->find(pointer.address, pointer.length, GuestMemory::Access::kRead);
  if (!table) return std::unexpected(RingFault::kIndirectBadTable);

  std::size_t index = 0;
  for (std::size_t count = 0; count < entries; ++count) {
    const Descriptor d = load_descriptor(table->data(), index);
    if ((d.flags & kFlagIndirect) != 0) return std::unexpected(RingFault::kIndirectNested);
    if (auto added = add_buffer(chain, d); !added) return added;
    if ((d.flags & kFlagNext) == 0) return {};
    if (d.next >= entries) return std::unexpected(RingFault::kNextOutOfRange);
    index = d.next;
  }
  return std::unexpected(RingFault::kChainTooLong);
}

std::expected<void, RingFault> SplitRing::add_buffer(Chain& chain, const Descriptor& d) {
  const bool writable = (d.flags & kFlagWrite) != 0;
  if (d.length == 0) return std::unexpected(RingFault::kEmptyBuffer);
  if (!writable && chain.has_writable()) {
    return std::unexpected(RingFault::kReadableAfterWritable);
  }
  chain_bytes_ += d.length;
  if (chain_bytes_ > std::numeric_limits<std::uint32_t>::max()) {
    return std::unexpected(RingFault::kLengthOverflow);
  }
  const auto bytes = memory_->find(
      d.address, d.length, writable ? GuestMemory::Access::kWrite : GuestMemory::Access::kRead);
  if (!bytes) return std::unexpected(RingFault::kBadAddress);
  if (!chain.add(*bytes, writable)) return std::unexpected(RingFault::kChainTooLong);
  return {};
}

void SplitRing::add_used(const Chain& chain, std::uint32_t written) {
  in_flight_[chain.id() / 64] &= ~(std::uint64_t{1} << (chain.id() % 64));
  // Not visible before publish(): the driver reads no entry at or beyond the index it knows. At
  // most size_ chains are in flight, so unpublished entries never catch up with what it may still
  // read.
  std::byte* entry = used_ + kRingEntries + (used_index_ & (size_ - 1u)) * kUsedEntry;
  store_shared<std::uint32_t>(entry, chain.id());
  store_shared<std::uint32_t>(entry + 4, written);
  ++used_index_;
}

bool SplitRing::publish() {
  const std::uint16_t old = published_index_;
  published_index_ = used_index_;
  // As a release: the entries and the data before them are visible to a driver that sees the index
  // (2.7.8.2, 2.7.14). As a sequentially consistent store before a sequentially consistent load:
  // either we see the driver's latest wish for a notification below, or the driver, which looks at
  // the index again after it wished (2.7.7.1, 2.7.14), sees this index. Without that order both
  // could miss, and the driver would sleep for ever.
  store_shared<std::uint16_t>(used_ + kRingIndex, used_index_, __ATOMIC_SEQ_CST);
  if (!event_index_) {
    const auto flags = load_shared<std::uint16_t>(available_ + kRingFlags, __ATOMIC_SEQ_CST);
    return (flags & kAvailableNoInterrupt) == 0;
  }
  // used_event (2.7.7): notify when the entry with that index is among those just published.
  const auto event = load_shared<std::uint16_t>(available_ + kRingEntries + size_ * kAvailableEntry,
                                                __ATOMIC_SEQ_CST);
  return static_cast<std::uint16_t>(used_index_ - event - 1) <
         static_cast<std::uint16_t>(used_index_ - old);
}

bool SplitRing::enable_notifications() {
  // The mirror image of publish(): our wish is stored before the index is read again, and the
  // driver stores its index before it reads our wish (2.7.10.1, 2.7.13.4), so one of us sees the
  // other.
  if (event_index_) {
    store_shared<std::uint16_t>(used_ + kRingEntries + size_ * kUsedEntry, next_available_,
                                __ATOMIC_SEQ_CST);
  } else {
    store_shared<std::uint16_t>(used_ + kRingFlags, 0, __ATOMIC_SEQ_CST);
  }
  return available_index(__ATOMIC_SEQ_CST) != next_available_;
}

void SplitRing::disable_notifications() {
  // With EVENT_IDX an event index that was passed already asks for nothing.
  if (!event_index_) store_shared<std::uint16_t>(used_ + kRingFlags, kUsedNoNotify);
}

}  // namespace platter::virtio
