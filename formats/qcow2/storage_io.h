// Reading and writing tables of an image that nobody else has open: what create, check and the
// image's opening need. Tables are moved in large pieces with several requests in flight.
//
// Threads: one executor; a BulkWriter belongs to one coroutine.
// Errors: those of the storage node, with the table's name in front.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "block/base/error.h"
#include "block/exec/buffer.h"
#include "block/exec/task.h"
#include "block/node/node.h"
#include "formats/qcow2/bitmap_directory.h"
#include "formats/qcow2/layout.h"
#include "formats/qcow2/snapshot_table.h"

namespace platter::qcow2 {

// Fills `out` from `offset`; what lies behind the end of the file reads as zeroes, because the last
// cluster of an image need not be there in full.
Task<Result<void>> read_padded(BlockNode& file, std::uint64_t offset, std::span<std::byte> out);

// Reads and validates the header.
Task<Result<Header>> read_header(BlockNode& file, TableBounds bounds = TableBounds::kInFile);

// A table of 64-bit entries in host byte order. The caller has bounded `entries`.
Task<Result<std::vector<std::uint64_t>>> read_table(BlockNode& file, std::string_view name,
                                                    std::uint64_t offset, std::uint64_t entries);

struct SnapshotTable {
  std::vector<Snapshot> snapshots;
  std::uint64_t bytes = 0;  // that the table takes in the file
};
// `keep_unknown`: with the extra data that we do not know, for who may write the table again.
// `bounds`: with kAnywhere, what the file does not hold of the table reads as zeroes.
Task<Result<SnapshotTable>> read_snapshot_table(BlockNode& file, const Header& header,
                                                bool keep_unknown,
                                                TableBounds bounds = TableBounds::kInFile);

// The bitmap directory of an image whose header has the bitmaps extension.
Task<Result<std::vector<BitmapEntry>>> read_bitmap_directory(BlockNode& file, const Header& header);

// Writes pieces in any order with up to kInFlight requests running.
//
//   auto buffer = co_await writer.buffer();   // contents undefined
//   ... fill ...
//   writer.write(offset, length);             // the first `length` bytes of that buffer
//   auto done = co_await writer.finish();     // always, also after an error
class BulkWriter {
 public:
  static constexpr std::size_t kPiece = std::size_t{256} << 10;
  static constexpr std::size_t kInFlight = 4;

  explicit BulkWriter(BlockNode& file) : file_(file) {}

  // kPiece bytes that no request uses.
  Task<std::span<std::byte>> buffer();
  void write(std::uint64_t offset, std::size_t length);
  bool failed() const { return !result_; }
  // The first error of all writes.
  Task<Result<void>> finish();

 private:
  struct Slot {
    Buffer buffer;
    Task<Result<void>> task;
    bool busy = false;
  };
  Task<void> settle(Slot& slot);

  BlockNode& file_;
  Slot slots_[kInFlight];
  std::size_t next_ = 0;
  Result<void> result_;
};

}  // namespace platter::qcow2
