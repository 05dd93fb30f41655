// The keys of a LUKS1 volume: making one, unlocking it with a passphrase, filling and erasing key
// slots. Knows bytes only; luks_io.h reads and writes them in a file.
//
// Threads: pure functions over values. Those that take a passphrase cost what its iterations cost,
// up to seconds: call them on a WorkerPool.
// Errors: EACCES for a wrong passphrase; QEMU's words where it has some.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "block/base/error.h"
#include "block/crypto/luks_header.h"
#include "block/crypto/secret.h"

namespace platter::crypto {

struct LuksParameters {
  CipherSpec cipher;
  std::string hash = "sha256";
  std::uint64_t iteration_milliseconds = 2000;  // CPU time that unlocking a slot shall take
};

// A new volume: the bytes in front of its payload, and its master key.
struct LuksVolume {
  LuksHeader header;
  std::vector<std::byte> area;
  SecretBytes key;
};
// With `passphrase` in slot 0.
Result<LuksVolume> make_luks_volume(const LuksParameters& parameters,
                                    std::span<const std::byte> passphrase);

// The master key out of slot `slot`, whose key material is `material`; nothing when the passphrase
// is not this slot's.
Result<std::optional<SecretBytes>> unlock_luks_slot(const LuksHeader& header, std::size_t slot,
                                                    std::span<const std::byte> material,
                                                    std::span<const std::byte> passphrase);

// Fills an idle slot in `header` and gives its key material, to be written before the header is.
Result<std::vector<std::byte>> fill_luks_slot(LuksHeader& header, std::size_t slot,
                                              std::span<const std::byte> key,
                                              std::span<const std::byte> passphrase,
                                              std::uint64_t iteration_milliseconds);
// Makes a slot idle in `header` (write it first) and gives noise to overwrite its material with.
// EINVAL for the last active slot unless `force`: nothing could be read any more.
Result<std::vector<std::byte>> erase_luks_slot(LuksHeader& header, std::size_t slot, bool force);

}  // namespace platter::crypto
