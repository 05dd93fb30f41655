#include "virtio/blk.h"

#include <algorithm>
#include <bit>

#include "block/base/bytes.h"
#include "block/base/checked.h"
#include "virtio/blk_request.h"

namespace platter::virtio {
namespace {

// Feature bits (5.2.3).
constexpr std::uint64_t kSegMax = bit(2);
constexpr std::uint64_t kGeometry = bit(4);
constexpr std::uint64_t kReadOnly = bit(5);
constexpr std::uint64_t kBlkSize = bit(6);
constexpr std::uint64_t kFlush = bit(9);
constexpr std::uint64_t kTopology = bit(10);
constexpr std::uint64_t kConfigWce = bit(11);
constexpr std::uint64_t kMultiQueue = bit(12);
constexpr std::uint64_t kDiscard = bit(13);
constexpr std::uint64_t kWriteZeroes = bit(14);

// Where the driver sets the cache mode (5.2.4), in bytes.
constexpr std::uint64_t kWritebackOffset = 32;

std::uint64_t features_of(const BlkOptions& options, bool read_only) {
  std::uint64_t features =
      kSegMax | kGeometry | kBlkSize | kFlush | kTopology | kConfigWce | kMultiQueue;
  if (read_only) return features | kReadOnly;
  if (options.discard) features |= kDiscard;
  return features | kWriteZeroes;
}

}  // namespace

Result<std::unique_ptr<BlkDevice>> BlkDevice::create(const GuestMemory& memory, BlockNode& node,
                                                     const BlkOptions& options,
                                                     std::vector<Executor*> executors) {
  if (options.queues == 0 || options.queues > kMaxQueues) {
    return fail(EINVAL, "a disk has 1 to {} queues, not {}", kMaxQueues, options.queues);
  }
  // Three descriptors make the smallest request without indirect tables.
  if (!is_power_of_two(options.queue_size) || options.queue_size < 4 ||
      options.queue_size > SplitRing::kMaxSize) {
    return fail(EINVAL, "queue size {} is not a power of two from 4 to {}", options.queue_size,
                SplitRing::kMaxSize);
  }
  if (!is_power_of_two(options.logical_block_size) || options.logical_block_size < kSectorSize ||
      options.logical_block_size > 4096) {
    return fail(EINVAL, "logical block size {} is not a power of two from 512 to 4096",
                options.logical_block_size);
  }
  if (executors.empty()) return fail(EINVAL, "a disk needs an executor to run on");
  const bool read_only = options.read_only || node.read_only();
  return std::unique_ptr<BlkDevice>(
      new BlkDevice(memory, node, options, std::move(executors), features_of(options, read_only)));
}

BlkDevice::BlkDevice(const GuestMemory& memory, BlockNode& node, const BlkOptions& options,
                     std::vector<Executor*> executors, std::uint64_t features)
    : Device(memory, kDeviceIdBlock, features, std::move(executors), options.queues,
             options.queue_size),
      node_(node),
      options_(options),
      read_only_((features & kReadOnly) != 0),
      writeback_(options.writeback) {
  fill_config();
}

BlkDevice::~BlkDevice() = default;

void BlkDevice::fill_config() {
  const Limits limits = node_.limits();
  const std::uint64_t sectors = node_.size() / kSectorSize;
  capacity_.store(sectors, std::memory_order_release);

  const std::uint32_t block = options_.logical_block_size;
  const std::uint32_t physical = std::max(block, std::min(limits.request_alignment, 1u << 20));
  const std::uint32_t optimal = limits.optimal_transfer / block;
  // The geometry that firmware and old tools expect of large disks; nothing depends on it.
  constexpr std::uint8_t kHeads = 16;
  constexpr std::uint8_t kSectorsPerTrack = 63;
  const std::uint64_t cylinders =
      std::clamp<std::uint64_t>(sectors / (kHeads * kSectorsPerTrack), 1, 16383);
  const std::uint32_t discard_unit = std::max(block, limits.discard_alignment);

  Writer w(config_);
  w.le<std::uint64_t>(sectors);
  w.le<std::uint32_t>(0);                         // size_max: not offered
  w.le<std::uint32_t>(options_.queue_size - 2u);  // seg_max: beside header and status
  w.le<std::uint16_t>(static_cast<std::uint16_t>(cylinders));
  w.le<std::uint8_t>(kHeads);
  w.le<std::uint8_t>(kSectorsPerTrack);
  w.le<std::uint32_t>(block);
  w.le<std::uint8_t>(static_cast<std::uint8_t>(std::countr_zero(physical / block)));
  w.le<std::uint8_t>(0);  // alignment_offset
  w.le<std::uint16_t>(static_cast<std::uint16_t>(physical / block));
  w.le<std::uint32_t>(optimal);
  w.le<std::uint8_t>(writeback_.load(std::memory_order_relaxed) ? 1 : 0);
  w.le<std::uint8_t>(0);
  w.le<std::uint16_t>(options_.queues);
  const bool discard = (offered_features() & kDiscard) != 0;
  w.le<std::uint32_t>(discard ? kMaxRangeSectors : 0);
  w.le<std::uint32_t>(discard ? kMaxRangeSegments : 0);
  w.le<std::uint32_t>(discard ? discard_unit / static_cast<std::uint32_t>(kSectorSize) : 0);
  const bool zeroes = (offered_features() & kWriteZeroes) != 0;
  w.le<std::uint32_t>(zeroes ? kMaxRangeSectors : 0);
  w.le<std::uint32_t>(zeroes ? kMaxRangeSegments : 0);
  w.le<std::uint8_t>(discard && zeroes ? 1 : 0);  // write_zeroes_may_unmap
  w.zeroes(3);
}

void BlkDevice::capacity_changed() {
  change_config([this]() PLATTER_REQUIRES(config_mutex_) { fill_config(); });
}

std::span<const std::byte> BlkDevice::config_bytes() { return config_; }

void BlkDevice::set_writeback(bool writeback) {
  writeback_.store(writeback, std::memory_order_relaxed);
  config_[kWritebackOffset] = writeback ? std::byte{1} : std::byte{0};
}

void BlkDevice::on_features_ok(std::uint64_t features) {
  // A driver that cannot flush gets a disk on which every completed write is durable (5.2.5.2).
  MutexLock lock(config_mutex_);
  set_writeback(options_.writeback && (features & kFlush) != 0);
}

void BlkDevice::on_reset() {
  MutexLock lock(config_mutex_);
  set_writeback(options_.writeback);
}

void BlkDevice::on_config_written(std::uint64_t offset, std::span<const std::byte> bytes) {
  if ((negotiated() & kConfigWce) == 0) return;
  if (offset > kWritebackOffset || offset + bytes.size() <= kWritebackOffset) return;
  set_writeback(bytes[kWritebackOffset - offset] != std::byte{0});
}

bool BlkDevice::offers_ranges(std::uint32_t type) const {
  if (read_only_) return true;  // refused as a write, with an I/O error
  return (offered_features() & (type == kBlkDiscard ? kDiscard : kWriteZeroes)) != 0;
}

void BlkDevice::serve(Queue& queue, Chain& chain) { BlkRequest::run(*this, queue, chain); }

}  // namespace platter::virtio
