// The driver's side for tests and fuzzers: TestGuest is a guest's memory with an allocator,
// MockRing the driver's end of a split virtqueue, which behaves well unless it is asked not to.
//
// Threads: a MockRing belongs to one thread, which plays the vCPU while a device works on another.
// Ownership: TestGuest owns the memory and outlives rings and devices.
// Errors: running out of test memory or descriptors aborts: a bug of the test.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <optional>
#include <span>
#include <vector>

#include "block/base/checked.h"
#include "block/exec/buffer.h"
#include "virtio/features.h"
#include "virtio/guest_memory.h"
#include "virtio/vring.h"

namespace platter::virtio::testing {

[[noreturn]] inline void test_bug(const char* what) {
  std::fprintf(stderr, "virtio test: %s\n", what);
  std::abort();
}

class TestGuest {
 public:
  // RAM starts here, not at zero, so that a null address is outside guest memory.
  static constexpr std::uint64_t kBase = 0x10000;

  explicit TestGuest(std::size_t size = 4u << 20) : ram_(Buffer::zeroed(size)) {
    if (!memory_.add(kBase, ram_.span(), GuestMemory::Kind::kRam, "ram")) test_bug("no memory");
  }

  GuestMemory& memory() { return memory_; }
  std::uint64_t end() const { return kBase + ram_.size(); }

  // Guest address of `size` fresh bytes.
  std::uint64_t allocate(std::size_t size, std::size_t alignment = 16) {
    next_ = align_up(next_, alignment);
    const std::uint64_t at = kBase + next_;
    next_ += size;
    if (next_ > ram_.size()) test_bug("out of guest memory");
    return at;
  }
  // What was allocated since mark() is free again.
  std::size_t mark() const { return next_; }
  void release(std::size_t mark) { next_ = mark; }

  std::byte* at(std::uint64_t address) { return ram_.data() + (address - kBase); }
  std::span<std::byte> bytes(std::uint64_t address, std::size_t size) {
    return {at(address), size};
  }

 private:
  Buffer ram_;
  GuestMemory memory_;
  std::size_t next_ = 0;
};

// One descriptor's worth of a buffer.
struct Piece {
  std::uint64_t address = 0;
  std::uint32_t length = 0;
  bool writable = false;
};

class MockRing {
 public:
  static constexpr std::uint16_t kNext = 1;
  static constexpr std::uint16_t kWrite = 2;
  static constexpr std::uint16_t kIndirect = 4;

  struct Used {
    std::uint32_t id = 0;
    std::uint32_t length = 0;
  };

  MockRing(TestGuest& guest, std::uint16_t size, std::uint64_t features)
      : guest_(guest),
        size_(size),
        event_index_((features & kFeatureEventIdx) != 0),
        descriptors_(guest.allocate(size * 16u, 16)),
        available_(guest.allocate(6u + size * 2u, 2)),
        used_(guest.allocate(6u + size * 8u, 4)) {
    reset();
  }

  // The memory as a driver leaves it before it enables the queue.
  void reset() {
    std::memset(guest_.at(descriptors_), 0, size_ * 16u);
    std::memset(guest_.at(available_), 0, 6u + size_ * 2u);
    std::memset(guest_.at(used_), 0, 6u + size_ * 8u);
    free_.clear();
    for (unsigned i = size_; i > 0; --i) free_.push_back(static_cast<std::uint16_t>(i - 1));
    chains_.assign(size_, {});
    next_available_ = published_ = next_used_ = 0;
  }

  SplitRing::Layout layout() const { return {size_, descriptors_, available_, used_}; }
  std::uint16_t size() const { return size_; }
  std::size_t free_descriptors() const { return free_.size(); }

  // Makes a chain of `pieces` available, not yet visible to the device. Gives its head.
  std::uint16_t add(std::span<const Piece> pieces) {
    std::vector<std::uint16_t> chain;
    for (std::size_t i = 0; i < pieces.size(); ++i) chain.push_back(take_descriptor());
    for (std::size_t i = 0; i < pieces.size(); ++i) {
      const bool last = i + 1 == pieces.size();
      set_descriptor(
          chain[i], pieces[i].address, pieces[i].length,
          static_cast<std::uint16_t>((pieces[i].writable ? kWrite : 0) | (last ? 0 : kNext)),
          last ? std::uint16_t{0} : chain[i + 1]);
    }
    const std::uint16_t head = chain.front();
    chains_[head] = std::move(chain);
    push_available(head);
    return head;
  }
  std::uint16_t add(std::initializer_list<Piece> pieces) {
    return add(std::span(pieces.begin(), pieces.size()));
  }
  // The same through an indirect table, which is allocated at `table` when given.
  std::uint16_t add_indirect(std::span<const Piece> pieces,
                             std::optional<std::uint64_t> table = std::nullopt) {
    const std::uint64_t at = table ? *table : guest_.allocate(pieces.size() * 16);
    for (std::size_t i = 0; i < pieces.size(); ++i) {
      const bool last = i + 1 == pieces.size();
      write_descriptor(
          at + i * 16, pieces[i].address, pieces[i].length,
          static_cast<std::uint16_t>((pieces[i].writable ? kWrite : 0) | (last ? 0 : kNext)),
          static_cast<std::uint16_t>(last ? 0 : i + 1));
    }
    const std::uint16_t head = take_descriptor();
    set_descriptor(head, at, static_cast<std::uint32_t>(pieces.size() * 16), kIndirect, 0);
    chains_[head] = {head};
    push_available(head);
    return head;
  }

