#include "block/node/dirty_bitmap.h"

#include <algorithm>
#include <bit>
#include <new>

#include "block/base/bytes.h"
#include "block/base/checked.h"

namespace platter {

DirtyBitmap::DirtyBitmap(std::uint64_t size, unsigned granularity_bits)
    : size_(size),
      granularity_bits_(granularity_bits),
      bits_(div_round_up(size, std::uint64_t{1} << granularity_bits)),
      chunk_count_(div_round_up(bits_, kChunkBits)),
      chunks_(static_cast<std::atomic<Chunk*>*>(
          std::calloc(std::max<std::uint64_t>(chunk_count_, 1), sizeof(std::atomic<Chunk*>)))) {
  if (!chunks_) throw std::bad_alloc();
}

DirtyBitmap::~DirtyBitmap() {
  for (std::uint64_t i = 0; i < chunk_count_; ++i) {
    Chunk* const chunk = chunks_[i].load(std::memory_order_relaxed);
    if (chunk && chunk != ones()) delete chunk;
  }
}

DirtyBitmap::Chunk* DirtyBitmap::ones() {
  static const std::unique_ptr<Chunk> chunk = [] {
    auto made = std::make_unique<Chunk>();
    for (auto& word : made->words) word.store(~std::uint64_t{0}, std::memory_order_relaxed);
    return made;
  }();
  return chunk.get();
}

std::unique_ptr<DirtyBitmap> DirtyBitmap::clone() const { return resized(size_); }

std::unique_ptr<DirtyBitmap> DirtyBitmap::resized(std::uint64_t size) const {
  auto copy = std::make_unique<DirtyBitmap>(size, granularity_bits_);
  for (std::uint64_t i = 0; i < std::min(chunk_count_, copy->chunk_count_); ++i) {
    const Chunk* const chunk = chunks_[i].load(std::memory_order_acquire);
    if (!chunk) continue;
    const bool whole = (i + 1) * kChunkBits <= copy->bits_;
    if (chunk == ones() && whole) {
      copy->chunks_[i].store(ones(), std::memory_order_relaxed);
      continue;
    }
    Chunk* const to = copy->make(i);
    for (std::uint64_t w = 0; w < kWords; ++w) {
      to->words[w].store(
          chunk->words[w].load(std::memory_order_relaxed) & copy->valid(i * kWords + w),
          std::memory_order_relaxed);
    }
  }
  return copy;
}

DirtyBitmap::Chunk* DirtyBitmap::make(std::uint64_t chunk) {
  Chunk* there = chunks_[chunk].load(std::memory_order_acquire);
  if (there) return there;
  auto made = std::make_unique<Chunk>();
  if (chunks_[chunk].compare_exchange_strong(there, made.get(), std::memory_order_acq_rel))
    return made.release();
  return there;
}

std::uint64_t DirtyBitmap::valid(std::uint64_t word) const {
  const std::uint64_t first = word * 64;
  if (first >= bits_) return 0;
  const std::uint64_t left = bits_ - first;
  return left >= 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << left) - 1;
}

std::uint64_t DirtyBitmap::word(std::uint64_t index) const {
  const Chunk* const chunk = chunks_[index / kWords].load(std::memory_order_acquire);
  return chunk ? chunk->words[index % kWords].load(std::memory_order_relaxed) : 0;
}

// Setting and looking
// ------------------------------------------------------------------------------------------------

void DirtyBitmap::set(std::uint64_t offset, std::uint64_t length) {
  if (offset >= size_ || length == 0) return;
  const std::uint64_t last = offset + std::min(length, size_ - offset) - 1;
  set_bits(offset >> granularity_bits_, (last >> granularity_bits_) + 1);
}

void DirtyBitmap::set_bits(std::uint64_t first, std::uint64_t end) {
  while (first < end) {
    Chunk* const chunk = make(first / kChunkBits);
    const std::uint64_t stop = std::min(end, (first / kChunkBits + 1) * kChunkBits);
    while (first < stop) {
      const unsigned shift = first % 64;
      const std::uint64_t count = std::min<std::uint64_t>(64 - shift, stop - first);
      const std::uint64_t mask = (count == 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << count) - 1)
                                 << shift;
      std::atomic<std::uint64_t>& word = chunk->words[first % kChunkBits / 64];
      if ((word.load(std::memory_order_relaxed) & mask) != mask)
        word.fetch_or(mask, std::memory_order_relaxed);
      first += count;
    }
  }
}

