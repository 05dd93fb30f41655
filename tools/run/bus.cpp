#include "tools/run/bus.h"

#include <algorithm>
#include <iterator>

#include "block/base/checked.h"
#include "block/base/mutex.h"

namespace platter::run {

void CallbackDevice::read(std::uint64_t offset, std::span<std::byte> data) {
  if (read_) {
    read_(offset, data);
  } else {
    std::ranges::fill(data, std::byte{0xff});
  }
}

void CallbackDevice::write(std::uint64_t offset, std::span<const std::byte> data) {
  if (write_) write_(offset, data);
}

Result<void> Bus::add(std::uint64_t base, std::uint64_t size, std::string name,
                      std::shared_ptr<BusDevice> device) {
  if (size == 0 || !checked_add(base, size)) {
    return fail(EINVAL, "'{}' at {:#x} has an impossible size of {:#x}", name, base, size);
  }
  WriterLock lock(mutex_);
  auto next = entries_.lower_bound(base);
  const auto clash = [&](const auto& entry) {
    return fail(EEXIST, "'{}' [{:#x}, {:#x}) overlaps '{}' [{:#x}, {:#x})", name, base, base + size,
                entry.second.name, entry.first, entry.first + entry.second.size);
  };
  if (next != entries_.end() && next->first < base + size) return clash(*next);
  if (next != entries_.begin()) {
    const auto& before = *std::prev(next);
    if (before.first + before.second.size > base) return clash(before);
  }
  entries_.emplace_hint(next, base, Entry{size, std::move(name), std::move(device)});
  return {};
}

bool Bus::remove(std::uint64_t base) {
  std::shared_ptr<BusDevice> last_reference;  // dropped after the lock
  WriterLock lock(mutex_);
  auto found = entries_.find(base);
  if (found == entries_.end()) return false;
  last_reference = std::move(found->second.device);
  entries_.erase(found);
  return true;
}

Bus::Found Bus::find(std::uint64_t address, std::size_t size) const {
  ReaderLock lock(mutex_);
  auto after = entries_.upper_bound(address);
  if (after == entries_.begin()) return {};
  const auto& [base, entry] = *std::prev(after);
  if (!range_within(address - base, size, entry.size)) return {};
  return {entry.device, address - base};
}

bool Bus::read(std::uint64_t address, std::span<std::byte> data) const {
  const Found found = find(address, data.size());
  if (!found.device) {
    std::ranges::fill(data, std::byte{0xff});
    return false;
  }
  found.device->read(found.offset, data);
  return true;
}

bool Bus::write(std::uint64_t address, std::span<const std::byte> data) const {
  const Found found = find(address, data.size());
  if (!found.device) return false;
  found.device->write(found.offset, data);
  return true;
}

}  // namespace platter::run
