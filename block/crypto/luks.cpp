#include "block/crypto/luks.h"

#include <algorithm>

#include "block/base/checked.h"
#include "block/crypto/af_splitter.h"
#include "block/crypto/openssl.h"

namespace platter::crypto {
namespace {

// QEMU's least counts.
constexpr std::uint64_t kLeastIterations = 1000;
// So that eight slots stay below what a header may ask.
constexpr std::uint64_t kMostHashes = kLuksMaxHashes / kLuksSlots / 2;

Result<std::uint32_t> choose_iterations(const Hash& hash, std::size_t bytes,
                                        std::uint64_t milliseconds) {
  if (milliseconds == 0) return static_cast<std::uint32_t>(kLeastIterations);
  // Beyond a day nothing is meant, and the product stays a number.
  const auto measured =
      hash.measure_pbkdf2(bytes, std::min<std::uint64_t>(milliseconds, 86'400'000));
  PLATTER_TRY(measured);
  const std::uint64_t most = kMostHashes / div_round_up(bytes, hash.size());
  if (*measured > most) {
    return fail(EINVAL, "iter-time {} means {} iterations here, more than {} (try a smaller one)",
                milliseconds, *measured, most);
  }
  return static_cast<std::uint32_t>(std::max(*measured, kLeastIterations));
}

// The cipher of a slot's key material, keyed by the passphrase.
Result<std::unique_ptr<SectorCipher>> slot_cipher(const LuksHeader& header, const LuksSlot& slot,
                                                  std::span<const std::byte> passphrase) {
  const auto spec = header.cipher();
  PLATTER_TRY(spec);
  const auto hash = Hash::named(header.hash);
  PLATTER_TRY(hash);
  SecretBytes key(header.key_bytes);
  const Result<void> derived = hash->pbkdf2(passphrase, slot.salt, slot.iterations, key.span());
  PLATTER_TRY(derived);
  return SectorCipher::create(*spec, key.span());
}

std::size_t whole_sectors(std::size_t bytes) {
  return (bytes + kSectorSize - 1) / kSectorSize * kSectorSize;
}

}  // namespace

Result<LuksVolume> make_luks_volume(const LuksParameters& parameters,
                                    std::span<const std::byte> passphrase) {
  const auto hash = Hash::named(parameters.hash);
  PLATTER_TRY(hash);
  LuksVolume volume;
  auto header = plan_luks_header(parameters.cipher, parameters.hash);
  PLATTER_TRY(header);
  volume.header = std::move(*header);
  volume.key = SecretBytes(parameters.cipher.key_bytes());
  Result<void> done = random_bytes(volume.key.span());
  PLATTER_TRY(done);
  done = random_bytes(volume.header.salt);
  PLATTER_TRY(done);
  // As QEMU: the digest takes an eighth of the time, so that eight wrong slots cost little more.
  const auto iterations =
      choose_iterations(*hash, kLuksDigestBytes, parameters.iteration_milliseconds / 8);
  PLATTER_TRY(iterations);
  volume.header.iterations = *iterations;
  done = hash->pbkdf2(volume.key.span(), volume.header.salt, *iterations, volume.header.digest);
  PLATTER_TRY(done);
  const auto material = fill_luks_slot(volume.header, 0, volume.key.span(), passphrase,
                                       parameters.iteration_milliseconds);
  PLATTER_TRY(material);
  volume.area.resize(volume.header.payload_offset());
  const auto bytes = encode_luks_header(volume.header);
  std::copy(bytes.begin(), bytes.end(), volume.area.begin());
  std::copy(material->begin(), material->end(),
            volume.area.begin() + static_cast<std::ptrdiff_t>(volume.header.slots[0].offset()));
  return volume;
}

Result<std::optional<SecretBytes>> unlock_luks_slot(const LuksHeader& header, std::size_t slot,
                                                    std::span<const std::byte> material,
                                                    std::span<const std::byte> passphrase) {
  const auto cipher = slot_cipher(header, header.slots[slot], passphrase);
  PLATTER_TRY(cipher);
  const auto hash = Hash::named(header.hash);
  PLATTER_TRY(hash);
  SecretBytes split(whole_sectors(header.material_bytes()));
  std::copy_n(material.begin(), std::min(material.size(), split.size()), split.span().begin());
  Result<void> done = (*cipher)->decrypt(0, split.span());
  PLATTER_TRY(done);
  SecretBytes key(header.key_bytes);
  done = af_merge(*hash, kLuksStripes, split.span().first(header.material_bytes()), key.span());
  PLATTER_TRY(done);
  std::array<std::byte, kLuksDigestBytes> digest;
  done = hash->pbkdf2(key.span(), header.salt, header.iterations, digest);
  PLATTER_TRY(done);
  const auto ssl = openssl();
  PLATTER_TRY(ssl);
  if ((*ssl)->CRYPTO_memcmp(digest.data(), header.digest.data(), digest.size()) != 0)
    return std::optional<SecretBytes>();
  return std::optional<SecretBytes>(std::move(key));
}

Result<std::vector<std::byte>> fill_luks_slot(LuksHeader& header, std::size_t slot,
                                              std::span<const std::byte> key,
                                              std::span<const std::byte> passphrase,
                                              std::uint64_t iteration_milliseconds) {
  if (slot >= kLuksSlots)
    return fail(EINVAL, "Invalid key slot {}: there are {}", slot, kLuksSlots);
  if (header.slots[slot].active) return fail(EINVAL, "Key slot {} is in use", slot);
  const auto hash = Hash::named(header.hash);
  PLATTER_TRY(hash);
  LuksSlot filled = header.slots[slot];
  const auto iterations = choose_iterations(*hash, header.key_bytes, iteration_milliseconds);
  PLATTER_TRY(iterations);
  filled.iterations = *iterations;
  Result<void> done = random_bytes(filled.salt);
  PLATTER_TRY(done);
  const auto cipher = slot_cipher(header, filled, passphrase);
  PLATTER_TRY(cipher);
  SecretBytes split(whole_sectors(header.material_bytes()));
  done = af_split(*hash, kLuksStripes, key, split.span().first(header.material_bytes()));
  PLATTER_TRY(done);
  done = (*cipher)->encrypt(0, split.span());
  PLATTER_TRY(done);
  filled.active = true;
  header.slots[slot] = filled;
  return std::vector<std::byte>(split.span().begin(), split.span().end());
}

Result<std::vector<std::byte>> erase_luks_slot(LuksHeader& header, std::size_t slot, bool force) {
  if (slot >= kLuksSlots)
    return fail(EINVAL, "Invalid key slot {}: there are {}", slot, kLuksSlots);
  const auto active = std::count_if(header.slots.begin(), header.slots.end(),
                                    [](const LuksSlot& s) { return s.active; });
  if (!force && header.slots[slot].active && active == 1) {
    return fail(EINVAL,
                "Attempt to erase the only active keyslot {} which will erase all the data "
                "in the image irreversibly - refusing operation",
                slot);
  }
  std::vector<std::byte> noise(whole_sectors(header.material_bytes()));
  const Result<void> done = random_bytes(noise);
  PLATTER_TRY(done);
  LuksSlot& erased = header.slots[slot];
  erased.active = false;
  erased.iterations = 0;
  erased.salt = {};
  return noise;
}

}  // namespace platter::crypto