bool DirtyBitmap::get(std::uint64_t offset) const {
  if (offset >= size_) return false;
  const std::uint64_t bit = offset >> granularity_bits_;
  return (word(bit / 64) >> (bit % 64) & 1) != 0;
}

std::uint64_t DirtyBitmap::find(std::uint64_t bit, bool value) const {
  while (bit < bits_) {
    const std::uint64_t chunk_end = (bit / kChunkBits + 1) * kChunkBits;
    const Chunk* const chunk = chunks_[bit / kChunkBits].load(std::memory_order_acquire);
    if (!chunk || chunk == ones()) {
      if ((chunk != nullptr) == value) return bit;
      bit = chunk_end;
      continue;
    }
    std::uint64_t bits = word(bit / 64);
    if (!value) bits = ~bits;
    bits &= ~std::uint64_t{0} << (bit % 64);
    if (bits != 0)
      return std::min(bits_, bit / 64 * 64 + static_cast<unsigned>(std::countr_zero(bits)));
    bit = (bit / 64 + 1) * 64;
  }
  return bits_;
}

DirtyBitmap::Range DirtyBitmap::next(std::uint64_t offset) const {
  if (offset >= size_) return {};
  const std::uint64_t first = find(offset >> granularity_bits_, true);
  if (first == bits_) return {};
  const std::uint64_t start = std::max(offset, first << granularity_bits_);
  const std::uint64_t end = std::min(size_, find(first, false) << granularity_bits_);
  return {start, end - start};
}

std::uint64_t DirtyBitmap::count() const {
  std::uint64_t count = 0;
  for (std::uint64_t i = 0; i < chunk_count_; ++i) {
    const Chunk* const chunk = chunks_[i].load(std::memory_order_acquire);
    if (!chunk) continue;
    for (const auto& word : chunk->words)
      count += static_cast<unsigned>(std::popcount(word.load(std::memory_order_relaxed)));
  }
  return count;
}

void DirtyBitmap::merge(const DirtyBitmap& source) {
  for (Range range = source.next(0); range.length != 0;
       range = source.next(range.offset + range.length)) {
    set(range.offset, range.length);
  }
}

// As bytes
// ------------------------------------------------------------------------------------------------

bool DirtyBitmap::any(std::uint64_t first, std::uint64_t count) const {
  const std::uint64_t end = std::min(bits_, (first + count) * 8);
  return first * 8 < end && find(first * 8, true) < end;
}

void DirtyBitmap::store(std::uint64_t first, std::span<std::byte> out) const {
  std::memset(out.data(), 0, out.size());
  for (std::uint64_t at = 0; at < out.size() && (first + at) * 8 < bits_; at += 8) {
    std::byte bytes[8];
    store_le(bytes, word((first + at) / 8));
    std::memcpy(out.data() + at, bytes, std::min<std::uint64_t>(8, out.size() - at));
  }
}

void DirtyBitmap::load(std::uint64_t first, std::span<const std::byte> in) {
  for (std::uint64_t at = 0; at < in.size() && (first + at) * 8 < bits_; at += 8) {
    std::byte bytes[8] = {};
    std::memcpy(bytes, in.data() + at, std::min<std::uint64_t>(8, in.size() - at));
    const std::uint64_t index = (first + at) / 8;
    const std::uint64_t value = load_le<std::uint64_t>(bytes) & valid(index);
    if (value == 0) continue;
    make(index / kWords)->words[index % kWords].fetch_or(value, std::memory_order_relaxed);
  }
}

void DirtyBitmap::load_ones(std::uint64_t first, std::uint64_t count) {
  const std::uint64_t end = std::min(bits_, (first + count) * 8);
  for (std::uint64_t bit = first * 8; bit < end;) {
    const std::uint64_t stop = std::min(end, bit + kChunkBits);
    std::atomic<Chunk*>& chunk = chunks_[bit / kChunkBits];
    if (stop - bit == kChunkBits && !chunk.load(std::memory_order_relaxed)) {
      chunk.store(ones(), std::memory_order_release);
    } else {
      set_bits(bit, stop);
    }
    bit = stop;
  }
}

}  // namespace platter
