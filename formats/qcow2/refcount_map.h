// RefcountMap: how often each cluster of an image is referenced, counted in memory.
//
// Only ranges of clusters that are referenced take memory, so that a large sparse file costs what
// its references cost; and a range takes a bit for each cluster as long as none is referenced
// twice, a byte as long as none passes 255.
//
// Threads: a value, one user.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

namespace platter::qcow2 {

class RefcountMap {
 public:
  // Clusters that share their memory.
  static constexpr std::uint64_t kChunk = 1024;

  // The counts of kChunk clusters. A value; one that was never set holds zeroes.
  class Chunk {
   public:
    bool empty() const { return words_ == nullptr; }
    // i < kChunk
    std::uint64_t get(std::uint64_t i) const {
      if (!words_) return 0;
      const unsigned per_word_bits = 6 - order_;
      const std::uint64_t in_word = (i & ((1u << per_word_bits) - 1)) << order_;
      return (words_[i >> per_word_bits] >> in_word) & mask_;
    }
    void set(std::uint64_t i, std::uint64_t value) {
      if (!words_ || value > mask_) [[unlikely]]
        widen(value);
      const unsigned per_word_bits = 6 - order_;
      const std::uint64_t in_word = (i & ((1u << per_word_bits) - 1)) << order_;
      std::uint64_t& word = words_[i >> per_word_bits];
      word = (word & ~(mask_ << in_word)) | value << in_word;
    }

   private:
    void widen(std::uint64_t value);

    std::unique_ptr<std::uint64_t[]> words_;
    std::uint64_t mask_ = 0;  // the highest count that fits
    unsigned order_ = 0;      // a count has 2^order_ bits
  };

  // `clusters`: of the file; the map grows when clusters behind it are set.
  explicit RefcountMap(std::uint64_t clusters) : clusters_(clusters) {}

  std::uint64_t clusters() const { return clusters_; }
  void grow(std::uint64_t clusters) { clusters_ = std::max(clusters, clusters_); }
  void clear() { chunks_.clear(); }

  // Behind the last cluster whose count is not zero.
  std::uint64_t end() const;

  std::uint64_t get(std::uint64_t cluster) const {
    return chunk(cluster / kChunk).get(cluster % kChunk);
  }
  void set(std::uint64_t cluster, std::uint64_t value);
  // Adds and gives the new count, which stays at `max` when it would pass it; `overflow` says so.
  std::uint64_t add(std::uint64_t cluster, std::uint64_t n, std::uint64_t max, bool& overflow) {
    const std::uint64_t before = get(cluster);
    overflow = before > max || n > max - before;
    const std::uint64_t after = overflow ? max : before + n;
    set(cluster, after);
    return after;
  }
  // The counts of clusters [index * kChunk, (index + 1) * kChunk). Valid until the next change.
  const Chunk& chunk(std::uint64_t index) const {
    return index < chunks_.size() ? chunks_[index] : kNothing;
  }

 private:
  static const Chunk kNothing;

  std::uint64_t clusters_;
  std::vector<Chunk> chunks_;
};

}  // namespace platter::qcow2
