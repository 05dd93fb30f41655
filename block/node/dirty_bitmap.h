// DirtyBitmap: which ranges of a disk were written to. One bit for each granule (a power of two of
// bytes) of the disk.
//
// Bits live in chunks that come when the first bit in them is set, so a bitmap of a large disk that
// little was written to is small. Setting a bit that is set already writes no shared memory.
//
// Threads: set() and get() from any, at any time; everything else while nobody sets, except that
// copying and reading meanwhile see each bit as it was before or after.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <span>

namespace platter {

class DirtyBitmap {
 public:
  // For a disk of `size` bytes. `granularity_bits` is 9 to 31.
  DirtyBitmap(std::uint64_t size, unsigned granularity_bits);
  ~DirtyBitmap();
  DirtyBitmap(const DirtyBitmap&) = delete;
  DirtyBitmap& operator=(const DirtyBitmap&) = delete;
  std::unique_ptr<DirtyBitmap> clone() const;

  std::uint64_t size() const { return size_; }
  std::uint64_t granularity() const { return std::uint64_t{1} << granularity_bits_; }
  std::uint64_t bits() const { return bits_; }

  // Every granule that [offset, offset + length) touches; what lies behind the end is left out.
  void set(std::uint64_t offset, std::uint64_t length);
  bool get(std::uint64_t offset) const;

  struct Range {
    std::uint64_t offset = 0;  // bytes
    std::uint64_t length = 0;  // 0: there is none
  };
  // The first dirty range that ends behind `offset`, cut to start there; ends with the disk.
  Range next(std::uint64_t offset) const;
  std::uint64_t count() const;  // bits that are set

  // Adds what `source` has, whose granularity may differ; the disks are of the same size.
  void merge(const DirtyBitmap& source);
  // A copy for a disk of another size: what is behind its end is forgotten, new granules are clean.
  std::unique_ptr<DirtyBitmap> resized(std::uint64_t size) const;

  // As bytes: bit n is bit n % 8 of byte n / 8. `first` and the sizes of spans are multiples of
  // kUnit, or end with or behind the bitmap; what is behind its end reads as 0 and is ignored.
  static constexpr std::size_t kUnit = 512;
  std::uint64_t bytes() const { return (bits_ + 7) / 8; }
  bool any(std::uint64_t first, std::uint64_t count) const;  // a bit of these bytes is set
  void store(std::uint64_t first, std::span<std::byte> out) const;
  void load(std::uint64_t first, std::span<const std::byte> in);
  void load_ones(std::uint64_t first, std::uint64_t count);

 private:
  static constexpr std::uint64_t kWords = kUnit / 8;
  static constexpr std::uint64_t kChunkBits = kUnit * 8;
  struct Chunk {
    std::atomic<std::uint64_t> words[kWords];
  };
  struct Free {
    void operator()(std::atomic<Chunk*>* chunks) const { std::free(chunks); }
  };
  static Chunk* ones();  // stands for every chunk that is all ones; never written to
  Chunk* make(std::uint64_t chunk);
  void set_bits(std::uint64_t first, std::uint64_t end);
  // Bits of word `word` of the whole bitmap that belong to it.
  std::uint64_t valid(std::uint64_t word) const;
  std::uint64_t word(std::uint64_t index) const;
  // The first bit at or behind `bit` that is `value`; bits_ when there is none.
  std::uint64_t find(std::uint64_t bit, bool value) const;

  const std::uint64_t size_;
  const unsigned granularity_bits_;
  const std::uint64_t bits_;
  const std::uint64_t chunk_count_;
  // calloc'ed: pointers that nobody touches cost nothing.
  std::unique_ptr<std::atomic<Chunk*>[], Free> chunks_;
};

}  // namespace platter
