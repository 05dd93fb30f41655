// BlkDevice: virtio-blk (virtio 1.2, 5.2) over a block node.
//
// Offers SEG_MAX, GEOMETRY, BLK_SIZE, TOPOLOGY, FLUSH, CONFIG_WCE, MQ, DISCARD, WRITE_ZEROES and,
// on a read-only node, RO; with every configuration field behind them filled. What the device
// allows follows from the device (its node, its options), not from the features a driver
// acknowledged.
//
// Threads: as Device. Requests of queue i run on executors[i % executors.size()].
// Ownership: refers to memory, node and executors, which outlive the stopped device. Whoever makes
// the device holds the node's Edge, with the right to write unless read-only.
// Errors: of requests: the status byte, and one line to the reporter for what the storage failed.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "block/node/node.h"
#include "virtio/device.h"

namespace platter::virtio {

struct BlkOptions {
  std::uint16_t queues = 1;        // 1 to kMaxQueues
  std::uint16_t queue_size = 256;  // entries: a power of two, 4 to SplitRing::kMaxSize
  std::string serial = {};         // at most 20 bytes are shown to the guest
  bool read_only = false;          // in addition to a read-only node
  bool writeback = true;           // the initial cache mode; false: every write is durable at once
  std::uint32_t logical_block_size = 512;  // bytes: a power of two, 512 to 4096
  bool discard = true;                     // offer DISCARD and unmapping WRITE_ZEROES
};

class BlkDevice final : public Device {
 public:
  static constexpr std::uint16_t kMaxQueues = 64;
  static constexpr std::size_t kConfigSize = 60;  // bytes, up to write_zeroes_may_unmap and padding
  static constexpr std::size_t kSerialSize = 20;  // bytes (5.2.6)
  static constexpr std::uint32_t kMaxRangeSegments = 64;  // of one discard or write-zeroes request
  static constexpr std::uint32_t kMaxRangeSectors = (1u << 31) / 512 - 1;

  // Fails with EINVAL on options outside their bounds or an empty list of executors.
  static Result<std::unique_ptr<BlkDevice>> create(const GuestMemory& memory, BlockNode& node,
                                                   const BlkOptions& options,
                                                   std::vector<Executor*> executors);
  ~BlkDevice() override;

  // The node's size has changed: the driver sees the new capacity and is told. Any thread.
  void capacity_changed();

  bool read_only() const { return read_only_; }
  std::uint64_t capacity() const { return capacity_.load(std::memory_order_acquire); }  // sectors

 private:
  friend class BlkRequest;
  BlkDevice(const GuestMemory& memory, BlockNode& node, const BlkOptions& options,
            std::vector<Executor*> executors, std::uint64_t features);

  void on_features_ok(std::uint64_t features) override;
  void on_reset() override;
  void on_config_written(std::uint64_t offset, std::span<const std::byte> bytes) override
      PLATTER_REQUIRES(config_mutex_);
  std::span<const std::byte> config_bytes() override PLATTER_REQUIRES(config_mutex_);
  void serve(Queue& queue, Chain& chain) override;
  void fill_config() PLATTER_REQUIRES(config_mutex_);
  void set_writeback(bool writeback) PLATTER_REQUIRES(config_mutex_);
  bool offers_ranges(std::uint32_t type) const;

  BlockNode& node_;
  const BlkOptions options_;
  const bool read_only_;
  std::atomic<std::uint64_t> capacity_{0};
  // Whether completed writes may sit in a volatile cache until a flush (5.2.5, writeback).
  std::atomic<bool> writeback_{true};
  std::array<std::byte, kConfigSize> config_ PLATTER_GUARDED_BY(config_mutex_){};
};

}  // namespace platter::virtio
