// CopyRun: one run of the copy engine (copy.h). Parts: the walk that cuts the sources into pieces
// and the workers (copy.cpp), how a piece gets from a source to the target (copy_piece.cpp), and
// what a target takes up from below itself (take_up.cpp).
//
// Threads: one executor.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "block/base/mutex.h"
#include "block/exec/buffer.h"
#include "block/exec/sync.h"
#include "block/jobs/copy.h"

namespace platter::detail {

inline constexpr std::uint64_t kSector = 512;  // bytes

// Data is copied unseen when this much or more of it can be judged by its first bytes, and those
// are in memory. Where they are not, or the files do not take it, the next pieces are not tried.
inline constexpr std::uint64_t kCopyLeastUnseen = std::uint64_t{32} << 10;

class CopyRun {
 public:
  CopyRun(std::span<const CopySource> sources, BlockNode& target, const CopyOptions& options);
  Task<Result<void>> run();

 private:
  enum class Kind : std::uint8_t { kSkip, kZero, kData };
  // A piece of the target, and what is to be done with it.
  struct Piece {
    Kind kind = Kind::kSkip;
    std::uint64_t offset = 0;
    std::uint64_t length = 0;
    std::uint64_t sequence = 0;
    // Where the stored bytes of data lie, if that is known.
    BlockNode* node = nullptr;
    std::uint64_t host = 0;
  };
  struct Writes {
    std::vector<Task<Result<void>>> tasks;
  };
  // What a worker keeps from piece to piece.
  struct Bench {
    Buffer buffer;
    Buffer other;  // to compare with
    Writes writes;
  };

  // copy.cpp
  Task<void> work();
  Task<std::optional<Piece>> next_piece();
  Task<Result<void>> look_up();
  Task<Result<void>> wait_for_turn(std::uint64_t sequence);
  void end_turn();
  Task<void> pace(std::uint64_t bytes);
  std::unexpected<Error> read_failed(const Result<void>& read, std::uint64_t offset) const;
  std::unexpected<Error> write_failed(const Result<void>& written, std::uint64_t offset) const;
  void give_up(Error error);
  // Whether nothing new is begun any more; notices that it has been cancelled.
  bool gives_up();
  void count(const Piece& piece);
  bool cancelled() const { return options_.cancelled != nullptr && options_.cancelled->load(); }
  const CopySource& source_at(std::uint64_t offset) const;

  // copy_piece.cpp
  Task<bool> copy_piece(const Piece& piece, Bench& bench);
  Task<Result<void>> read(std::uint64_t offset, std::span<std::byte> buffer);
  Task<Result<void>> read_salvaging(std::uint64_t offset, std::span<std::byte> buffer);
  Task<bool> offloaded(const Piece& piece);
  Task<bool> may_pass_unseen(const Piece& piece);
  Task<bool> fetch(const Piece& piece, std::span<std::byte> bytes);
  Task<Result<void>> write_one(std::uint64_t offset, std::span<std::byte> bytes);
  Task<Result<void>> zero_one(std::uint64_t offset, std::uint64_t length);
  void start_writes(const Piece& piece, std::span<std::byte> buffer, Writes& writes);
  std::span<std::byte> room(const Piece& piece, Buffer& buffer) const;
  // Bytes from `offset` to the end of its grain.
  std::uint64_t left_in_grain(std::uint64_t offset) const { return grain_ - offset % grain_; }

  // take_up.cpp
  Task<Result<void>> choose_take_up(ChainExtent extent, const CopySource& source,
                                    std::uint64_t within);
  Task<bool> take_up(const Piece& piece, Bench& bench);
  Task<Result<void>> keep_differences(const Piece& piece, Bench& bench);
  Task<Result<void>> hold_zeroes(std::uint64_t offset, std::span<std::byte> zeroes);

  const std::span<const CopySource> sources_;
  BlockNode& target_;
  const CopyOptions& options_;
  const std::uint64_t total_;
  // Zeroes are looked for in grains of this many bytes, so that no zeroes are left out of a unit
  // which the target has to allocate as a whole anyway.
  const std::uint64_t grain_;
  const std::uint64_t chunk_;
  bool offload_;
  const bool unseen_;   // whether pieces may be copied unseen,
  unsigned pause_ = 0;  // but not the next so many

  AsyncMutex walk_mutex_;
  std::uint64_t position_ = 0;  // of the next piece
  Piece found_;                 // the rest of the extent at position_; length 0: look up
  std::uint64_t next_sequence_ = 0;
  std::chrono::steady_clock::time_point due_ = std::chrono::steady_clock::now();

  Mutex turn_mutex_;
  ConditionQueue turn_changed_ PLATTER_GUARDED_BY(turn_mutex_);
  std::uint64_t turn_ PLATTER_GUARDED_BY(turn_mutex_) = 0;
  std::optional<Error> error_ PLATTER_GUARDED_BY(turn_mutex_);
  std::uint64_t done_ = 0;
};

}  // namespace platter::detail
