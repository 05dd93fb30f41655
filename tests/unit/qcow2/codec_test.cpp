#include "formats/qcow2/codec.h"

#include <gtest/gtest.h>
#include <zlib.h>
#include <zstd.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <string>
#include <thread>
#include <vector>

namespace platter::qcow2 {
namespace {

using Bytes = std::vector<std::byte>;

// Text-like data whose repeats lie at all distances, beyond 4 KiB too.
Bytes words(std::size_t size, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<std::string> dictionary(300);
  for (std::string& w : dictionary) {
    for (auto n = 2 + random() % 20; n != 0; --n)
      w.push_back(static_cast<char>('a' + random() % 26));
  }
  Bytes out;
  while (out.size() < size) {
    for (const char c : dictionary[random() % dictionary.size()]) {
      out.push_back(static_cast<std::byte>(c));
    }
  }
  out.resize(size);
  return out;
}

Bytes noise(std::size_t size) {
  std::mt19937 random(1);
  Bytes out(size);
  std::generate(out.begin(), out.end(), [&] { return static_cast<std::byte>(random()); });
  return out;
}

// Inflates a few bytes at a time, so that zlib keeps a window of 4 KiB and refuses to look back
// farther.
bool strict_inflate(std::span<const std::byte> packed, Bytes& out) {
  z_stream stream{};
  if (inflateInit2(&stream, -12) != Z_OK) return false;
  Bytes input(packed.begin(), packed.end());
  stream.next_in = reinterpret_cast<Bytef*>(input.data());
  stream.avail_in = static_cast<uInt>(input.size());
  int status = Z_OK;
  std::size_t made = 0;
  while (status == Z_OK) {
    stream.next_out = reinterpret_cast<Bytef*>(out.data() + made);
    stream.avail_out = static_cast<uInt>(std::min<std::size_t>(16, out.size() - made));
    const uInt before = stream.avail_out;
    status = inflate(&stream, Z_NO_FLUSH);
    made += before - stream.avail_out;
  }
  inflateEnd(&stream);
  return status == Z_STREAM_END && made == out.size();
}

class Codec : public ::testing::TestWithParam<CompressionType> {};

TEST_P(Codec, RoundTripsEveryClusterSize) {
  for (unsigned bits = 9; bits <= 21; ++bits) {
    const Bytes cluster = words(std::size_t{1} << bits, bits);
    Bytes packed(cluster.size());
    auto size = deflate_cluster(GetParam(), cluster, packed);
    ASSERT_TRUE(size);
    ASSERT_GT(*size, 0U);
    ASSERT_LT(*size, cluster.size());
    // Whatever follows in the last sector is not ours.
    packed.resize(*size);
    packed.resize(*size + 511, std::byte{0xa5});
    Bytes out(cluster.size());
    auto inflated = inflate_cluster(GetParam(), packed, out);
    ASSERT_TRUE(inflated) << inflated.error().message();
    EXPECT_EQ(out, cluster);
  }
}

TEST_P(Codec, ZeroesPackToNearlyNothing) {
  const Bytes cluster(65536);
  Bytes packed(cluster.size());
  auto size = deflate_cluster(GetParam(), cluster, packed);
  ASSERT_TRUE(size);
  EXPECT_GT(*size, 0U);
  EXPECT_LT(*size, 512U);
}

TEST_P(Codec, NoiseIsNotPacked) {
  const Bytes cluster = noise(65536);
  Bytes packed(cluster.size() + 1000);
  auto size = deflate_cluster(GetParam(), cluster, packed);
  ASSERT_TRUE(size);
  EXPECT_EQ(*size, 0U);
}

TEST_P(Codec, ATooSmallBufferIsNotOverrun) {
  const Bytes cluster = words(65536, 3);
  Bytes packed(100, std::byte{0x5a});
  auto size = deflate_cluster(GetParam(), cluster, std::span(packed).first(90));
  ASSERT_TRUE(size);
  EXPECT_EQ(*size, 0U);
  EXPECT_EQ(packed[90], std::byte{0x5a});
}

TEST_P(Codec, BombsAndShortStreamsAreErrors) {
  const Bytes cluster(65536);
  Bytes packed(cluster.size());
  auto size = deflate_cluster(GetParam(), cluster, packed);
  ASSERT_TRUE(size);
  packed.resize(*size);
  Bytes small(4096);
  auto bomb = inflate_cluster(GetParam(), packed, small);
  ASSERT_FALSE(bomb);
  EXPECT_EQ(bomb.error().code(), EIO);
  Bytes large(131072);
  EXPECT_FALSE(inflate_cluster(GetParam(), packed, large));
  EXPECT_FALSE(inflate_cluster(GetParam(), {}, small));
}

TEST_P(Codec, EveryTruncationIsAnError) {
  const Bytes cluster = words(4096, 9);
  Bytes packed(cluster.size());
  auto size = deflate_cluster(GetParam(), cluster, packed);
  ASSERT_TRUE(size);
  Bytes out(cluster.size());
  for (std::size_t n = 0; n < *size; ++n) {
    EXPECT_FALSE(inflate_cluster(GetParam(), std::span(packed).first(n), out)) << n;
  }
}

TEST_P(Codec, GarbageIsAnError) {
  const Bytes packed(4096, std::byte{0xff});
  Bytes out(65536);
  EXPECT_FALSE(inflate_cluster(GetParam(), packed, out));
}

TEST_P(Codec, WorksOnManyThreads) {
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < 4; ++t) {
    threads.emplace_back([t] {
      for (unsigned i = 0; i < 8; ++i) {
        const Bytes cluster = words(65536, t * 100 + i);
        Bytes packed(cluster.size());
        Bytes out(cluster.size());
        auto size = deflate_cluster(GetParam(), cluster, packed);
        ASSERT_TRUE(size);
        ASSERT_TRUE(inflate_cluster(GetParam(), std::span(packed).first(*size), out));
        ASSERT_EQ(out, cluster);
      }
    });
  }
  for (std::thread& t : threads) t.join();
}

INSTANTIATE_TEST_SUITE_P(Types, Codec,
                         ::testing::Values(CompressionType::kZlib, CompressionType::kZstd),
                         [](const auto& type) {
                           return type.param == CompressionType::kZlib ? "zlib" : "zstd";
                         });

TEST(CodecZlib, KeepsToAWindowOf4KiB) {
  for (const std::size_t size : {std::size_t{65536}, std::size_t{2} << 20}) {
    for (unsigned seed = 0; seed < 4; ++seed) {
      const Bytes cluster = words(size, seed);
      Bytes packed(size);
      auto used = deflate_cluster(CompressionType::kZlib, cluster, packed);
      ASSERT_TRUE(used);
      Bytes out(size);
      ASSERT_TRUE(strict_inflate(std::span(packed).first(*used), out)) << size << ' ' << seed;
      EXPECT_EQ(out, cluster);
    }
  }
}

TEST(CodecZlib, TheStrictReaderIsStrict) {
  Bytes cluster = noise(8192);
  std::copy_n(cluster.begin(), 2048, cluster.begin() + 6000);
  z_stream stream{};
  ASSERT_EQ(deflateInit2(&stream, 9, Z_DEFLATED, -15, 9, Z_DEFAULT_STRATEGY), Z_OK);
  Bytes packed(16384);
  stream.next_in = reinterpret_cast<Bytef*>(cluster.data());
  stream.avail_in = static_cast<uInt>(cluster.size());
  stream.next_out = reinterpret_cast<Bytef*>(packed.data());
  stream.avail_out = static_cast<uInt>(packed.size());
  ASSERT_EQ(deflate(&stream, Z_FINISH), Z_STREAM_END);
  packed.resize(stream.total_out);
  deflateEnd(&stream);
  Bytes out(cluster.size());
  EXPECT_FALSE(strict_inflate(packed, out));
  EXPECT_TRUE(inflate_cluster(CompressionType::kZlib, packed, out)) << "readers are generous";
}

TEST(CodecZstd, ReadsAClusterInSeveralFrames) {
  const Bytes cluster = words(65536, 4);
  Bytes packed;
  for (std::size_t at = 0; at < cluster.size(); at += 16384) {
    Bytes frame(ZSTD_compressBound(16384));
    const std::size_t n = ZSTD_compress(frame.data(), frame.size(), cluster.data() + at, 16384, 19);
    ASSERT_FALSE(ZSTD_isError(n));
    packed.insert(packed.end(), frame.begin(), frame.begin() + static_cast<std::ptrdiff_t>(n));
  }
  Bytes out(cluster.size());
  auto inflated = inflate_cluster(CompressionType::kZstd, packed, out);
  ASSERT_TRUE(inflated) << inflated.error().message();
  EXPECT_EQ(out, cluster);
}

}  // namespace
}  // namespace platter::qcow2
