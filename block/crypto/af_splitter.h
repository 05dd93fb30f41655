// The anti-forensic splitter of LUKS: a key spread over `stripes` times its size, so that it is
// gone when any part of that is (LUKS on-disk format 1.2, section 2.4).
//
// Threads: pure functions. Errors: sizes that do not fit, and the hash's own.
#pragma once

#include <cstdint>
#include <span>

#include "block/base/error.h"
#include "block/crypto/digest.h"

namespace platter::crypto {

// `split` is key.size() * stripes bytes.
Result<void> af_split(const Hash& hash, std::uint32_t stripes, std::span<const std::byte> key,
                      std::span<std::byte> split);
Result<void> af_merge(const Hash& hash, std::uint32_t stripes, std::span<const std::byte> split,
                      std::span<std::byte> key);

}  // namespace platter::crypto
