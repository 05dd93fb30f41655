#include "block/crypto/af_splitter.h"

#include <algorithm>
#include <array>

#include "block/base/bytes.h"
#include "block/crypto/secret.h"

namespace platter::crypto {
namespace {

// Hashes `block` piece by piece in place, each with its number in front.
Result<void> diffuse(const Hash& hash, std::span<std::byte> block) {
  std::uint32_t number = 0;
  while (!block.empty()) {
    const std::size_t length = std::min(hash.size(), block.size());
    std::array<std::byte, 4> counter;
    store_be(counter.data(), number++);
    const std::span<std::byte> piece = block.first(length);
    const Result<void> done = hash.digest(counter, piece, piece);
    PLATTER_TRY(done);
    block = block.subspan(length);
  }
  return {};
}

void mix(std::span<std::byte> into, std::span<const std::byte> with) {
  std::transform(into.begin(), into.end(), with.begin(), into.begin(),
                 [](std::byte a, std::byte b) { return a ^ b; });
}

bool fits(std::uint32_t stripes, std::size_t key, std::size_t split) {
  return stripes != 0 && key != 0 && split / stripes == key && split % stripes == 0;
}

// What all stripes but the last one come to.
Result<SecretBytes> gather(const Hash& hash, std::uint32_t stripes,
                           std::span<const std::byte> split, std::size_t size) {
  SecretBytes block(size);
  for (std::uint32_t i = 0; i + 1 < stripes; ++i) {
    mix(block.span(), split.subspan(i * size, size));
    const Result<void> done = diffuse(hash, block.span());
    PLATTER_TRY(done);
  }
  return block;
}

}  // namespace

Result<void> af_split(const Hash& hash, std::uint32_t stripes, std::span<const std::byte> key,
                      std::span<std::byte> split) {
  if (!fits(stripes, key.size(), split.size()))
    return fail(EINVAL, "a key of {} bytes does not split into {}", key.size(), split.size());
  const std::size_t before = split.size() - key.size();
  const Result<void> filled = random_bytes(split.first(before));
  PLATTER_TRY(filled);
  const auto block = gather(hash, stripes, split, key.size());
  PLATTER_TRY(block);
  const std::span<std::byte> last = split.subspan(before);
  std::copy(key.begin(), key.end(), last.begin());
  mix(last, block->span());
  return {};
}

Result<void> af_merge(const Hash& hash, std::uint32_t stripes, std::span<const std::byte> split,
                      std::span<std::byte> key) {
  if (!fits(stripes, key.size(), split.size()))
    return fail(EINVAL, "{} bytes do not merge into a key of {}", split.size(), key.size());
  const auto block = gather(hash, stripes, split, key.size());
  PLATTER_TRY(block);
  const std::span<const std::byte> last = split.subspan(split.size() - key.size());
  std::copy(last.begin(), last.end(), key.begin());
  mix(key, block->span());
  return {};
}

}  // namespace platter::crypto
