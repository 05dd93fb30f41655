#include "block/crypto/cipher.h"

#include <gtest/gtest.h>

#include <thread>

#include "unit/crypto/hex.h"

namespace platter::crypto {
namespace {

using namespace platter::crypto::testing;

CipherSpec spec_of(unsigned bits, CipherMode mode, IvGenerator generator) {
  return {.key_bits = bits,
          .mode = mode,
          .generator = generator,
          .generator_hash = generator == IvGenerator::kEssiv ? "sha256" : ""};
}

std::vector<std::byte> counted(std::size_t size) {
  std::vector<std::byte> bytes(size);
  for (std::size_t i = 0; i < size; ++i) bytes[i] = static_cast<std::byte>(i * 7 + i / 256);
  return bytes;
}

// IEEE 1619-2007, XTS-AES-128 vector 2: its two blocks come first in the sector.
TEST(SectorCipher, EncryptsAsTheXtsStandardSays) {
  const auto key = from_hex("1111111111111111111111111111111122222222222222222222222222222222");
  auto cipher = SectorCipher::create(spec_of(128, CipherMode::kXts, IvGenerator::kPlain64), key);
  ASSERT_TRUE(cipher);
  std::vector<std::byte> sector(512, std::byte{0x44});
  ASSERT_TRUE((*cipher)->encrypt(0x3333333333, sector));
  EXPECT_EQ(to_hex(std::span(sector).first(32)),
            "c454185e6a16936e39334038acef838bfb186fff7480adc4289382ecd6d394f0");
  ASSERT_TRUE((*cipher)->decrypt(0x3333333333, sector));
  EXPECT_EQ(sector, std::vector<std::byte>(512, std::byte{0x44}));
}

// NIST SP 800-38A, F.2.1: the first block, its plain text mixed with the vector's IV, as ours is 0.
TEST(SectorCipher, EncryptsAsTheCbcStandardSays) {
  const auto key = from_hex("2b7e151628aed2a6abf7158809cf4f3c");
  auto cipher = SectorCipher::create(spec_of(128, CipherMode::kCbc, IvGenerator::kPlain), key);
  ASSERT_TRUE(cipher);
  const auto plain = from_hex("6bc1bee22e409f96e93d7e117393172a");
  std::vector<std::byte> sector(512);
  for (std::size_t i = 0; i < 16; ++i) sector[i] = plain[i] ^ static_cast<std::byte>(i);
  ASSERT_TRUE((*cipher)->encrypt(0, sector));
  EXPECT_EQ(to_hex(std::span(sector).first(16)), "7649abac8119b246cee98e9b12e9197d");
}

TEST(SectorCipher, EverySectorHasItsOwnVector) {
  for (const CipherMode mode : {CipherMode::kCbc, CipherMode::kCtr, CipherMode::kXts}) {
    for (const IvGenerator generator :
         {IvGenerator::kPlain, IvGenerator::kPlain64, IvGenerator::kEssiv}) {
      const CipherSpec spec = spec_of(256, mode, generator);
      const auto key = counted(spec.key_bytes());
      auto cipher = SectorCipher::create(spec, key);
      ASSERT_TRUE(cipher);
      const auto plain = counted(8 * 512);
      auto all = plain;
      ASSERT_TRUE((*cipher)->encrypt(100, all));
      EXPECT_NE(all, plain);
      // One by one, it is the same.
      for (std::size_t i = 0; i < 8; ++i) {
        auto one =
            std::vector<std::byte>(plain.begin() + static_cast<std::ptrdiff_t>(i * 512),
                                   plain.begin() + static_cast<std::ptrdiff_t>(i * 512 + 512));
        ASSERT_TRUE((*cipher)->encrypt(100 + i, one));
        EXPECT_TRUE(
            std::equal(one.begin(), one.end(), all.begin() + static_cast<std::ptrdiff_t>(i * 512)));
      }
      ASSERT_TRUE((*cipher)->decrypt(100, all));
      EXPECT_EQ(all, plain);
    }
  }
}

TEST(SectorCipher, PlainCountsToFourGigasectorsOnly) {
  const std::uint64_t far = (std::uint64_t{1} << 32) + 5;
  for (const IvGenerator generator : {IvGenerator::kPlain, IvGenerator::kPlain64}) {
    auto cipher = SectorCipher::create(spec_of(128, CipherMode::kCbc, generator), counted(16));
    ASSERT_TRUE(cipher);
    auto near_sector = counted(512);
    auto far_sector = counted(512);
    ASSERT_TRUE((*cipher)->encrypt(5, near_sector));
    ASSERT_TRUE((*cipher)->encrypt(far, far_sector));
    EXPECT_EQ(near_sector == far_sector, generator == IvGenerator::kPlain);
  }
}

TEST(SectorCipher, SeveralThreadsUseOne) {
  auto cipher =
      SectorCipher::create(spec_of(256, CipherMode::kXts, IvGenerator::kPlain64), counted(64));
  ASSERT_TRUE(cipher);
  const auto plain = counted(16 * 512);
  std::vector<std::thread> threads;
  std::vector<int> wrong(3);
  for (int& failures : wrong) {
    threads.emplace_back([&cipher, &plain, &failures] {
      for (std::uint64_t round = 0; round < 20; ++round) {
        auto bytes = plain;
        if (!(*cipher)->encrypt(round, bytes) || !(*cipher)->decrypt(round, bytes) ||
            bytes != plain) {
          ++failures;
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, std::vector<int>(3));
}

TEST(SectorCipher, RefusesWhatItCannot) {
  auto cipher =
      SectorCipher::create(spec_of(256, CipherMode::kXts, IvGenerator::kPlain64), counted(63));
  ASSERT_FALSE(cipher);
  EXPECT_EQ(cipher.error().message(), "Cipher key length 63 should be 64");
  // Two equal keys are no XTS.
  cipher = SectorCipher::create(spec_of(128, CipherMode::kXts, IvGenerator::kPlain64),
                                std::vector<std::byte>(32));
  EXPECT_FALSE(cipher);
  CipherSpec essiv = spec_of(256, CipherMode::kCbc, IvGenerator::kEssiv);
  essiv.generator_hash = "sha1";
  cipher = SectorCipher::create(essiv, counted(32));
  ASSERT_FALSE(cipher);
  EXPECT_EQ(cipher.error().message(), "No AES cipher with key size 20 available");
  cipher = SectorCipher::create(spec_of(128, CipherMode::kCbc, IvGenerator::kPlain64), counted(16));
  ASSERT_TRUE(cipher);
  std::vector<std::byte> part(100);
  EXPECT_FALSE((*cipher)->encrypt(0, part));
}

TEST(SectorCipher, NamesAreQemus) {
  EXPECT_EQ(parse_algorithm("serpent-256").error().message(),
            "Algorithm 'serpent-256' not supported");
  EXPECT_EQ(parse_algorithm("serpent-256").error().code(), ENOTSUP);
  EXPECT_EQ(parse_algorithm("foo").error().message(),
            "Parameter 'cipher-alg' does not accept value 'foo'");
  EXPECT_EQ(parse_mode("foo").error().message(),
            "Parameter 'cipher-mode' does not accept value 'foo'");
  EXPECT_EQ(parse_generator("foo").error().message(),
            "Parameter 'ivgen-alg' does not accept value 'foo'");
}

}  // namespace
}  // namespace platter::crypto
