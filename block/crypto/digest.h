// Hashes, PBKDF2 and random bytes, by the names LUKS and QEMU give them.
//
// Threads: any. pbkdf2() and measure_pbkdf2() are CPU heavy: call them on a WorkerPool.
// Errors: ENOTSUP, with the name, for a hash that the library does not offer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "block/base/error.h"

struct evp_md_st;  // of the library

namespace platter::crypto {

struct OpenSsl;

// A hash by name: md5, sha1, sha224, sha256, sha384, sha512, ripemd160. A value.
class Hash {
 public:
  static Result<Hash> named(std::string_view name);
  // Whether QEMU has a hash of this name.
  static bool is_name(std::string_view name);

  const std::string& name() const { return name_; }
  std::size_t size() const { return size_; }  // bytes of a digest

  // The digest of `first` followed by `second`; out.size() <= size() bytes of it.
  Result<void> digest(std::span<const std::byte> first, std::span<const std::byte> second,
                      std::span<std::byte> out) const;
  Result<void> pbkdf2(std::span<const std::byte> password, std::span<const std::byte> salt,
                      std::uint32_t iterations, std::span<std::byte> out) const;
  // Iterations of pbkdf2() for `out_size` bytes that take `milliseconds` of this machine's CPU.
  Result<std::uint64_t> measure_pbkdf2(std::size_t out_size, std::uint64_t milliseconds) const;

 private:
  const OpenSsl* ssl_ = nullptr;  // never null once named
  std::string name_;
  std::size_t size_ = 0;
  std::shared_ptr<evp_md_st> md_;  // never null; never changed
};

Result<void> random_bytes(std::span<std::byte> out);

}  // namespace platter::crypto
