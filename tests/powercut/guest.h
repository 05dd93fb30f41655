// Guest: does things to an open image and notes them in a History. Each call gives what the image
// answered; what failed is noted as something that may be there or not.
//
// Threads: one executor.
#pragma once

#include <cstdint>
#include <random>
#include <string>

#include "block/node/graph.h"
#include "powercut/history.h"

namespace platter::powercut {

class Guest {
 public:
  // `log` may be null: then moments only count what the guest does.
  Guest(Edge node, History& history, WriteLog* log, std::uint64_t cluster, unsigned seed)
      : random(seed), node_(std::move(node)), history_(history), log_(log), cluster_(cluster) {}

  std::mt19937 random;

  BlockNode& node() { return *node_; }
  std::uint64_t cluster() const { return cluster_; }  // bytes
  std::uint64_t size() const { return node_->size(); }

  Task<Result<void>> write(std::uint64_t offset, std::uint64_t length);
  // Whole clusters.
  Task<Result<void>> write_compressed(std::uint64_t offset, std::uint64_t length);
  Task<Result<void>> write_zeroes(std::uint64_t offset, std::uint64_t length, bool may_unmap);
  Task<Result<void>> discard(std::uint64_t offset, std::uint64_t length);
  Task<Result<void>> flush();
  // Whole clusters of what no sector of the disk ever holds.
  Task<Result<void>> save_vm_state(std::uint64_t clusters);
  Task<Result<void>> snapshot(std::string name);
  Task<Result<void>> apply(std::string name);
  Task<Result<void>> remove(std::string name);
  Task<Result<void>> rename(std::string name, std::string new_name);
  Task<Result<void>> resize(std::uint64_t size, Preallocation preallocation = Preallocation::kOff);
  // Amends key slots, by options of `amend`; after that `opened` opens the image and `refused` does
  // not (ids of secrets, or null).
  Task<Result<void>> change_keys(const std::string& options, bool force, const char* opened,
                                 const char* refused);
  Task<Result<void>> add_bitmap(std::string name, std::uint64_t granularity, bool enabled);
  Task<Result<void>> remove_bitmap(std::string name);
  Task<Result<void>> merge_bitmap(std::string name, std::string source);
  Task<Result<void>> clear_bitmap(std::string name);
  Task<Result<void>> enable_bitmap(std::string name, bool enabled);
  // Closes the image: all of it is durable then.
  Task<Result<void>> close();
  // Lets go of the image as a crash does.
  void abandon() { node_ = Edge(); }
  // The present one, as the history has it.
  std::size_t moment() { return now(); }

 private:
  // A moment of its own, also between things that write nothing.
  std::size_t now();
  // The end of something that began at `begin`: kNever when it failed.
  std::size_t end_of(const Result<void>& done) { return done ? now() : kNever; }
  // What had ended when this succeeded is durable, and it itself too.
  void note_durable(const Result<void>& done, std::size_t end) {
    if (done) history_.note_flush(end, end);
  }
  BitmapAbility& bitmaps() { return *node_->driver().bitmaps(); }
  bool is_enabled(const std::string& name);
  void note_bitmaps_resized(std::uint64_t size, std::size_t begin, std::size_t end);
  // `next`: the bitmap as it is once `change`, which begins after it was made, is done.
  Task<Result<void>> note_bitmap(BitmapRecord next, Task<Result<void>> change);
  Task<Result<void>> write_stamped(std::uint64_t offset, std::uint64_t length, WriteFlags flags);

  Edge node_;
  History& history_;
  WriteLog* log_;
  const std::uint64_t cluster_;
  std::size_t ticks_ = 0;
};

// The stamps of all sectors that the history knows, below the node's size. A sector that holds no
// stamp of its own is a failure.
Task<Result<std::map<std::uint64_t, Stamp>>> read_stamps(BlockNode& node, const History& history);

// Every sector of the disk is what a cut at `cut` may leave; kNever: nothing was cut, and all that
// was acknowledged is there. Gives the first thing that is wrong, or nothing. `fully`: also reads
// where the image says that there is nothing.
Task<std::string> find_wrong(BlockNode& node, const History& history, std::size_t cut, bool fully);

}  // namespace platter::powercut
