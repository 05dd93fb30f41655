#include "formats/qcow2/encryption.h"

#include <algorithm>

#include "block/base/checked.h"

namespace platter::qcow2 {
namespace {

using crypto::SectorTransform;

constexpr const char* kKeyNeeded = "Parameter 'encrypt.key-secret' is required for cipher";

// The old method takes the passphrase itself as the key of AES-128, cut off or filled with zeroes.
Result<std::unique_ptr<crypto::SectorCipher>> old_cipher(const crypto::SecretBytes& passphrase) {
  const crypto::CipherSpec spec{.key_bits = 128,
                                .mode = crypto::CipherMode::kCbc,
                                .generator = crypto::IvGenerator::kPlain64,
                                .generator_hash = {}};
  crypto::SecretBytes key(spec.key_bytes());
  const auto used = passphrase.span().first(std::min(passphrase.size(), key.size()));
  std::copy(used.begin(), used.end(), key.span().begin());
  return crypto::SectorCipher::create(spec, key.span());
}

Result<crypto::SecretBytes> find_key(const std::optional<std::string>& secret) {
  if (!secret) return fail(EINVAL, "{}", kKeyNeeded);
  return crypto::find_secret(*secret);
}

}  // namespace

Result<std::optional<std::string>> take_encryption_options(Options& options, CryptMethod method) {
  Options given = options.take_child("encrypt");
  const std::optional<std::string> format = given.take_string("format");
  if (method == CryptMethod::kNone) {
    if (!format) return std::nullopt;
    return fail(EINVAL, "No encryption in image header, but options specified format '{}'",
                *format);
  }
  const std::string_view name = method == CryptMethod::kLuks ? "luks" : "aes";
  if (format && *format != name) {
    return fail(EINVAL, "Header reported '{}' encryption format but options specify '{}'", name,
                *format);
  }
  std::optional<std::string> secret = given.take_string("key-secret");
  if (!given.empty()) return fail(EINVAL, "Parameter '{}' is unexpected", given.begin()->first);
  return secret;
}

Task<Result<crypto::LuksHeader>> read_encryption_header(BlockNode& file, const Header& header) {
  const std::optional<EncryptionPointer>& at = header.extensions.encryption;
  if (!at) co_return fail(EINVAL, "the image has LUKS encryption, but no encryption header");
  const auto end = checked_add(at->offset, at->length);
  if (at->length > kMaxEncryptionHeader || at->offset == 0 || !end ||
      *end > align_up(file.size(), header.cluster_size())) {
    co_return fail(EINVAL, "Encryption header of {} bytes at {:#x} is too long or outside the file",
                   at->length, at->offset);
  }
  auto luks = co_await crypto::read_luks_header(file, at->offset, at->length);
  co_return luks;
}

Task<Result<std::unique_ptr<DataTransform>>> unlock(BlockNode& file, const Header& header,
                                                    const crypto::LuksHeader* luks,
                                                    std::optional<std::string> secret) {
  auto passphrase = find_key(secret);
  PLATTER_CO_TRY(passphrase);
  std::unique_ptr<DataTransform> made;
  if (!luks) {
    auto cipher = old_cipher(*passphrase);
    PLATTER_CO_TRY(cipher);
    made =
        std::make_unique<SectorTransform>(std::move(*cipher), SectorTransform::Sectors::kByGuest);
    co_return std::move(made);
  }
  const auto spec = luks->cipher();
  PLATTER_CO_TRY(spec);
  auto key = co_await crypto::unlock_luks(file, header.extensions.encryption->offset, *luks,
                                          std::move(*passphrase));
  PLATTER_CO_TRY(key);
  auto cipher = crypto::SectorCipher::create(*spec, key->span());
  PLATTER_CO_TRY(cipher);
  made = std::make_unique<SectorTransform>(std::move(*cipher), SectorTransform::Sectors::kByHost);
  co_return std::move(made);
}

Result<crypto::SecretBytes> EncryptionPlan::key() const { return find_key(secret); }

namespace {

Result<void> take_luks_options(Options& options, crypto::LuksParameters& luks) {
  if (const auto name = options.take_string("encrypt.cipher-alg")) {
    const auto bits = crypto::parse_algorithm(*name);
    PLATTER_TRY(bits);
    luks.cipher.key_bits = *bits;
  }
  if (const auto name = options.take_string("encrypt.cipher-mode")) {
    const auto mode = crypto::parse_mode(*name);
    PLATTER_TRY(mode);
    luks.cipher.mode = *mode;
  }
  if (const auto name = options.take_string("encrypt.ivgen-alg")) {
    const auto generator = crypto::parse_generator(*name);
    PLATTER_TRY(generator);
    luks.cipher.generator = *generator;
  }
  if (luks.cipher.generator == crypto::IvGenerator::kEssiv) luks.cipher.generator_hash = "sha256";
  for (const auto& [key, target] : {std::pair{"ivgen-hash-alg", &luks.cipher.generator_hash},
                                    std::pair{"hash-alg", &luks.hash}}) {
    const auto name = options.take_string(fmt::format("encrypt.{}", key));
    if (!name) continue;
    if (!crypto::Hash::is_name(*name)) {
      return fail(EINVAL, "Parameter '{}' does not accept value '{}'", key, *name);
    }
    const auto known = crypto::Hash::named(*name);
    PLATTER_TRY(known);
    *target = *name;
  }
  const auto time = options.take_number("encrypt.iter-time");
  PLATTER_TRY(time);
  luks.iteration_milliseconds = time->value_or(luks.iteration_milliseconds);
  // Finds out now what would be wrong with the whole.
  crypto::SecretBytes key(luks.cipher.key_bytes());
  const Result<void> random = crypto::random_bytes(key.span());
  PLATTER_TRY(random);
  const auto cipher = crypto::SectorCipher::create(luks.cipher, key.span());
  PLATTER_TRY(cipher);
  return {};
}

}  // namespace

Result<EncryptionPlan> take_encryption_plan(Options& options) {
  EncryptionPlan plan;
  const auto old = options.take_bool("encryption");
  PLATTER_TRY(old);
  std::optional<std::string> format = options.take_string("encrypt.format");
  if (old->value_or(false)) {
    if (format) {
      return fail(EINVAL,
                  "'encrypt.format' and its alias 'encryption' can't be used at the same time");
    }
    format = "aes";
  }
  if (!format) {
    if (options.has_child("encrypt")) return fail(EINVAL, "Parameter 'encrypt.format' is missing");
    return plan;
  }
  if (*format == "luks") {
    plan.method = CryptMethod::kLuks;
  } else if (*format == "aes") {
    plan.method = CryptMethod::kAes;
  } else {
    return fail(EINVAL, "Parameter 'format' does not accept value '{}'", *format);
  }
  plan.secret = options.take_string("encrypt.key-secret");
  if (plan.method == CryptMethod::kLuks) {
    const Result<void> taken = take_luks_options(options, plan.luks);
    PLATTER_TRY(taken);
  }
  const Options rest = options.take_child("encrypt");
  if (!rest.empty()) {
    return fail(EINVAL, "Parameter 'encrypt.{}' is unexpected", rest.begin()->first);
  }
  return plan;
}

}  // namespace platter::qcow2
