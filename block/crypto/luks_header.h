// The header of a LUKS1 volume (LUKS on-disk format 1.2, section 3): bytes to a validated value and
// back. Every slot of a LuksHeader that came out of parse_luks_header() lies between the header and
// the payload, apart from the others, and has 4000 stripes.
//
// Threads: pure functions over values.
// Errors: EINVAL with QEMU's words where it has some, naming field and value; ENOTSUP for versions,
// ciphers and hashes that we do not know.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "block/base/error.h"
#include "block/crypto/cipher.h"

namespace platter::crypto {

inline constexpr std::size_t kLuksHeaderBytes = 592;
inline constexpr std::size_t kLuksSlots = 8;
inline constexpr std::uint32_t kLuksStripes = 4000;
inline constexpr std::size_t kLuksSaltBytes = 32;
inline constexpr std::size_t kLuksDigestBytes = 20;
inline constexpr std::uint64_t kLuksKeyAreaOffset = 4096;  // bytes; where slots may begin
inline constexpr std::size_t kLuksMaxKeyBytes = 64;
// Hashes that PBKDF2 takes to try all active slots, above which a header is refused: some 30
// seconds of a fast core. One that was made for that much is not one of ours.
inline constexpr std::uint64_t kLuksMaxHashes = std::uint64_t{1} << 28;

struct LuksSlot {
  bool active = false;
  std::uint32_t iterations = 0;
  std::array<std::byte, kLuksSaltBytes> salt{};
  std::uint32_t sector = 0;  // where its key material lies, in sectors from the header's start
  std::uint32_t stripes = kLuksStripes;
  std::uint64_t offset() const { return std::uint64_t{sector} * kSectorSize; }  // bytes
  bool operator==(const LuksSlot&) const = default;
};

struct LuksHeader {
  std::string cipher_name;  // "aes"
  std::string cipher_mode;  // "xts-plain64", "cbc-essiv:sha256"
  std::string hash;         // "sha256"
  std::uint32_t payload_sector = 0;
  std::uint32_t key_bytes = 0;
  std::array<std::byte, kLuksDigestBytes> digest{};  // of the master key
  std::array<std::byte, kLuksSaltBytes> salt{};
  std::uint32_t iterations = 0;
  std::string uuid;
  std::array<LuksSlot, kLuksSlots> slots;

  std::uint64_t payload_offset() const { return std::uint64_t{payload_sector} * kSectorSize; }
  // Bytes of a slot's key material.
  std::size_t material_bytes() const { return std::size_t{key_bytes} * kLuksStripes; }
  // As QEMU names them: "aes-256", "xts", "plain64", "sha256" (empty: none).
  std::string algorithm() const;
  std::string mode() const;
  std::string generator() const;
  std::string generator_hash() const;
  // What our cipher needs to know; ENOTSUP with the name of what we do not have.
  Result<CipherSpec> cipher() const;
  bool operator==(const LuksHeader&) const = default;
};

// `bytes` starts with the header; `area` bounds everything: how long header and slots may be.
Result<LuksHeader> parse_luks_header(std::span<const std::byte> bytes, std::uint64_t area);
std::array<std::byte, kLuksHeaderBytes> encode_luks_header(const LuksHeader& header);
// Whether parse_luks_header() takes its iteration counts (kLuksMaxHashes).
Result<void> check_luks_iterations(const LuksHeader& header);

// A header with all slots idle, for a new volume: its places, names and UUID, but no key yet.
Result<LuksHeader> plan_luks_header(const CipherSpec& cipher, const std::string& hash);
// Bytes in front of the payload of a new volume: header and room for the slots.
std::uint64_t luks_payload_offset(const CipherSpec& cipher);

}  // namespace platter::crypto
