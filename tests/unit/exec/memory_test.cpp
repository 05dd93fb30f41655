// Buffers, byte vectors and the memory of coroutine frames.
#include <gtest/gtest.h>

#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "block/exec/buffer.h"
#include "block/exec/frame_pool.h"
#include "block/exec/iovec.h"

namespace platter {
namespace {

bool page_aligned(const void* p) {
  return reinterpret_cast<std::uintptr_t>(p) % Buffer::kAlignment == 0;
}

TEST(Buffer, IsAlignedAtEverySize) {
  for (std::size_t size : {1UL, 4095UL, 4096UL, 4097UL, 65536UL, 2UL << 20, (2UL << 20) + 1}) {
    Buffer buffer(size);
    EXPECT_EQ(buffer.size(), size);
    EXPECT_TRUE(page_aligned(buffer.data()));
    std::memset(buffer.data(), 0xa5, size);
  }
  const Buffer empty(0);
  EXPECT_EQ(empty.size(), 0U);
  EXPECT_EQ(empty.data(), nullptr);
}

TEST(Buffer, ZeroedIsZeroEvenWhenReused) {
  for (int i = 0; i < 3; ++i) {
    Buffer buffer = Buffer::zeroed(8192);
    EXPECT_TRUE(is_zero(buffer.span()));
    std::memset(buffer.data(), 1, buffer.size());
  }
}

TEST(Buffer, MovesToOtherThreads) {
  Buffer buffer(4096);
  std::byte* const data = buffer.data();
  std::thread([moved = std::move(buffer), data] { EXPECT_EQ(moved.data(), data); }).join();
  EXPECT_EQ(buffer.size(), 0U);
  Buffer other(4096);
  other = Buffer(100);
  EXPECT_EQ(other.size(), 100U);
}

TEST(FramePool, ServesAllSizesOnAnyThread) {
  std::vector<std::pair<void*, std::size_t>> frames;
  for (std::size_t size = 1; size < 10000; size = size * 3 / 2 + 1) {
    frames.emplace_back(allocate_frame(size), size);
    std::memset(frames.back().first, 0x5a, size);
  }
  std::thread([&] {
    for (auto [frame, size] : frames) free_frame(frame, size);
    void* again = allocate_frame(64);
    free_frame(again, 64);
  }).join();
}

struct Segments {
  explicit Segments(std::initializer_list<std::size_t> sizes) {
    const std::size_t total = std::accumulate(sizes.begin(), sizes.end(), std::size_t{0});
    for (std::size_t i = 0; i < total; ++i) memory.push_back(static_cast<std::byte>('a' + i));
    std::size_t at = 0;
    for (std::size_t size : sizes) {
      iov.push_back({memory.data() + at, size});
      at += size;
    }
  }
  IoVec view() const { return IoVec(std::span<const iovec>(iov)); }
  std::vector<std::byte> memory;
  std::vector<iovec> iov;
};

std::string text(const IoVec& v) {
  std::string out(v.size(), '?');
  v.copy_to(reinterpret_cast<std::byte*>(out.data()));
  return out;
}

TEST(IoVec, SlicesAsTheBytesDo) {
  const Segments segments{3, 0, 4, 1, 2};
  const std::string whole = "abcdefghij";
  ASSERT_EQ(text(segments.view()), whole);
  for (std::size_t offset = 0; offset <= whole.size(); ++offset) {
    for (std::size_t length = 0; length <= whole.size() - offset; ++length) {
      const IoVec slice = segments.view().slice(offset, length);
      EXPECT_EQ(text(slice), whole.substr(offset, length));
      EXPECT_EQ(slice.empty(), length == 0);
      if (length > 2) {
        EXPECT_EQ(text(slice.from(1).first(1)), whole.substr(offset + 1, 1));
      }
      if (const auto flat = slice.contiguous(); !flat.empty()) {
        EXPECT_EQ(slice.pieces(), 1U);
        EXPECT_EQ(static_cast<char>(flat[0]), whole[offset]);
      }
    }
  }
}

TEST(IoVec, OneSegmentAndNone) {
  std::vector<std::byte> memory(16, std::byte{7});
  const IoVec one{std::span<std::byte>(memory)};
  EXPECT_EQ(one.slice(4, 8).contiguous().data(), memory.data() + 4);
  EXPECT_EQ(one.pieces(), 1U);
  EXPECT_EQ(IoVec().pieces(), 0U);
  EXPECT_TRUE(IoVec().is_zero());
  one.slice(4, 8).fill(std::byte{0});
  EXPECT_FALSE(one.is_zero());
  EXPECT_TRUE(one.slice(4, 8).is_zero());
}

TEST(IoVec, CopiesInAndFills) {
  const Segments segments{2, 5, 3};
  const std::string source = "0123456789";
  segments.view().slice(1, 8).copy_from(reinterpret_cast<const std::byte*>(source.data()));
  EXPECT_EQ(text(segments.view()), "a01234567j");
  segments.view().slice(3, 4).fill(std::byte{'-'});
  EXPECT_EQ(text(segments.view()), "a01----67j");
}

TEST(IoVec, AlignmentOfEveryPiece) {
  Buffer buffer(8192);
  const iovec aligned[] = {{buffer.data(), 512}, {buffer.data() + 4096, 1024}};
  EXPECT_TRUE(IoVec(std::span<const iovec>(aligned)).is_aligned(512));
  EXPECT_FALSE(IoVec(std::span<const iovec>(aligned)).is_aligned(1024));
  EXPECT_FALSE(IoVec(std::span<const iovec>(aligned)).slice(1, 100).is_aligned(2));
}

TEST(IsZero, FindsOneByteAnywhere) {
  for (std::size_t size : {1UL, 7UL, 255UL, 256UL, 257UL, 1000UL}) {
    std::vector<std::byte> bytes(size);
    EXPECT_TRUE(is_zero(bytes));
    for (std::size_t i = 0; i < size; ++i) {
      bytes[i] = std::byte{0x80};
      EXPECT_FALSE(is_zero(bytes)) << i << " of " << size;
      bytes[i] = std::byte{0};
    }
  }
}

}  // namespace
}  // namespace platter
