// TableStream: reads many cluster-sized tables in a given order, well ahead of their use, with
// neighbouring tables in one request.
//
//   TableStream tables(file, cluster_size, offsets);     // offsets must outlive it
//   for (;;) {
//     auto table = co_await tables.next();
//     if (!table.data.data()) break;
//     ...
//   }
//   co_await tables.stop();   // always
//
// Threads: one coroutine.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "block/base/error.h"
#include "block/exec/buffer.h"
#include "block/exec/task.h"
#include "block/node/node.h"

namespace platter::qcow2 {

class TableStream {
 public:
  struct Table {
    std::size_t index = 0;      // into offsets
    std::span<std::byte> data;  // empty: no more; valid until the next call
    Result<void> read;          // a failed table has undefined data
  };

  TableStream(BlockNode& file, std::uint64_t cluster_size, std::span<const std::uint64_t> offsets);

  Task<Table> next();
  // Waits for what was read ahead.
  Task<void> stop();

 private:
  static constexpr std::size_t kAhead = 4;
  static constexpr std::uint64_t kPiece = std::uint64_t{128} << 10;
  // Reading this much for nothing costs less than another request.
  static constexpr std::uint64_t kGap = 8192;

  struct Slot {
    Buffer buffer;
    std::uint64_t offset = 0;
    std::size_t first = 0;  // tables [first, first + count) of offsets lie in the buffer
    std::size_t count = 0;
    Task<Result<void>> task;
    bool running = false;
    Result<void> result;
  };
  void fill(Slot& slot);

  BlockNode& file_;
  const std::uint64_t cluster_size_;
  const std::span<const std::uint64_t> offsets_;
  Slot slots_[kAhead];
  std::size_t current_ = 0;   // slot that next() serves from
  std::size_t position_ = 0;  // next table
  std::size_t planned_ = 0;   // first table that no slot reads yet
};

}  // namespace platter::qcow2
