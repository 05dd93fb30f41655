// StateDisk: the disk on which states after a power cut are tried, one after another. It has a
// settled part that only grows more recent (what every later state has for certain) and a present
// state over it that is thrown away cheaply: reset() costs what the state had changed.
//
// Threads: one at a time.
#pragma once

#include <cstdint>
#include <vector>

#include "block/filters/write_log.h"
#include "block/node/driver.h"
#include "block/node/node.h"

namespace platter::powercut {

class StateDisk {
 public:
  static constexpr std::uint64_t kChunk = 1024;

  explicit StateDisk(std::vector<std::byte> bytes);

  // What is settled, and with it the present state, becomes more recent.
  void settle(const WriteLog::Entry& entry);
  // The present state becomes what is settled.
  void reset();

  // As replay() and the driver want it.
  std::uint64_t size() const { return now_.size(); }
  void read(std::uint64_t offset, const IoVec& iov) const;
  void write(std::uint64_t offset, const IoVec& iov);
  void zero(std::uint64_t offset, std::uint64_t length);
  void resize(std::uint64_t size);

  // Applies those of the entry's sectors for which keep(sector, counted from its first) is true.
  template <class Keep>
  void apply(const WriteLog::Entry& entry, Keep&& keep) {
    if (entry.kind == WriteLog::Kind::kResize) {
      if (keep(0)) resize(entry.length);
      return;
    }
    const std::uint64_t end = entry.offset + entry.length;
    std::uint64_t number = 0;
    for (std::uint64_t at = entry.offset; at < end; ++number) {
      const std::uint64_t next = std::min(end, (at / WriteLog::kSector + 1) * WriteLog::kSector);
      if (keep(number)) put(entry, at, next);
      at = next;
    }
  }

 private:
  void put(const WriteLog::Entry& entry, std::uint64_t from, std::uint64_t to);
  void touch(std::uint64_t offset, std::uint64_t length);

  std::vector<std::byte> settled_;
  std::vector<std::byte> now_;
  std::vector<bool> touched_;  // chunks in which the two differ
  std::vector<std::uint64_t> touched_list_;
};

// Sectors of an entry that a cut may leave or take one by one; 0: it changes nothing.
std::uint64_t sectors_of(const WriteLog::Entry& entry);

// A node over `disk`, which outlives it. Registered under its name.
NodePtr make_state_node(std::string node_name, StateDisk& disk);

}  // namespace platter::powercut
