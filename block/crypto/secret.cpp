#include "block/crypto/secret.h"

#include <string.h>

#include <algorithm>
#include <map>

#include "block/base/mutex.h"

namespace platter::crypto {
namespace {

struct Table {
  Mutex mutex;
  std::map<std::string, SecretBytes, std::less<>> secrets PLATTER_GUARDED_BY(mutex);
};

Table& table() {
  static Table all;
  return all;
}

int base64_value(char c) {
  if (c >= 'A' && c <= 'Z') return c - 'A';
  if (c >= 'a' && c <= 'z') return c - 'a' + 26;
  if (c >= '0' && c <= '9') return c - '0' + 52;
  if (c == '+') return 62;
  return c == '/' ? 63 : -1;
}

}  // namespace

void wipe(std::span<std::byte> bytes) {
  if (!bytes.empty()) ::explicit_bzero(bytes.data(), bytes.size());
}

void wipe(std::string& text) {
  wipe(std::as_writable_bytes(std::span(text)));
  text.clear();
}

void SecretBytes::clear() {
  wipe(bytes_);
  bytes_.clear();
}

SecretBytes SecretBytes::of(std::span<const std::byte> bytes) {
  SecretBytes made(bytes.size());
  std::copy(bytes.begin(), bytes.end(), made.bytes_.begin());
  return made;
}

SecretBytes SecretBytes::of(std::string_view text) { return of(std::as_bytes(std::span(text))); }

Result<void> add_secret(std::string id, SecretBytes value) {
  Table& all = table();
  MutexLock lock(all.mutex);
  const auto [at, added] = all.secrets.try_emplace(std::move(id), std::move(value));
  if (added) return {};
  return fail(EEXIST, "attempt to add duplicate property '{}' to object (type 'container')",
              at->first);
}

Result<SecretBytes> find_secret(std::string_view id) {
  Table& all = table();
  MutexLock lock(all.mutex);
  const auto found = all.secrets.find(id);
  if (found == all.secrets.end()) return fail(ENOENT, "No secret with id '{}'", id);
  return found->second.copy();
}

void remove_secret(std::string_view id) {
  Table& all = table();
  MutexLock lock(all.mutex);
  if (const auto found = all.secrets.find(id); found != all.secrets.end()) all.secrets.erase(found);
}

Result<SecretBytes> decode_base64(std::string_view text) {
  SecretBytes out(text.size() / 4 * 3 + 3);
  std::size_t length = 0;
  std::uint32_t bits = 0;
  unsigned have = 0;     // characters of the group of four
  unsigned padding = 0;  // '=' seen
  for (const char c : text) {
    if (c == ' ' || c == '\t' || c == '\r' || c == '\n') continue;
    if (c == '=' && have + padding >= 2 && padding < 2) {
      ++padding;
      continue;
    }
    const int value = base64_value(c);
    if (value < 0 || padding != 0) {
      return fail(EINVAL, "Base64 data contains invalid characters");
    }
    bits = bits << 6 | static_cast<std::uint32_t>(value);
    if (++have < 4) continue;
    for (const unsigned shift : {16u, 8u, 0u})
      out.span()[length++] = static_cast<std::byte>(bits >> shift & 0xff);
    have = 0;
    bits = 0;
  }
  if (have == 1 || (have != 0 && have + padding != 4) || (have == 0 && padding != 0)) {
    return fail(EINVAL, "Base64 data is not valid: it ends in the middle of a group");
  }
  if (have >= 2) out.span()[length++] = static_cast<std::byte>(bits >> (have == 2 ? 4 : 10) & 0xff);
  if (have == 3) out.span()[length++] = static_cast<std::byte>(bits >> 2 & 0xff);
  return SecretBytes::of(std::span<const std::byte>(out.span().first(length)));
}

}  // namespace platter::crypto
