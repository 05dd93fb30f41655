// SectorCipher: encrypts disk sectors of 512 bytes, each by itself, with an initialisation vector
// that is made from the sector's number.
//
// A cipher is named in four parts, as QEMU names them: algorithm ("aes-256"), mode ("xts"),
// IV generator ("plain64") and, for essiv, the generator's hash ("sha256"). The library is OpenSSL,
// which has AES; serpent, twofish and cast5 are refused by name.
//
// Threads: any, several at once. CPU heavy for long buffers: a gigabyte takes a good part of a
// second. Ownership: keeps a copy of the key, wiped at the end.
// Errors: ENOTSUP with the name of what is not supported, EINVAL for key sizes that do not fit.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "block/base/error.h"
#include "block/base/mutex.h"
#include "block/crypto/digest.h"
#include "block/crypto/secret.h"

namespace platter::crypto {

inline constexpr std::size_t kSectorSize = 512;  // bytes

enum class CipherMode : std::uint8_t { kEcb, kCbc, kCtr, kXts };
enum class IvGenerator : std::uint8_t { kPlain, kPlain64, kEssiv };

struct CipherSpec {
  unsigned key_bits = 256;  // of AES: 128, 192 or 256; xts has two such keys
  CipherMode mode = CipherMode::kXts;
  IvGenerator generator = IvGenerator::kPlain64;
  std::string generator_hash;  // kEssiv

  std::size_t key_bytes() const { return key_bits / 8 * (mode == CipherMode::kXts ? 2 : 1); }
  std::string algorithm() const;  // "aes-256"
  bool operator==(const CipherSpec&) const = default;
};

std::string_view name_of(CipherMode mode);
std::string_view name_of(IvGenerator generator);
// By QEMU's names. ENOTSUP: QEMU has it and we do not; EINVAL: nobody has.
Result<unsigned> parse_algorithm(std::string_view name);  // key bits
Result<CipherMode> parse_mode(std::string_view name);
Result<IvGenerator> parse_generator(std::string_view name);

class SectorCipher {
 public:
  // `key` is spec.key_bytes() long.
  static Result<std::unique_ptr<SectorCipher>> create(const CipherSpec& spec,
                                                      std::span<const std::byte> key);
  ~SectorCipher();
  SectorCipher(const SectorCipher&) = delete;
  SectorCipher& operator=(const SectorCipher&) = delete;

  // In place. `bytes` are whole sectors, the first of which has number `sector`.
  Result<void> encrypt(std::uint64_t sector, std::span<std::byte> bytes);
  Result<void> decrypt(std::uint64_t sector, std::span<std::byte> bytes);

 private:
  struct State;
  SectorCipher(CipherSpec spec, SecretBytes key);
  Result<void> run(std::uint64_t sector, std::span<std::byte> bytes, bool encrypting);
  Result<std::unique_ptr<State>> make_state() const;
  Result<std::unique_ptr<State>> take_state();

  const CipherSpec spec_;
  SecretBytes key_;
  SecretBytes essiv_key_;  // kEssiv: the hash of the key
  Mutex mutex_;
  // One per thread at work, at most.
  std::vector<std::unique_ptr<State>> idle_ PLATTER_GUARDED_BY(mutex_);
};

}  // namespace platter::crypto
