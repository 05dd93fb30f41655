#include "block/node/node.h"

#include "block/base/checked.h"
#include "block/node/graph_access.h"
#include "block/node/nesting.h"
#include "block/node/registry.h"

namespace platter {

NodePtr BlockNode::create(const DriverType& type, std::unique_ptr<Driver> driver,
                          std::string node_name, std::string filename, OpenFlags flags) {
  return NodePtr(
      new BlockNode(type, std::move(driver), std::move(node_name), std::move(filename), flags));
}

BlockNode::BlockNode(const DriverType& type, std::unique_ptr<Driver> driver, std::string node_name,
                     std::string filename, OpenFlags flags)
    : type_(type),
      driver_(std::move(driver)),
      node_name_(std::move(node_name)),
      filename_(std::move(filename)),
      listens_(driver_->listens_to_events()),
      flags_(flags) {
  refresh();
}

BlockNode::~BlockNode() = default;

std::string_view BlockNode::driver_name() const { return type_.name; }

void BlockNode::refresh() {
  limits_ = driver_->limits();
  // The loops below rely on these.
  limits_.max_transfer = std::max<std::uint64_t>(
      align_down<std::uint64_t>(limits_.max_transfer, limits_.request_alignment),
      limits_.request_alignment);
  limits_.zeroes_alignment = std::max(limits_.zeroes_alignment, limits_.request_alignment);
  limits_.discard_alignment = std::max(limits_.discard_alignment, limits_.request_alignment);
  limits_.max_zeroes = std::max<std::uint64_t>(
      align_down<std::uint64_t>(limits_.max_zeroes, limits_.zeroes_alignment),
      limits_.zeroes_alignment);
  limits_.max_discard = std::max<std::uint64_t>(
      align_down<std::uint64_t>(limits_.max_discard, limits_.discard_alignment),
      limits_.discard_alignment);
  can_grow_ = driver_->can_grow();
  guard_head_ = probed_ && type_.name == "raw";
  plain_writes_ = !flags_.read_only && !flags_.writethrough && !guard_head_ &&
                  flags_.detect_zeroes == OpenFlags::DetectZeroes::kOff &&
                  limits_.request_alignment == 1;
}

BlockNode& BlockNode::skip_filters() {
  BlockNode* node = this;
  while (BlockNode* below = node->driver_->filtered()) node = below;
  return *node;
}

Result<void> BlockNode::check_range(std::uint64_t offset, std::uint64_t length) const {
  if (!range_within(offset, length, size())) [[unlikely]] {
    return fail(EINVAL, "request of {} bytes at offset {} reaches beyond the end at {}", length,
                offset, size());
  }
  return {};
}

Result<void> BlockNode::check_write(std::uint64_t offset, std::uint64_t length) const {
  if (flags_.read_only) [[unlikely]]
    return fail(EROFS, "node '{}' is read-only", node_name_);
  if (!can_grow_) return check_range(offset, length);
  if (!range_within(offset, length, static_cast<std::uint64_t>(INT64_MAX))) [[unlikely]] {
    return fail(EFBIG, "request of {} bytes at offset {} reaches beyond 2^63", length, offset);
  }
  return {};
}

Task<Result<void>> BlockNode::enter() {
  while (!gate_.enter()) {
    UniqueMutexLock lock(pause_mutex_);
    if (closed_) co_return fail(ESHUTDOWN, "node '{}' is closed", node_name_);
    if (drains_ == 0) continue;
    auto wait = resumed_.wait(lock);
    co_await wait;
  }
  co_return {};
}

Task<Result<void>> BlockNode::leave_after(Task<Result<void>> task) {
  Result<void> result = co_await task;
  gate_.leave();
  co_return result;
}

Task<void> BlockNode::drain() {
  {
    MutexLock lock(pause_mutex_);
    ++drains_;
  }
  auto closed = gate_.close();
  co_await closed;
}

void BlockNode::undrain() {
  MutexLock lock(pause_mutex_);
  if (--drains_ != 0) return;
  if (!closed_) gate_.reopen();
  resumed_.notify_all();
}

Task<Result<void>> BlockNode::close() {
  {
    MutexLock lock(pause_mutex_);
    closed_ = true;
    resumed_.notify_all();
  }
  auto closed = gate_.close();
  co_await closed;

  // Every step is taken whatever the ones before answered; the first failure is reported, but for
  // the flush's: the driver, when it fails too, knows what could not be written.
  Result<void> result;
  if (dirty_.load(std::memory_order_relaxed)) {
    auto flushed = co_await flush_below();
    result = flushed;
  }
  auto ended = co_await driver_->do_close();
  if (!ended) result = ended;
  for (Edge* child : driver_->children()) {
    auto detached = co_await child->detach();
    if (result) result = detached;
  }
  co_return result;
}

}  // namespace platter
