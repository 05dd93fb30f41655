#include "block/crypto/luks_header.h"

#include <algorithm>
#include <optional>

#include "block/base/bytes.h"
#include "block/base/checked.h"

namespace platter::crypto {
namespace {

constexpr std::array<std::uint8_t, 6> kMagic{'L', 'U', 'K', 'S', 0xba, 0xbe};
constexpr std::uint32_t kActive = 0x00AC71F3;
constexpr std::uint32_t kIdle = 0x0000DEAD;
constexpr std::size_t kNameBytes = 32;
constexpr std::size_t kUuidBytes = 40;

// Text up to its NUL; nothing when there is none.
std::optional<std::string> text_of(std::span<const std::byte> field) {
  const auto end = std::find(field.begin(), field.end(), std::byte{0});
  if (end == field.end()) return std::nullopt;
  std::string text;
  for (auto at = field.begin(); at != end; ++at) text += static_cast<char>(*at);
  return text;
}

void put_text(Writer& out, const std::string& text, std::size_t room) {
  const std::size_t length = std::min(text.size(), room - 1);
  out.bytes(std::as_bytes(std::span(text).first(length)));
  out.zeroes(room - length);
}

template <std::size_t N>
void take_bytes(Reader& in, std::array<std::byte, N>& to) {
  const auto bytes = in.bytes(N);
  std::copy(bytes.begin(), bytes.end(), to.begin());
}

std::uint64_t sectors_of(std::uint64_t bytes) { return div_round_up(bytes, kSectorSize); }

Result<void> check_slots(const LuksHeader& header) {
  const std::uint64_t length = sectors_of(header.material_bytes());
  for (std::size_t i = 0; i < kLuksSlots; ++i) {
    const LuksSlot& slot = header.slots[i];
    if (slot.stripes != kLuksStripes) {
      return fail(EINVAL, "Keyslot {} is corrupted (stripes {} != {})", i, slot.stripes,
                  kLuksStripes);
    }
    if (slot.offset() < kLuksKeyAreaOffset) {
      return fail(EINVAL, "Keyslot {} is overlapping with the LUKS header", i);
    }
    if (slot.active && slot.iterations == 0) {
      return fail(EINVAL, "Keyslot {} iteration count is zero", i);
    }
    if (slot.sector + length > header.payload_sector) {
      return fail(EINVAL, "Keyslot {} is overlapping with the encrypted payload", i);
    }
  }
  for (std::size_t i = 0; i < kLuksSlots; ++i) {
    const std::uint64_t sector = header.slots[i].sector;
    for (std::size_t k = i + 1; k < kLuksSlots; ++k) {
      const std::uint64_t other = header.slots[k].sector;
      if (sector + length > other && other + length > sector) {
        return fail(EINVAL, "Keyslots {} and {} are overlapping in the header", i, k);
      }
    }
  }
  return {};
}

Result<void> check(const LuksHeader& header, std::uint64_t area) {
  if (header.payload_offset() < kLuksKeyAreaOffset) {
    return fail(EINVAL, "LUKS payload is overlapping with the header");
  }
  if (header.payload_offset() > area) {
    return fail(EINVAL, "LUKS payload offset {} is beyond the {} bytes there are",
                header.payload_offset(), area);
  }
  if (header.iterations == 0) return fail(EINVAL, "LUKS key iteration count is zero");
  if (header.key_bytes == 0 || header.key_bytes > kLuksMaxKeyBytes) {
    return fail(EINVAL, "LUKS master key of {} bytes is not between 1 and {} bytes long",
                header.key_bytes, kLuksMaxKeyBytes);
  }
  if (header.mode().empty() || header.generator().empty()) {
    return fail(EINVAL, "Unexpected cipher mode string format '{}'", header.cipher_mode);
  }
  const Result<void> slots = check_slots(header);
  PLATTER_TRY(slots);
  return check_luks_iterations(header);
}

Result<std::string> make_uuid() {
  std::array<std::byte, 16> bytes;
  const Result<void> random = random_bytes(bytes);
  PLATTER_TRY(random);
  bytes[6] = (bytes[6] & std::byte{0x0f}) | std::byte{0x40};  // version 4: random
  bytes[8] = (bytes[8] & std::byte{0x3f}) | std::byte{0x80};
  std::string text;
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    if (i == 4 || i == 6 || i == 8 || i == 10) text += '-';
    text += fmt::format("{:02x}", std::to_integer<unsigned>(bytes[i]));
  }
  return text;
}

}  // namespace

