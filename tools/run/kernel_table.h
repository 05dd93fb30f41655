// kernel_table: the form in which KVM takes and gives variable tables: a header of 8 bytes, then
// the entries.
//
// The headers of some kernels declare these structures so that C++ sees a header of 12 or 16 bytes
// (an empty struct in them has a size in C++), which makes wrong request numbers too. So both are
// spelled out here.
//
// Threads: pure functions.
#pragma once

#include <linux/kvm.h>
#include <sys/ioctl.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

namespace platter::run {

inline constexpr std::size_t kTableHeader = 8;  // bytes: number of entries, flags or padding
inline constexpr unsigned long kGetSupportedCpuid =
    _IOC(_IOC_READ | _IOC_WRITE, KVMIO, 0x05, kTableHeader);
inline constexpr unsigned long kSetCpuid2 = _IOC(_IOC_WRITE, KVMIO, 0x90, kTableHeader);
inline constexpr unsigned long kSetGsiRouting = _IOC(_IOC_WRITE, KVMIO, 0x6a, kTableHeader);

// Words, so that the result is aligned for every kernel structure.
template <class Entry>
std::vector<std::uint64_t> kernel_table(std::span<const Entry> entries) {
  std::vector<std::uint64_t> words((kTableHeader + entries.size_bytes() + 7) / 8);
  const auto count = static_cast<std::uint32_t>(entries.size());
  std::memcpy(words.data(), &count, sizeof count);
  if (!entries.empty()) std::memcpy(words.data() + 1, entries.data(), entries.size_bytes());
  return words;
}

// The entries that the kernel says it has filled in.
template <class Entry>
std::vector<Entry> table_entries(const std::vector<std::uint64_t>& words) {
  std::uint32_t count = 0;
  std::memcpy(&count, words.data(), sizeof count);
  const std::size_t room = (words.size() * 8 - kTableHeader) / sizeof(Entry);
  std::vector<Entry> entries(std::min<std::size_t>(count, room));
  if (!entries.empty())
    std::memcpy(entries.data(), words.data() + 1, entries.size() * sizeof(Entry));
  return entries;
}

}  // namespace platter::run
