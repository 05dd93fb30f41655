// Secrets: passphrases and keys, in memory that is wiped, and the table of those the user has named
// with --object secret,id=ID,... so that drivers find them by "key-secret=ID".
//
// Threads: a SecretBytes belongs to one caller; the table may be used from any thread.
// Errors: with the words of QEMU 7.2 for the same mistakes.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "block/base/error.h"

namespace platter::crypto {

// Overwrites memory in a way that the compiler keeps.
void wipe(std::span<std::byte> bytes);
void wipe(std::string& text);

// Bytes of fixed size that are wiped when they go. Move only: a copy is asked for by name.
class SecretBytes {
 public:
  SecretBytes() = default;
  explicit SecretBytes(std::size_t size) : bytes_(size) {}
  static SecretBytes of(std::span<const std::byte> bytes);
  static SecretBytes of(std::string_view text);
  ~SecretBytes() { clear(); }
  SecretBytes(SecretBytes&& other) noexcept : bytes_(std::move(other.bytes_)) {
    other.bytes_.clear();
  }
  SecretBytes& operator=(SecretBytes&& other) noexcept {
    if (this != &other) {
      clear();
      bytes_ = std::move(other.bytes_);
      other.bytes_.clear();
    }
    return *this;
  }

  SecretBytes copy() const { return of(span()); }
  std::size_t size() const { return bytes_.size(); }  // bytes
  std::span<std::byte> span() { return bytes_; }
  std::span<const std::byte> span() const { return bytes_; }

 private:
  void clear();

  std::vector<std::byte> bytes_;
};

// Adds "secret,id=ID,data=TEXT|file=PATH[,format=raw|base64]", as --object gives it. A file is read
// now, up to 1 MiB. Secrets that are encrypted by another one (keyid=) are refused.
Result<void> add_secret_object(std::string_view definition);

Result<void> add_secret(std::string id, SecretBytes value);
// A copy of the secret `id`.
Result<SecretBytes> find_secret(std::string_view id);
// Forgets it, if there.
void remove_secret(std::string_view id);

// Standard base64 with padding; white space is skipped, as QEMU does.
Result<SecretBytes> decode_base64(std::string_view text);

}  // namespace platter::crypto