// What a wrong passphrase costs: each slot's key, and each time the digest of what came out.
Result<void> check_luks_iterations(const LuksHeader& header) {
  const auto hash = Hash::named(header.hash);
  // (No passphrase is tried with a hash that is not there.)
  const std::size_t bytes = hash ? hash->size() : kLuksMaxKeyBytes;
  const std::uint64_t digest = header.iterations * div_round_up(kLuksDigestBytes, bytes);
  if (digest > kLuksMaxHashes) {
    return fail(EINVAL, "LUKS key iteration count {} is too large", header.iterations);
  }
  std::uint64_t sum = 0;
  for (std::size_t i = 0; i < kLuksSlots; ++i) {
    if (!header.slots[i].active) continue;
    const std::uint64_t one =
        header.slots[i].iterations * div_round_up<std::uint64_t>(header.key_bytes, bytes);
    if (one > kLuksMaxHashes) {
      return fail(EINVAL, "Keyslot {} iteration count {} is too large", i,
                  header.slots[i].iterations);
    }
    sum += one + digest;
  }
  if (sum > kLuksMaxHashes) {
    return fail(EINVAL, "LUKS iteration counts add up to {} hashes, more than {}", sum,
                kLuksMaxHashes);
  }
  return {};
}

std::string LuksHeader::mode() const {
  const std::size_t dash = cipher_mode.find('-');
  return dash == std::string::npos ? std::string() : cipher_mode.substr(0, dash);
}

std::string LuksHeader::generator() const {
  const std::size_t dash = cipher_mode.find('-');
  if (dash == std::string::npos) return {};
  return cipher_mode.substr(dash + 1, cipher_mode.find(':', dash) - dash - 1);
}

std::string LuksHeader::generator_hash() const {
  const std::size_t colon = cipher_mode.find(':');
  return colon == std::string::npos ? std::string() : cipher_mode.substr(colon + 1);
}

std::string LuksHeader::algorithm() const {
  const std::uint32_t bits = key_bytes * 8 / (mode() == "xts" ? 2 : 1);
  return fmt::format("{}-{}", cipher_name, bits);
}

Result<CipherSpec> LuksHeader::cipher() const {
  CipherSpec spec;
  const auto of_mode = parse_mode(mode());
  if (!of_mode) return fail(ENOTSUP, "Cipher mode '{}' is not supported", mode());
  spec.mode = *of_mode;
  const auto bits = parse_algorithm(algorithm());
  if (!bits) {
    return fail(ENOTSUP, "Algorithm '{}' with key size {} bytes is not supported", cipher_name,
                key_bytes);
  }
  spec.key_bits = *bits;
  const auto of_generator = parse_generator(generator());
  if (!of_generator) return fail(ENOTSUP, "IV generator '{}' is not supported", generator());
  spec.generator = *of_generator;
  if (spec.generator == IvGenerator::kEssiv) {
    if (generator_hash().empty()) return fail(EINVAL, "Hash algorithm for ESSIV is missing");
    spec.generator_hash = generator_hash();
    const auto known = Hash::named(spec.generator_hash);
    PLATTER_TRY(known);
  }
  const auto known = Hash::named(hash);
  PLATTER_TRY(known);
  if (spec.key_bytes() != key_bytes) {
    return fail(EINVAL, "Master key of {} bytes does not fit cipher {}", key_bytes, algorithm());
  }
  return spec;
}

