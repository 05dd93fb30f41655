// Volumes in memory: made, unlocked, their slots filled and erased.
#include "block/crypto/luks.h"

#include <gtest/gtest.h>

#include "unit/crypto/hex.h"

namespace platter::crypto {
namespace {

using namespace platter::crypto::testing;

class Luks : public ::testing::Test {
 protected:
  void make(LuksParameters parameters = {}) {
    parameters.iteration_milliseconds = 0;  // the least
    auto made = make_luks_volume(parameters, text_bytes("secret"));
    ASSERT_TRUE(made) << made.error().message();
    volume_ = std::move(*made);
  }
  std::span<const std::byte> material(std::size_t slot) const {
    return std::span(volume_.area)
        .subspan(volume_.header.slots[slot].offset(), volume_.header.material_bytes());
  }
  // The key that slot and passphrase give; empty: none.
  std::string key_of(std::size_t slot, std::string_view passphrase) {
    auto key = unlock_luks_slot(volume_.header, slot, material(slot), text_bytes(passphrase));
    EXPECT_TRUE(key);
    return key && *key ? to_hex((*key)->span()) : "";
  }
  void write_material(std::size_t slot, const std::vector<std::byte>& bytes) {
    std::copy(
        bytes.begin(), bytes.end(),
        volume_.area.begin() + static_cast<std::ptrdiff_t>(volume_.header.slots[slot].offset()));
  }

