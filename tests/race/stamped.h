// Sectors that tell which change they are of. What a disk shows can so be held against the changes
// that had been made at one time or another, whoever made them.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

namespace platter::qcow2::testing {

inline constexpr std::uint64_t kStamped = 512;  // bytes of a sector

// Numbers of the latest change of each sector: even ones are writes, odd ones zeroes. Each sector's
// are changed by one lane only; anyone may look.
class Numbers {
 public:
  explicit Numbers(std::uint64_t sectors, std::uint32_t first = 0)
      : begun(sectors), ended(sectors), given_(sectors, first) {
    for (std::uint64_t s = 0; s < sectors; ++s) set(s, first);
  }
  void begin(std::uint64_t first, std::uint64_t sectors, bool zeroes) {
    for (std::uint64_t s = first; s < first + sectors; ++s) {
      given_[s] = (given_[s] / 2 + 1) * 2 + (zeroes ? 1 : 0);
      begun[s].store(given_[s]);
    }
  }
  void end(std::uint64_t first, std::uint64_t sectors) {
    for (std::uint64_t s = first; s < first + sectors; ++s) ended[s].store(begun[s].load());
  }
  // The sector is known to show this change, of long ago; later ones go on counting.
  void set(std::uint64_t sector, std::uint32_t change) {
    begun[sector].store(change);
    ended[sector].store(change);
  }

  std::vector<std::atomic<std::uint32_t>> begun;
  std::vector<std::atomic<std::uint32_t>> ended;

 private:
  std::vector<std::uint32_t> given_;
};

inline std::vector<std::uint32_t> copy_of(const std::vector<std::atomic<std::uint32_t>>& numbers) {
  std::vector<std::uint32_t> copy;
  copy.reserve(numbers.size());
  for (const auto& one : numbers) copy.push_back(one.load());
  return copy;
}

// A snapshot, and what it may show.
struct Taken {
  std::string name;
  std::vector<std::uint32_t> from;  // ended before it was asked for
  std::vector<std::uint32_t> to;    // begun when it was there
};

inline void stamp(std::byte* sector, std::uint64_t number, std::uint32_t change) {
  const std::uint64_t word = (change & 1) != 0 ? 0 : (std::uint64_t{change} << 32) | number;
  for (std::size_t at = 0; at < kStamped; at += 8) std::memcpy(sector + at, &word, 8);
}

// Whether the sector holds a change out of [from, to].
inline bool fair(const std::byte* sector, std::uint64_t number, std::uint32_t from,
                 std::uint32_t to) {
  if (std::memcmp(sector, sector + 8, kStamped - 8) != 0) return false;
  std::uint64_t word = 0;
  std::memcpy(&word, sector, 8);
  if (word == 0) return from == 0 || (from & 1) != 0 || (to & 1) != 0 || to > from + 2;
  const std::uint64_t change = word >> 32;
  return (word & 0xffffffff) == number && change >= from && change <= to;
}

// The change that a fair sector holds: 1 for any that has zeroed it.
inline std::uint32_t change_in(const std::byte* sector) {
  std::uint64_t word = 0;
  std::memcpy(&word, sector, 8);
  return word == 0 ? 1 : static_cast<std::uint32_t>(word >> 32);
}

}  // namespace platter::qcow2::testing
