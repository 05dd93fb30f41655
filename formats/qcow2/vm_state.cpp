#include "formats/qcow2/vm_state.h"

#include <functional>

#include "block/base/checked.h"
#include "formats/qcow2/driver.h"

namespace platter::qcow2 {

Result<std::uint64_t> VmState::place(std::uint64_t position, std::uint64_t length) const {
  const std::uint64_t start = driver_.info().vm_state_offset;
  const auto offset = checked_add(start, position);
  const auto end = offset ? checked_add(*offset, length) : std::nullopt;
  if (!end || *end > static_cast<std::uint64_t>(INT64_MAX)) {
    return fail(EFBIG, "VM state cannot reach {} bytes behind {}", length, position);
  }
  return *offset;
}

Task<Result<void>> VmState::read(std::uint64_t position, IoVec iov) {
  const Result<std::uint64_t> offset = place(position, iov.size());
  PLATTER_CO_TRY(offset);
  auto ticket = co_await driver_.admit();
  PLATTER_FAULT(*driver_.core_.file, FaultEvent::kVmstateLoad);
  auto read = co_await driver_.read_inside(*offset, iov);
  co_return read;
}

// What is encrypted is written in whole sectors, with what is around `iov` in them.
Task<Result<void>> VmState::write_sectors(std::uint64_t offset, IoVec iov) {
  const std::uint64_t start = align_down(offset, std::uint64_t{DataTransform::kUnit});
  const std::uint64_t end = align_up(offset + iov.size(), std::uint64_t{DataTransform::kUnit});
  if (!driver_.transforms() || end - start == iov.size()) {
    auto written = co_await driver_.write_inside(offset, iov);
    co_return written;
  }
  const Buffer sectors(end - start);
  auto read = co_await driver_.read_inside(start, sectors.iov());
  PLATTER_CO_TRY(read);
  iov.copy_to(sectors.data() + (offset - start));
  auto written = co_await driver_.write_inside(start, sectors.iov());
  co_return written;
}

Task<Result<void>> VmState::reach(std::uint64_t l1_entries) {
  // Another write may have come first.
  if (l1_entries <= driver_.tables_.l1_size()) co_return {};
  auto grown = co_await driver_.grow_l1(l1_entries);
  co_return grown;
}

Task<Result<void>> VmState::write(std::uint64_t position, IoVec iov) {
  const Result<std::uint64_t> offset = place(position, iov.size());
  PLATTER_CO_TRY(offset);
  if (!driver_.core_.writable) co_return fail(EROFS, "the image is read-only");
  PLATTER_FAULT(*driver_.core_.file, FaultEvent::kVmstateSave);
  const std::uint64_t needed = driver_.core_.geometry.l1_entries_for(*offset + iov.size());
  if (needed > driver_.tables_.l1_size()) {
    const auto work = [this, needed] { return reach(needed); };
    const std::function<Task<Result<void>>()> named(work);
    auto grown = co_await driver_.exclusively(named, false);
    if (!grown) co_return forward_error(grown, "Failed to grow the L1 table");
  }
  auto ticket = co_await driver_.admit();
  auto written = co_await write_sectors(*offset, iov);
  co_return written;
}

}  // namespace platter::qcow2
