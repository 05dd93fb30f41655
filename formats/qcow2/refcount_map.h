// RefcountMap: how often each cluster of an image is referenced, counted in memory.
//
// Only ranges of clusters that are referenced take memory (2 bytes for each cluster), so that a
// large sparse file costs what its references cost.
//
// Threads: a value, one user.
#pragma once

#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

namespace platter::qcow2 {

class RefcountMap {
 public:
  // Clusters of one piece of memory.
  static constexpr std::uint64_t kChunk = 1024;

  // `clusters`: of the file; the map grows when clusters behind it are set.
  explicit RefcountMap(std::uint64_t clusters) : clusters_(clusters) {}

  std::uint64_t clusters() const { return clusters_; }
  void grow(std::uint64_t clusters) {
    if (clusters > clusters_) clusters_ = clusters;
  }
  void clear();

  std::uint64_t get(std::uint64_t cluster) const {
    const std::uint16_t* chunk = chunk_at(cluster / kChunk);
    if (!chunk) return 0;
    const std::uint16_t cell = chunk[cluster % kChunk];
    return cell != kLarge ? cell : large_.at(cluster);
  }
  void set(std::uint64_t cluster, std::uint64_t value);
  // Adds and gives the new count, which stays at `max` when it would pass it; `overflow` says so.
  std::uint64_t add(std::uint64_t cluster, std::uint64_t n, std::uint64_t max, bool& overflow) {
    std::uint16_t& cell = cell_at(cluster);
    overflow = false;
    const std::uint64_t sum = cell + n;
    if (cell != kLarge && n < kLarge && sum < kLarge && sum <= max) [[likely]] {
      cell = static_cast<std::uint16_t>(sum);
      return sum;
    }
    return add_large(cluster, n, max, overflow);
  }
  // The cells of clusters [index * kChunk, (index + 1) * kChunk), or nullptr when all are zero.
  // A cell of kLarge means: ask get().
  const std::uint16_t* chunk_at(std::uint64_t index) const {
    return index < chunks_.size() ? chunks_[index].get() : nullptr;
  }
  static constexpr std::uint16_t kLarge = 0xffff;

 private:
  std::uint16_t& cell_at(std::uint64_t cluster) {
    const std::uint64_t index = cluster / kChunk;
    if (index >= chunks_.size() || !chunks_[index]) [[unlikely]] make_chunk(index);
    return chunks_[index][cluster % kChunk];
  }
  void make_chunk(std::uint64_t index);
  std::uint64_t add_large(std::uint64_t cluster, std::uint64_t n, std::uint64_t max, bool& overflow);

  std::uint64_t clusters_;
  std::vector<std::unique_ptr<std::uint16_t[]>> chunks_;
  std::unordered_map<std::uint64_t, std::uint64_t> large_;  // counts of kLarge and above
};

}  // namespace platter::qcow2