  LuksVolume volume_;
};

TEST_F(Luks, IsLaidOutAsQemuDoes) {
  make();
  const LuksHeader& header = volume_.header;
  EXPECT_EQ(header.algorithm(), "aes-256");
  EXPECT_EQ(header.cipher_mode, "xts-plain64");
  EXPECT_EQ(header.payload_offset(), 2068480u);
  EXPECT_EQ(header.slots[0].offset(), 4096u);
  EXPECT_EQ(header.slots[1].offset(), 262144u);
  EXPECT_EQ(header.iterations, 1000u);
  EXPECT_TRUE(header.slots[0].active);
  EXPECT_EQ(header.slots[0].iterations, 1000u);
  EXPECT_EQ(volume_.area.size(), header.payload_offset());
  EXPECT_EQ(header.uuid.size(), 36u);
  const auto parsed = parse_luks_header(volume_.area, volume_.area.size());
  ASSERT_TRUE(parsed) << parsed.error().message();
  EXPECT_EQ(*parsed, header);
}

TEST_F(Luks, OpensWithItsPassphraseOnly) {
  for (const CipherMode mode :
       {CipherMode::kEcb, CipherMode::kCbc, CipherMode::kCtr, CipherMode::kXts}) {
    LuksParameters parameters;
    parameters.cipher = {.key_bits = 128,
                         .mode = mode,
                         .generator = IvGenerator::kEssiv,
                         .generator_hash = "sha256"};
    parameters.hash = "sha1";
    make(parameters);
    EXPECT_EQ(key_of(0, "secret"), to_hex(volume_.key.span()));
    EXPECT_EQ(key_of(0, "Secret"), "");
    EXPECT_EQ(key_of(0, ""), "");
  }
}

TEST_F(Luks, SlotsAreFilledAndErased) {
  make();
  auto filled = fill_luks_slot(volume_.header, 3, volume_.key.span(), text_bytes("other"), 0);
  ASSERT_TRUE(filled);
  write_material(3, *filled);
  EXPECT_EQ(key_of(0, "secret"), to_hex(volume_.key.span()));
  EXPECT_EQ(key_of(3, "other"), to_hex(volume_.key.span()));
  EXPECT_EQ(key_of(3, "secret"), "");
  EXPECT_FALSE(fill_luks_slot(volume_.header, 3, volume_.key.span(), text_bytes("x"), 0));
  EXPECT_FALSE(fill_luks_slot(volume_.header, 8, volume_.key.span(), text_bytes("x"), 0));

  auto erased = erase_luks_slot(volume_.header, 0, false);
  ASSERT_TRUE(erased);
  write_material(0, *erased);
  EXPECT_FALSE(volume_.header.slots[0].active);
  EXPECT_TRUE(parse_luks_header(encode_luks_header(volume_.header), volume_.area.size()));
  EXPECT_EQ(key_of(3, "other"), to_hex(volume_.key.span()));

  const auto last = erase_luks_slot(volume_.header, 3, false);
  ASSERT_FALSE(last);
  EXPECT_EQ(last.error().message(),
            "Attempt to erase the only active keyslot 3 which will erase all the data in the image "
            "irreversibly - refusing operation");
  EXPECT_TRUE(erase_luks_slot(volume_.header, 3, true));
}

TEST_F(Luks, RefusesTimesBeyondWhatAHeaderMayAsk) {
  LuksParameters parameters;
  parameters.iteration_milliseconds = 3'600'000;
  const auto made = make_luks_volume(parameters, text_bytes("secret"));
  ASSERT_FALSE(made);
  EXPECT_EQ(made.error().code(), EINVAL);
}

// Every field of the header, with every kind of lie.
TEST_F(Luks, HostileHeadersAreRefusedByField) {
  make();
  struct Lie {
    std::size_t offset;
    std::string bytes;
    const char* message;
  };
  const std::string letters = to_hex(std::vector<std::byte>(32, std::byte{'a'}));
  const auto slot = [](std::size_t n, std::size_t field) { return 208 + n * 48 + field; };
  const Lie lies[] = {
      {0, "4c554b53babf", "Volume is not in LUKS format"},
      {6, "0002", "LUKS version 2 is not supported"},
      {8, letters, "LUKS header cipher name is not NUL terminated"},
      {40, letters, "LUKS header cipher mode is not NUL terminated"},
      {72, letters, "LUKS header hash spec is not NUL terminated"},
      {40, "78747300", "Unexpected cipher mode string format 'xts'"},
      {104, "00000000", "LUKS payload is overlapping with the header"},
      {104, "ffffffff", "LUKS payload offset 2199023255040 is beyond the 2068480 bytes there are"},
      {108, "00000000", "LUKS master key of 0 bytes is not between 1 and 64 bytes long"},
      {108, "ffffffff", "LUKS master key of 4294967295 bytes is not between 1 and 64 bytes long"},
      {164, "00000000", "LUKS key iteration count is zero"},
      {164, "ffffffff", "LUKS key iteration count 4294967295 is too large"},
      {168, letters + letters.substr(0, 16), "LUKS header UUID is not NUL terminated"},
      {slot(2, 0), "12345678", "Keyslot 2 state (active/disable) is corrupted (0x12345678)"},
      {slot(0, 4), "00000000", "Keyslot 0 iteration count is zero"},
      {slot(0, 4), "ffffffff", "Keyslot 0 iteration count 4294967295 is too large"},
      // Two blocks of sha256 for a key of 64 bytes, and a thousand for the digest.
      {slot(0, 4), "07ffffff",
       "LUKS iteration counts add up to 268436454 hashes, more than 268435456"},
      {slot(0, 40), "00000000", "Keyslot 0 is overlapping with the LUKS header"},
      {slot(4, 40), "ffffffff", "Keyslot 4 is overlapping with the encrypted payload"},
      {slot(4, 40), "00000008", "Keyslots 0 and 4 are overlapping in the header"},
      {slot(7, 44), "00000fa1", "Keyslot 7 is corrupted (stripes 4001 != 4000)"},
      {slot(7, 44), "ffffffff", "Keyslot 7 is corrupted (stripes 4294967295 != 4000)"},
  };
  for (const Lie& lie : lies) {
    auto bytes = encode_luks_header(volume_.header);
    const auto lied = from_hex(lie.bytes);
    std::copy(lied.begin(), lied.end(), bytes.begin() + static_cast<std::ptrdiff_t>(lie.offset));
    const auto parsed = parse_luks_header(bytes, volume_.area.size());
    ASSERT_FALSE(parsed) << lie.message;
    EXPECT_EQ(parsed.error().message(), lie.message);
  }
  const auto cut = std::span(volume_.area).first(591);
  EXPECT_EQ(parse_luks_header(cut, 1 << 21).error().message(),
            "LUKS header is cut off: 591 bytes of 592");
}

TEST_F(Luks, CiphersThatAreNotOursAreNamedAndRefused) {
  make();
  LuksHeader header = volume_.header;
  header.cipher_name = "serpent";
  EXPECT_TRUE(parse_luks_header(encode_luks_header(header), volume_.area.size()));
  EXPECT_EQ(header.algorithm(), "serpent-256");
  EXPECT_EQ(header.cipher().error().message(),
            "Algorithm 'serpent' with key size 64 bytes is not supported");
  header = volume_.header;
  header.cipher_mode = "lrw-benbi";
  EXPECT_FALSE(header.cipher());
  header.cipher_mode = "cbc-benbi";
  EXPECT_FALSE(header.cipher());
  header.cipher_mode = "xts-essiv";
  EXPECT_EQ(header.cipher().error().message(), "Hash algorithm for ESSIV is missing");
  header = volume_.header;
  header.hash = "whirlpool";
  EXPECT_EQ(header.cipher().error().message(), "Hash algorithm 'whirlpool' is not supported");
  header = volume_.header;
  header.key_bytes = 63;
  EXPECT_FALSE(header.cipher());
}

}  // namespace
}  // namespace platter::crypto
