#include "block/crypto/digest.h"

#include <gtest/gtest.h>

#include <array>
#include <future>

#include "block/crypto/af_splitter.h"
#include "block/exec/workers.h"
#include "unit/crypto/hex.h"

namespace platter::crypto {
namespace {

using namespace platter::crypto::testing;

TEST(Digest, KnowsTheHashesOfLuks) {
  for (const char* name : {"md5", "sha1", "sha224", "sha256", "sha384", "sha512", "ripemd160"}) {
    EXPECT_TRUE(Hash::named(name)) << name;
  }
  const auto none = Hash::named("whirlpool");
  ASSERT_FALSE(none);
  EXPECT_EQ(none.error().message(), "Hash algorithm 'whirlpool' is not supported");
}

TEST(Digest, IsThatOfBothParts) {
  std::vector<std::byte> out(32);
  ASSERT_TRUE(Hash::named("sha256")->digest(text_bytes("a"), text_bytes("bc"), out));
  EXPECT_EQ(to_hex(out), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

// RFC 6070, and the same for SHA-256.
TEST(Pbkdf2, GivesTheKnownKeys) {
  std::vector<std::byte> out(20);
  ASSERT_TRUE(Hash::named("sha1")->pbkdf2(text_bytes("password"), text_bytes("salt"), 4096, out));
  EXPECT_EQ(to_hex(out), "4b007901b765489abead49d926f721d065a429c1");
  out.resize(32);
  ASSERT_TRUE(Hash::named("sha256")->pbkdf2(text_bytes("password"), text_bytes("salt"), 1, out));
  EXPECT_EQ(to_hex(out), "120fb6cffcf8b32c43e7225256c4f837a86548c92ccc35480805987cb70be17b");
}

TEST(Pbkdf2, RefusesCountsThatTheLibraryWouldTakeForNegative) {
  std::vector<std::byte> out(20);
  const auto hash = Hash::named("sha1");
  EXPECT_FALSE(hash->pbkdf2(text_bytes("p"), text_bytes("s"), 0, out));
  EXPECT_FALSE(hash->pbkdf2(text_bytes("p"), text_bytes("s"), 0x8000'0000, out));
}

TEST(Pbkdf2, IsMeasured) {
  const auto hash = Hash::named("sha256");
  const auto little = hash->measure_pbkdf2(32, 0);
  ASSERT_TRUE(little);
  EXPECT_EQ(*little, 0u);
  const auto some = hash->measure_pbkdf2(32, 100);
  ASSERT_TRUE(some);
  EXPECT_GT(*some, 100u);
}

// The pool was there before the library, so its threads end after what the library does at exit.
// (What they leave, the address sanitizer tells at the end.)
TEST(RandomBytes, OfAThreadThatEndsLast) {
  std::promise<bool> got;
  WorkerPool::blocking().submit([&got] {
    std::array<std::byte, 16> bytes{};
    got.set_value(random_bytes(bytes).has_value());
  });
  EXPECT_TRUE(got.get_future().get());
}

TEST(AfSplitter, MergesWhatItSplit) {
  const auto hash = Hash::named("sha1");
  for (const std::size_t size : {1u, 16u, 20u, 64u}) {
    const std::vector<std::byte> key(size, std::byte{0x5a});
    std::vector<std::byte> split(size * 50);
    ASSERT_TRUE(af_split(*hash, 50, key, split));
    std::vector<std::byte> merged(size);
    ASSERT_TRUE(af_merge(*hash, 50, split, merged));
    EXPECT_EQ(merged, key);
    // A single bit of any stripe carries it all (but a tiny key, whose digests soon coincide).
    if (size < 16) continue;
    split[size * 17] ^= std::byte{1};
    ASSERT_TRUE(af_merge(*hash, 50, split, merged));
    EXPECT_NE(merged, key);
  }
}

TEST(AfSplitter, RefusesSizesThatDoNotFit) {
  const auto hash = Hash::named("sha1");
  std::vector<std::byte> key(16);
  std::vector<std::byte> split(16 * 4 + 1);
  EXPECT_FALSE(af_split(*hash, 4, key, split));
  EXPECT_FALSE(af_merge(*hash, 4, split, key));
  EXPECT_FALSE(af_merge(*hash, 0, split, key));
}

}  // namespace
}  // namespace platter::crypto
