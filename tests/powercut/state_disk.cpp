#include "powercut/state_disk.h"

#include <algorithm>
#include <cstring>

#include "block/node/open_state.h"
#include "block/node/registry.h"

namespace platter::powercut {
namespace {

class StateDriver : public Driver {
 public:
  explicit StateDriver(StateDisk& disk) : disk_(disk) {}

  std::uint64_t size() const override { return disk_.size(); }
  bool can_grow() const override { return true; }
  Task<Result<void>> do_read(std::uint64_t offset, IoVec iov, ReadFlags) override {
    disk_.read(offset, iov);
    co_return {};
  }
  Task<Result<void>> do_write(std::uint64_t offset, IoVec iov, WriteFlags) override {
    disk_.write(offset, iov);
    co_return {};
  }
  Task<Result<void>> do_write_zeroes(std::uint64_t offset, std::uint64_t length,
                                     ZeroFlags) override {
    disk_.zero(offset, length);
    co_return {};
  }
  Task<Result<void>> do_discard(std::uint64_t offset, std::uint64_t length) override {
    const std::uint64_t end = std::min(offset + length, size());
    if (end > offset) disk_.zero(offset, end - offset);
    co_return {};
  }
  Task<Result<void>> do_flush() override { co_return {}; }
  Task<Result<void>> do_resize(ResizeRequest request) override {
    disk_.resize(request.size);
    co_return {};
  }

 private:
  StateDisk& disk_;
};

}  // namespace

StateDisk::StateDisk(std::vector<std::byte> bytes) : settled_(bytes), now_(std::move(bytes)) {}

void StateDisk::touch(std::uint64_t offset, std::uint64_t length) {
  const std::uint64_t end = (offset + length + kChunk - 1) / kChunk;
  if (touched_.size() < end) touched_.resize(end * 2);
  for (std::uint64_t i = offset / kChunk; i < end; ++i) {
    if (touched_[i]) continue;
    touched_[i] = true;
    touched_list_.push_back(i);
  }
}

void StateDisk::reset() {
  // Sizes first: what lies behind both ends does not matter.
  now_.resize(settled_.size());
  for (const std::uint64_t chunk : touched_list_) {
    touched_[chunk] = false;
    const std::uint64_t at = chunk * kChunk;
    if (at >= settled_.size()) continue;
    std::memcpy(now_.data() + at, settled_.data() + at, std::min(kChunk, settled_.size() - at));
  }
  touched_list_.clear();
}

void StateDisk::settle(const WriteLog::Entry& entry) {
  reset();
  apply(entry, [](std::uint64_t) { return true; });
  settled_.resize(now_.size());
  for (const std::uint64_t chunk : touched_list_) {
    touched_[chunk] = false;
    const std::uint64_t at = chunk * kChunk;
    if (at >= now_.size()) continue;
    std::memcpy(settled_.data() + at, now_.data() + at, std::min(kChunk, now_.size() - at));
  }
  touched_list_.clear();
}

void StateDisk::read(std::uint64_t offset, const IoVec& iov) const {
  iov.for_each([&](std::span<std::byte> piece) {
    const std::uint64_t stored =
        offset < now_.size() ? std::min<std::uint64_t>(piece.size(), now_.size() - offset) : 0;
    if (stored != 0) std::memcpy(piece.data(), now_.data() + offset, stored);
    std::memset(piece.data() + stored, 0, piece.size() - stored);
    offset += piece.size();
  });
}

void StateDisk::write(std::uint64_t offset, const IoVec& iov) {
  if (iov.empty()) return;
  if (offset + iov.size() > size()) resize(offset + iov.size());
  touch(offset, iov.size());
  iov.copy_to(now_.data() + offset);
}

void StateDisk::zero(std::uint64_t offset, std::uint64_t length) {
  if (length == 0) return;
  if (offset + length > size()) resize(offset + length);
  touch(offset, length);
  std::memset(now_.data() + offset, 0, length);
}

void StateDisk::resize(std::uint64_t size) {
  const std::uint64_t old = now_.size();
  now_.resize(size);
  if (size > old) touch(old, size - old);
  if (size < old) touch(size, old - size);
}

void StateDisk::put(const WriteLog::Entry& entry, std::uint64_t from, std::uint64_t to) {
  if (entry.kind == WriteLog::Kind::kWrite) {
    write(from, IoVec::of_const(std::span(entry.data).subspan(from - entry.offset, to - from)));
  } else if (entry.kind == WriteLog::Kind::kZeroes) {
    zero(from, to - from);
  } else if (from < size()) {
    // A discard may end behind the end of the file, which it does not move.
    zero(from, std::min(to, size()) - from);
  }
}

std::uint64_t sectors_of(const WriteLog::Entry& entry) {
  switch (entry.kind) {
    case WriteLog::Kind::kResize:
      return 1;
    case WriteLog::Kind::kWrite:
    case WriteLog::Kind::kZeroes:
    case WriteLog::Kind::kDiscard:
      if (entry.length == 0) return 0;
      return (entry.offset + entry.length - 1) / WriteLog::kSector -
             entry.offset / WriteLog::kSector + 1;
    case WriteLog::Kind::kFlush:
    case WriteLog::Kind::kMark:
      return 0;
  }
  return 0;
}

NodePtr make_state_node(std::string node_name, StateDisk& disk) {
  static const DriverType type{.name = "state"};
  NodePtr node = BlockNode::create(type, std::make_unique<StateDriver>(disk), std::move(node_name),
                                   "", OpenFlags{.read_only = false, .discard_unmap = true});
  detail::remember_node(node);
  return node;
}

}  // namespace platter::powercut
