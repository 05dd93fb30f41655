#include "formats/qcow2/table_stream.h"

#include <algorithm>

#include "formats/qcow2/storage_io.h"

namespace platter::qcow2 {

TableStream::TableStream(BlockNode& file, std::uint64_t cluster_size,
                         std::span<const std::uint64_t> offsets)
    : file_(file), cluster_size_(cluster_size), offsets_(offsets) {}

void TableStream::fill(Slot& slot) {
  slot.first = planned_;
  slot.count = 0;
  if (planned_ == offsets_.size()) return;
  slot.offset = offsets_[planned_];
  std::uint64_t end = slot.offset;
  while (planned_ < offsets_.size()) {
    const std::uint64_t next = offsets_[planned_];
    if (next < end || next - end > kGap) break;
    if (slot.count != 0 && next + cluster_size_ - slot.offset > kPiece) break;
    end = next + cluster_size_;
    ++slot.count;
    ++planned_;
  }
  const std::uint64_t length = end - slot.offset;
  if (slot.buffer.size() < length) slot.buffer = Buffer(std::max(length, kPiece));
  slot.task = read_padded(file_, slot.offset, slot.buffer.span(0, length));
  slot.running = true;
}

Task<TableStream::Table> TableStream::next() {
  Table table;
  if (position_ == offsets_.size()) co_return table;
  Slot* slot = &slots_[current_];
  if (position_ == slot->first + slot->count) {
    if (position_ != 0) current_ = (current_ + 1) % kAhead;
    // Free slots (the one that was just served; at first all) are filled in serving order.
    for (std::size_t i = 0; i < kAhead; ++i) {
      Slot& free = slots_[(current_ + i) % kAhead];
      if (!free.running && free.first + free.count <= position_) fill(free);
    }
    slot = &slots_[current_];
  }
  if (slot->running) {
    slot->result = co_await slot->task;
    slot->running = false;
  }
  table.index = position_;
  table.data = slot->buffer.span(offsets_[position_] - slot->offset, cluster_size_);
  table.read = slot->result;
  ++position_;
  co_return table;
}

Task<void> TableStream::stop() {
  for (Slot& slot : slots_) {
    if (!slot.running) continue;
    auto result = co_await slot.task;
    static_cast<void>(result);
    slot.running = false;
  }
}

}  // namespace platter::qcow2
