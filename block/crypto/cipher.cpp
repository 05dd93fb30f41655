#include "block/crypto/cipher.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "block/base/bytes.h"
#include "block/crypto/openssl.h"

namespace platter::crypto {
namespace {

constexpr std::size_t kBlock = 16;

constexpr std::array<std::string_view, 9> kOtherAlgorithms{
    "des",         "3des",        "cast5-128",   "serpent-128", "serpent-192",
    "serpent-256", "twofish-128", "twofish-192", "twofish-256"};

struct FreeContext {
  const OpenSsl* ssl = nullptr;
  void operator()(EVP_CIPHER_CTX* context) const { ssl->EVP_CIPHER_CTX_free(context); }
};
using Context = std::unique_ptr<EVP_CIPHER_CTX, FreeContext>;

unsigned char* raw(std::byte* bytes) { return reinterpret_cast<unsigned char*>(bytes); }
const unsigned char* raw(const std::byte* bytes) {
  return reinterpret_cast<const unsigned char*>(bytes);
}

// A context with `key` set for the cipher that the library calls `name`.
Result<Context> make_context(const std::string& name, std::span<const std::byte> key,
                             bool encrypting) {
  const auto loaded = openssl();
  PLATTER_TRY(loaded);
  const OpenSsl& ssl = **loaded;
  EVP_CIPHER* cipher = ssl.EVP_CIPHER_fetch(nullptr, name.c_str(), nullptr);
  if (cipher == nullptr) return fail(ENOTSUP, "Cipher '{}' is not offered by the library", name);
  Context context(ssl.EVP_CIPHER_CTX_new(), {&ssl});
  const bool ready =
      context && static_cast<std::size_t>(ssl.EVP_CIPHER_get_key_length(cipher)) == key.size() &&
      ssl.EVP_CipherInit_ex2(context.get(), cipher, raw(key.data()), nullptr, encrypting ? 1 : 0,
                             nullptr) == 1 &&
      ssl.EVP_CIPHER_CTX_set_padding(context.get(), 0) == 1;
  ssl.EVP_CIPHER_free(cipher);
  if (!ready) {
    return fail(EINVAL, "Cipher '{}' does not take this key of {} bytes", name, key.size());
  }
  return context;
}

Result<void> step(const Context& context, const std::byte* iv, std::byte* bytes,
                  std::size_t length) {
  const OpenSsl& ssl = *context.get_deleter().ssl;
  int done = 0;
  if ((iv != nullptr &&
       ssl.EVP_CipherInit_ex2(context.get(), nullptr, nullptr, raw(iv), -1, nullptr) != 1) ||
      ssl.EVP_CipherUpdate(context.get(), raw(bytes), &done, raw(bytes),
                           static_cast<int>(length)) != 1 ||
      static_cast<std::size_t>(done) != length) {
    return fail(EIO, "the cipher failed");
  }
  return {};
}

}  // namespace

std::string CipherSpec::algorithm() const { return fmt::format("aes-{}", key_bits); }

std::string_view name_of(CipherMode mode) {
  switch (mode) {
    case CipherMode::kEcb:
      return "ecb";
    case CipherMode::kCbc:
      return "cbc";
    case CipherMode::kCtr:
      return "ctr";
    case CipherMode::kXts:
      break;
  }
  return "xts";
}

std::string_view name_of(IvGenerator generator) {
  switch (generator) {
    case IvGenerator::kPlain:
      return "plain";
    case IvGenerator::kPlain64:
      return "plain64";
    case IvGenerator::kEssiv:
      break;
  }
  return "essiv";
}

Result<unsigned> parse_algorithm(std::string_view name) {
  if (name == "aes-128") return 128u;
  if (name == "aes-192") return 192u;
  if (name == "aes-256") return 256u;
  if (std::find(kOtherAlgorithms.begin(), kOtherAlgorithms.end(), name) != kOtherAlgorithms.end())
    return fail(ENOTSUP, "Algorithm '{}' not supported", name);
  return fail(EINVAL, "Parameter 'cipher-alg' does not accept value '{}'", name);
}

Result<CipherMode> parse_mode(std::string_view name) {
  for (const CipherMode mode :
       {CipherMode::kEcb, CipherMode::kCbc, CipherMode::kCtr, CipherMode::kXts}) {
    if (name == name_of(mode)) return mode;
  }
  return fail(EINVAL, "Parameter 'cipher-mode' does not accept value '{}'", name);
}

Result<IvGenerator> parse_generator(std::string_view name) {
  for (const IvGenerator generator :
       {IvGenerator::kPlain, IvGenerator::kPlain64, IvGenerator::kEssiv}) {
    if (name == name_of(generator)) return generator;
  }
  return fail(EINVAL, "Parameter 'ivgen-alg' does not accept value '{}'", name);
}

struct SectorCipher::State {
  Context encrypting;
  Context decrypting;
  Context generating;  // kEssiv
};

SectorCipher::SectorCipher(CipherSpec spec, SecretBytes key)
    : spec_(std::move(spec)), key_(std::move(key)) {}

SectorCipher::~SectorCipher() = default;

Result<std::unique_ptr<SectorCipher>> SectorCipher::create(const CipherSpec& spec,
                                                           std::span<const std::byte> key) {
  if (key.size() != spec.key_bytes()) {
    return fail(EINVAL, "Cipher key length {} should be {}", key.size(), spec.key_bytes());
  }
  if (spec.mode == CipherMode::kXts && spec.key_bits == 192) {
    return fail(ENOTSUP, "Algorithm 'aes-192' not supported with mode 'xts'");
  }
  std::unique_ptr<SectorCipher> made(new SectorCipher(spec, SecretBytes::of(key)));
  if (spec.generator == IvGenerator::kEssiv) {
    const auto hash = Hash::named(spec.generator_hash);
    PLATTER_TRY(hash);
    if (hash->size() != 16 && hash->size() != 24 && hash->size() != 32) {
      return fail(EINVAL, "No AES cipher with key size {} available", hash->size());
    }
    made->essiv_key_ = SecretBytes(hash->size());
    const Result<void> hashed = hash->digest(key, {}, made->essiv_key_.span());
    PLATTER_TRY(hashed);
  }
  // Says now what would be wrong with the key (xts refuses two equal halves).
  auto state = made->make_state();
  PLATTER_TRY(state);
  MutexLock lock(made->mutex_);
  made->idle_.push_back(std::move(*state));
  return made;
}

Result<std::unique_ptr<SectorCipher::State>> SectorCipher::make_state() const {
  const std::string name = fmt::format("AES-{}-{}", spec_.key_bits, name_of(spec_.mode));
  auto state = std::make_unique<State>();
  for (const bool encrypting : {true, false}) {
    auto context = make_context(name, key_.span(), encrypting);
    PLATTER_TRY(context);
    (encrypting ? state->encrypting : state->decrypting) = std::move(*context);
  }
  if (spec_.generator == IvGenerator::kEssiv) {
    auto context =
        make_context(fmt::format("AES-{}-ecb", essiv_key_.size() * 8), essiv_key_.span(), true);
    PLATTER_TRY(context);
    state->generating = std::move(*context);
  }
  return state;
}

Result<std::unique_ptr<SectorCipher::State>> SectorCipher::take_state() {
  {
    MutexLock lock(mutex_);
    if (!idle_.empty()) {
      auto state = std::move(idle_.back());
      idle_.pop_back();
      return state;
    }
  }
  return make_state();
}

Result<void> SectorCipher::run(std::uint64_t sector, std::span<std::byte> bytes, bool encrypting) {
  if (bytes.size() % kSectorSize != 0) {
    return fail(EINVAL, "{} bytes are no whole sectors to encrypt", bytes.size());
  }
  auto state = take_state();
  PLATTER_TRY(state);
  const Context& context = encrypting ? (*state)->encrypting : (*state)->decrypting;
  Result<void> result;
  for (; !bytes.empty() && result; bytes = bytes.subspan(kSectorSize), ++sector) {
    std::array<std::byte, kBlock> iv{};
    store_le(iv.data(), spec_.generator == IvGenerator::kPlain ? sector & 0xffff'ffff : sector);
    if (spec_.generator == IvGenerator::kEssiv)
      result = step((*state)->generating, nullptr, iv.data(), kBlock);
    if (result) {
      result = step(context, spec_.mode == CipherMode::kEcb ? nullptr : iv.data(), bytes.data(),
                    kSectorSize);
    }
  }
  MutexLock lock(mutex_);
  idle_.push_back(std::move(*state));
  return result;
}

Result<void> SectorCipher::encrypt(std::uint64_t sector, std::span<std::byte> bytes) {
  return run(sector, bytes, true);
}

Result<void> SectorCipher::decrypt(std::uint64_t sector, std::span<std::byte> bytes) {
  return run(sector, bytes, false);
}

}  // namespace platter::crypto
