// write_log: a filter that records everything that changes what lies below it, so that a test can
// build each state in which a power cut could leave the disk.
//
// What a cut may leave: a write that had completed before a flush began which itself has completed
// is there for good; every other write that has begun may be there, not at all, or in part (whole
// sectors of it). The log keeps the moments (positions in one sequence of begins and ends) from
// which that is decided; replay() builds the image.
//
// Several nodes may share a log: an entry says on which disk it was, and a flush is one disk's.
//
// Threads: WriteLog: any. Entries are read when no request is running, and then without a mutex.
// Ownership: the log is shared by its user and the filter.
//
// Example:
//   auto log = std::make_shared<WriteLog>();
//   auto node = co_await make_write_log_node("log", memory_node, log);
//   ... use it ...
//   for (std::size_t cut = 0; cut <= log->moments(); ++cut) {
//     MemoryDisk disk(initial_size);
//     replay(*log, cut, [&](const WriteLog::Entry&, std::uint64_t) { return coin(); }, disk);
//   }
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "block/base/mutex.h"
#include "block/exec/iovec.h"
#include "block/node/driver.h"
#include "block/node/node.h"

namespace platter {

class WriteLog {
 public:
  static constexpr std::uint64_t kSector = 512;
  static constexpr std::size_t kNever = ~std::size_t{0};

  enum class Kind : std::uint8_t { kWrite, kZeroes, kDiscard, kFlush, kResize, kMark };
  struct Entry {
    Kind kind = Kind::kWrite;
    unsigned disk = 0;
    std::uint64_t offset = 0;
    std::uint64_t length = 0;       // kResize: the new size
    std::vector<std::byte> data{};  // kWrite
    bool fua = false;               // durable once it has completed
    bool zero_on_discard = false;   // the discarded range read as zeroes afterwards
    std::size_t begin = 0;          // moment
    std::size_t end = kNever;       // moment, kNever: not completed
    bool failed = false;
    std::string text{};  // kMark
  };

  // Number of moments: a cut at `m` happens after moments 0 ... m-1.
  std::size_t moments() const;
  const std::vector<Entry>& entries() const PLATTER_NO_THREAD_CHECK { return entries_; }
  // A note in the sequence (what the test has been told is durable, say).
  void mark(std::string text);
  void clear();

  // For the driver: the entry's index.
  std::size_t begin(Entry entry);
  void end(std::size_t index, bool failed);

  // Whether a cut at moment `cut` must leave this entry's effect in place.
  bool durable(const Entry& entry, std::size_t cut) const PLATTER_NO_THREAD_CHECK;
  // For each entry the first cut that must leave its effect in place, or kNever.
  std::vector<std::size_t> durable_from() const PLATTER_NO_THREAD_CHECK;

 private:
  mutable Mutex mutex_;
  std::vector<Entry> entries_ PLATTER_GUARDED_BY(mutex_);
  std::size_t moments_ PLATTER_GUARDED_BY(mutex_) = 0;
};

// Applies to `image` (anything with write(offset, IoVec), zero(offset, length) and resize(size),
// such as a MemoryDisk) what must be there after a cut at moment `cut`, and of the rest those
// sectors for which `keep(entry, sector_number)` is true.
template <class Image, class Keep>
void replay(const WriteLog& log, std::size_t cut, Keep&& keep, Image& image) {
  for (const WriteLog::Entry& entry : log.entries()) {
    if (entry.begin >= cut) continue;
    const bool sure = log.durable(entry, cut);
    if (entry.kind == WriteLog::Kind::kResize) {
      if (sure || keep(entry, 0)) image.resize(entry.length);
      continue;
    }
    const bool zeroes = entry.kind == WriteLog::Kind::kZeroes ||
                        (entry.kind == WriteLog::Kind::kDiscard && entry.zero_on_discard);
    if (entry.kind != WriteLog::Kind::kWrite && !zeroes) continue;
    // Runs of sectors with one fate are applied together.
    const std::uint64_t end = entry.offset + entry.length;
    std::uint64_t at = entry.offset;
    const auto fate = [&](std::uint64_t offset) {
      return sure || keep(entry, offset / WriteLog::kSector);
    };
    bool kept = at < end && fate(at);
    for (std::uint64_t run = at; run < end;) {
      if (sure) run = end;
      bool next = kept;
      while (run < end && next == kept) {
        run = std::min(end, (run / WriteLog::kSector + 1) * WriteLog::kSector);
        if (run < end) next = fate(run);
      }
      if (kept && zeroes) image.zero(at, run - at);
      if (kept && !zeroes) {
        image.write(at,
                    IoVec::of_const(std::span(entry.data).subspan(at - entry.offset, run - at)));
      }
      at = run;
      kept = next;
    }
  }
}

// A logging node over `below`, whose entries are those of `disk`.
Task<Result<NodePtr>> make_write_log_node(std::string node_name, NodePtr below,
                                          std::shared_ptr<WriteLog> log, unsigned disk = 0);

}  // namespace platter