Result<LuksHeader> parse_luks_header(std::span<const std::byte> bytes, std::uint64_t area) {
  if (bytes.size() < kLuksHeaderBytes || area < kLuksHeaderBytes) {
    return fail(EINVAL, "LUKS header is cut off: {} bytes of {}",
                std::min<std::uint64_t>(bytes.size(), area), kLuksHeaderBytes);
  }
  Reader in(bytes.first(kLuksHeaderBytes));
  const auto magic = in.bytes(kMagic.size());
  if (!std::equal(magic.begin(), magic.end(), std::as_bytes(std::span(kMagic)).begin())) {
    return fail(EINVAL, "Volume is not in LUKS format");
  }
  const auto version = in.be<std::uint16_t>();
  if (version != 1) return fail(ENOTSUP, "LUKS version {} is not supported", version);
  const auto name = text_of(in.bytes(kNameBytes));
  if (!name) return fail(EINVAL, "LUKS header cipher name is not NUL terminated");
  const auto mode = text_of(in.bytes(kNameBytes));
  if (!mode) return fail(EINVAL, "LUKS header cipher mode is not NUL terminated");
  const auto hash = text_of(in.bytes(kNameBytes));
  if (!hash) return fail(EINVAL, "LUKS header hash spec is not NUL terminated");
  LuksHeader header;
  header.cipher_name = *name;
  header.cipher_mode = *mode;
  header.hash = *hash;
  header.payload_sector = in.be<std::uint32_t>();
  header.key_bytes = in.be<std::uint32_t>();
  take_bytes(in, header.digest);
  take_bytes(in, header.salt);
  header.iterations = in.be<std::uint32_t>();
  const auto uuid = text_of(in.bytes(kUuidBytes));
  if (!uuid) return fail(EINVAL, "LUKS header UUID is not NUL terminated");
  header.uuid = *uuid;
  for (std::size_t i = 0; i < kLuksSlots; ++i) {
    LuksSlot& slot = header.slots[i];
    const auto state = in.be<std::uint32_t>();
    slot.active = state == kActive;
    slot.iterations = in.be<std::uint32_t>();
    take_bytes(in, slot.salt);
    slot.sector = in.be<std::uint32_t>();
    slot.stripes = in.be<std::uint32_t>();
    if (state != kActive && state != kIdle) {
      return fail(EINVAL, "Keyslot {} state (active/disable) is corrupted ({:#x})", i, state);
    }
  }
  const Result<void> valid = check(header, area);
  PLATTER_TRY(valid);
  return header;
}

std::array<std::byte, kLuksHeaderBytes> encode_luks_header(const LuksHeader& header) {
  std::array<std::byte, kLuksHeaderBytes> bytes{};
  Writer out(bytes);
  out.bytes(std::as_bytes(std::span(kMagic)));
  out.be(std::uint16_t{1});
  put_text(out, header.cipher_name, kNameBytes);
  put_text(out, header.cipher_mode, kNameBytes);
  put_text(out, header.hash, kNameBytes);
  out.be(header.payload_sector);
  out.be(header.key_bytes);
  out.bytes(header.digest);
  out.bytes(header.salt);
  out.be(header.iterations);
  put_text(out, header.uuid, kUuidBytes);
  for (const LuksSlot& slot : header.slots) {
    out.be(slot.active ? kActive : kIdle);
    out.be(slot.iterations);
    out.bytes(slot.salt);
    out.be(slot.sector);
    out.be(slot.stripes);
  }
  return bytes;
}

namespace {

// Sectors from one slot to the next.
std::uint64_t slot_step(const CipherSpec& cipher) {
  return align_up(sectors_of(cipher.key_bytes() * kLuksStripes), kLuksKeyAreaOffset / kSectorSize);
}

}  // namespace

std::uint64_t luks_payload_offset(const CipherSpec& cipher) {
  return kLuksKeyAreaOffset + kLuksSlots * slot_step(cipher) * kSectorSize;
}

Result<LuksHeader> plan_luks_header(const CipherSpec& cipher, const std::string& hash) {
  LuksHeader header;
  header.cipher_name = "aes";
  header.cipher_mode = fmt::format("{}-{}", name_of(cipher.mode), name_of(cipher.generator));
  if (!cipher.generator_hash.empty()) header.cipher_mode += ':' + cipher.generator_hash;
  header.hash = hash;
  header.key_bytes = static_cast<std::uint32_t>(cipher.key_bytes());
  header.payload_sector = static_cast<std::uint32_t>(luks_payload_offset(cipher) / kSectorSize);
  for (std::size_t i = 0; i < kLuksSlots; ++i) {
    header.slots[i].sector =
        static_cast<std::uint32_t>(kLuksKeyAreaOffset / kSectorSize + i * slot_step(cipher));
  }
  auto uuid = make_uuid();
  PLATTER_TRY(uuid);
  header.uuid = std::move(*uuid);
  return header;
}

}  // namespace platter::crypto
