#include "block/crypto/digest.h"

#include <algorithm>
#include <array>
#include <ctime>
#include <memory>

#include "block/crypto/openssl.h"
#include "block/crypto/secret.h"

namespace platter::crypto {
namespace {

constexpr std::array<std::string_view, 7> kNames{"md5",    "sha1",   "sha224",   "sha256",
                                                 "sha384", "sha512", "ripemd160"};

const unsigned char* bytes_of(std::span<const std::byte> bytes) {
  // The library counts in unsigned char, which is what a byte is.
  return reinterpret_cast<const unsigned char*>(bytes.data());
}

std::uint64_t thread_milliseconds() {
  timespec now{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<std::uint64_t>(now.tv_sec) * 1000 +
         static_cast<std::uint64_t>(now.tv_nsec) / 1'000'000;
}

}  // namespace

bool Hash::is_name(std::string_view name) {
  return std::find(kNames.begin(), kNames.end(), name) != kNames.end();
}

Result<Hash> Hash::named(std::string_view name) {
  if (!is_name(name)) return fail(ENOTSUP, "Hash algorithm '{}' is not supported", name);
  const auto ssl = openssl();
  PLATTER_TRY(ssl);
  Hash hash;
  hash.name_ = name;
  hash.ssl_ = *ssl;
  hash.md_.reset((*ssl)->EVP_MD_fetch(nullptr, hash.name_.c_str(), nullptr), (*ssl)->EVP_MD_free);
  if (!hash.md_) return fail(ENOTSUP, "Hash algorithm '{}' is not offered by the library", name);
  hash.size_ = static_cast<std::size_t>((*ssl)->EVP_MD_get_size(hash.md_.get()));
  return hash;
}

Result<void> Hash::digest(std::span<const std::byte> first, std::span<const std::byte> second,
                          std::span<std::byte> out) const {
  const std::unique_ptr<EVP_MD_CTX, decltype(ssl_->EVP_MD_CTX_free)> context(ssl_->EVP_MD_CTX_new(),
                                                                             ssl_->EVP_MD_CTX_free);
  std::array<unsigned char, EVP_MAX_MD_SIZE> full;
  unsigned length = 0;
  if (!context || out.size() > size_ ||
      ssl_->EVP_DigestInit_ex(context.get(), md_.get(), nullptr) != 1 ||
      ssl_->EVP_DigestUpdate(context.get(), first.data(), first.size()) != 1 ||
      ssl_->EVP_DigestUpdate(context.get(), second.data(), second.size()) != 1 ||
      ssl_->EVP_DigestFinal_ex(context.get(), full.data(), &length) != 1) {
    return fail(EIO, "the {} digest failed", name_);
  }
  std::transform(full.begin(), full.begin() + static_cast<std::ptrdiff_t>(out.size()), out.begin(),
                 [](unsigned char c) { return static_cast<std::byte>(c); });
  wipe(std::as_writable_bytes(std::span(full)));
  return {};
}

Result<void> Hash::pbkdf2(std::span<const std::byte> password, std::span<const std::byte> salt,
                          std::uint32_t iterations, std::span<std::byte> out) const {
  if (iterations == 0 || iterations > INT32_MAX) {
    return fail(EINVAL, "PBKDF2 cannot iterate {} times", iterations);
  }
  // An empty password is one, but a null pointer is none.
  static constexpr char kNothing = 0;
  const char* const text =
      password.empty() ? &kNothing : reinterpret_cast<const char*>(password.data());
  if (ssl_->PKCS5_PBKDF2_HMAC(text, static_cast<int>(password.size()), bytes_of(salt),
                              static_cast<int>(salt.size()), static_cast<int>(iterations),
                              md_.get(), static_cast<int>(out.size()),
                              reinterpret_cast<unsigned char*>(out.data())) != 1) {
    return fail(EIO, "PBKDF2 with {} failed", name_);
  }
  return {};
}

Result<std::uint64_t> Hash::measure_pbkdf2(std::size_t out_size, std::uint64_t milliseconds) const {
  std::array<std::byte, 32> salt{};
  const std::string password = "a passphrase";
  std::array<std::byte, 128> out{};
  const std::span<std::byte> key = std::span(out).first(std::min(out_size, out.size()));
  // Doubles until it can be timed; no machine is so fast that the last step is too short.
  for (std::uint32_t iterations = 1u << 12;; iterations *= 2) {
    const std::uint64_t start = thread_milliseconds();
    const Result<void> done = pbkdf2(std::as_bytes(std::span(password)), salt, iterations, key);
    PLATTER_TRY(done);
    const std::uint64_t took = thread_milliseconds() - start;
    if (took >= 20 || iterations >= 1u << 28)
      return iterations * milliseconds / std::max<std::uint64_t>(took, 1);
  }
}

Result<void> random_bytes(std::span<std::byte> out) {
  const auto ssl = openssl();
  PLATTER_TRY(ssl);
  if ((*ssl)->RAND_bytes(reinterpret_cast<unsigned char*>(out.data()),
                         static_cast<int>(out.size())) != 1) {
    return fail(EIO, "no random bytes could be had");
  }
  return {};
}

}  // namespace platter::crypto
