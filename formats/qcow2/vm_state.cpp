#include "formats/qcow2/vm_state.h"

#include <functional>

#include "block/base/checked.h"
#include "formats/qcow2/driver.h"

namespace platter::qcow2 {

Result<std::uint64_t> VmState::place(std::uint64_t position, std::uint64_t length) const {
  const Geometry& g = driver_.core_.geometry;
  const std::uint64_t start = g.l1_entries_for(driver_.size()) * g.l2_coverage();
  const auto offset = checked_add(start, position);
  const auto end = offset ? checked_add(*offset, length) : std::nullopt;
  if (!end || *end > static_cast<std::uint64_t>(INT64_MAX)) {
    return fail(EFBIG, "VM state cannot reach {} bytes behind {}", length, position);
  }
  return *offset;
}

Task<Result<void>> VmState::read(std::uint64_t position, IoVec iov) {
  PLATTER_FAULT(*driver_.core_.file, FaultEvent::kVmstateLoad);
  auto ticket = co_await driver_.admit();
  const Result<std::uint64_t> offset = place(position, iov.size());
  PLATTER_CO_TRY(offset);
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

Result<std::uint64_t> VmState::l1_entries(std::uint64_t position, std::uint64_t length) const {
  const Result<std::uint64_t> offset = place(position, length);
  PLATTER_TRY(offset);
  return driver_.core_.geometry.l1_entries_for(*offset + length);
}

Task<Result<void>> VmState::reach(std::uint64_t position, std::uint64_t length) {
  const Result<std::uint64_t> needed = l1_entries(position, length);
  PLATTER_CO_TRY(needed);
  // Another write may have come first.
  if (*needed <= driver_.tables_.l1_size()) co_return {};
  auto grown = co_await driver_.grow_l1(*needed);
  co_return grown;
}

Task<Result<void>> VmState::write(std::uint64_t position, IoVec iov) {
  PLATTER_FAULT(*driver_.core_.file, FaultEvent::kVmstateSave);
  const std::uint64_t length = iov.size();
  while (true) {
    {
      // Where it lies depends on the disk's size, which stays as it is while the ticket is held.
      auto ticket = co_await driver_.admit();
      if (!driver_.core_.writable) co_return fail(EROFS, "the image is read-only");
      const Result<std::uint64_t> needed = l1_entries(position, length);
      PLATTER_CO_TRY(needed);
      if (*needed <= driver_.tables_.l1_size()) {
        const Result<std::uint64_t> offset = place(position, length);
        auto written = co_await write_sectors(*offset, iov);
        co_return written;
      }
    }
    const auto work = [this, position, length] { return reach(position, length); };
    const std::function<Task<Result<void>>()> named(work);
    auto grown = co_await driver_.exclusively(named, false);
    if (!grown) co_return forward_error(grown, "Failed to grow the L1 table");
  }
}

}  // namespace platter::qcow2