  // Shows the device what was added; true when it asked to be notified.
  bool publish() {
    const std::uint16_t old = published_;
    published_ = next_available_;
    set_available_index(published_);
    if (!event_index_) return (load16(used_) & 1) == 0;
    const std::uint16_t event = load16(used_ + 4 + size_ * 8u);
    return static_cast<std::uint16_t>(published_ - event - 1) <
           static_cast<std::uint16_t>(published_ - old);
  }

  // The next buffer the device is done with; its descriptors are free again.
  std::optional<Used> take_used() {
    const std::uint16_t index = load_shared<std::uint16_t>(guest_.at(used_ + 2), __ATOMIC_ACQUIRE);
    if (index == next_used_) return std::nullopt;
    const std::uint64_t entry = used_ + 4 + (next_used_ & (size_ - 1u)) * 8u;
    const Used used{load_shared<std::uint32_t>(guest_.at(entry)),
                    load_shared<std::uint32_t>(guest_.at(entry + 4))};
    ++next_used_;
    if (used.id < size_) {
      for (std::uint16_t d : chains_[used.id]) free_.push_back(d);
      chains_[used.id].clear();
    }
    return used;
  }
  std::uint16_t used_index() { return load16(used_ + 2); }

  // Asks for an interrupt with the next used buffer; true when there is one already.
  bool enable_interrupts() {
    if (event_index_) {
      store16(available_ + 4 + size_ * 2u, next_used_);
    } else {
      store16(available_, 0);
    }
    return used_index() != next_used_;
  }
  void disable_interrupts() {
    if (event_index_) {
      // Half the number space away: not reached before it is set anew.
      store16(available_ + 4 + size_ * 2u, static_cast<std::uint16_t>(next_used_ - 0x8000));
    } else {
      store16(available_, 1);
    }
  }

  // For drivers that misbehave --------------------------------------------------------------------

  void set_descriptor(std::uint16_t index, std::uint64_t address, std::uint32_t length,
                      std::uint16_t flags, std::uint16_t next) {
    write_descriptor(descriptors_ + index * 16u, address, length, flags, next);
  }
  void write_descriptor(std::uint64_t at, std::uint64_t address, std::uint32_t length,
                        std::uint16_t flags, std::uint16_t next) {
    std::byte* p = guest_.at(at);
    store_le(p, address);
    store_le(p + 8, length);
    store_le(p + 12, flags);
    store_le(p + 14, next);
  }
  void push_available(std::uint16_t head) {
    store16(available_ + 4 + (next_available_ & (size_ - 1u)) * 2u, head);
    ++next_available_;
  }
  void set_available_index(std::uint16_t index) { store16(available_ + 2, index); }

 private:
  std::uint16_t take_descriptor() {
    if (free_.empty()) test_bug("out of descriptors");
    const std::uint16_t d = free_.back();
    free_.pop_back();
    return d;
  }
  // Sequentially consistent, as the barriers of a real driver (2.7.13.3.1, 2.7.13.4.1).
  std::uint16_t load16(std::uint64_t at) {
    return load_shared<std::uint16_t>(guest_.at(at), __ATOMIC_SEQ_CST);
  }
  void store16(std::uint64_t at, std::uint16_t value) {
    store_shared<std::uint16_t>(guest_.at(at), value, __ATOMIC_SEQ_CST);
  }

  TestGuest& guest_;
  const std::uint16_t size_;
  const bool event_index_;
  const std::uint64_t descriptors_;
  const std::uint64_t available_;
  const std::uint64_t used_;
  std::vector<std::uint16_t> free_;
  std::vector<std::vector<std::uint16_t>> chains_;
  std::uint16_t next_available_ = 0;
  std::uint16_t published_ = 0;
  std::uint16_t next_used_ = 0;
};

}  // namespace platter::virtio::testing
