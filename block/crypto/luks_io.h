// LUKS volumes inside a node: reading the header, and finding the master key.
//
// Threads: one executor; the costly parts run on WorkerPool::blocking().
// Errors: as luks_header.h and luks.h say, and those of the node.
#pragma once

#include <cstdint>
#include <memory>

#include "block/base/error.h"
#include "block/crypto/luks.h"
#include "block/exec/task.h"
#include "block/node/data_transform.h"
#include "block/node/node.h"

namespace platter::crypto {

// The header at byte `base` of `file`; header and slots take at most `area` bytes.
Task<Result<LuksHeader>> read_luks_header(BlockNode& file, std::uint64_t base, std::uint64_t area);

// The master key out of one slot; nothing when the slot is idle or the passphrase is another's.
Task<Result<std::optional<SecretBytes>>> try_luks_slot(BlockNode& file, std::uint64_t base,
                                                       const LuksHeader& header, std::size_t slot,
                                                       SecretBytes passphrase);
// The master key, with a passphrase that fits any slot. EACCES: it fits none.
Task<Result<SecretBytes>> unlock_luks(BlockNode& file, std::uint64_t base, LuksHeader header,
                                      SecretBytes passphrase);

// Makes a volume on a worker thread.
Task<Result<LuksVolume>> make_luks_volume_aside(LuksParameters parameters, SecretBytes passphrase);

// A cipher as what an engine passes data through. `sectors` says which offset numbers them.
class SectorTransform final : public DataTransform {
 public:
  enum class Sectors : std::uint8_t { kByHost, kByGuest };
  SectorTransform(std::unique_ptr<SectorCipher> cipher, Sectors sectors)
      : cipher_(std::move(cipher)), sectors_(sectors) {}

  Result<void> encode(std::span<std::byte> bytes, std::uint64_t host,
                      std::uint64_t guest) override {
    return cipher_->encrypt(number(host, guest), bytes);
  }
  Result<void> decode(std::span<std::byte> bytes, std::uint64_t host,
                      std::uint64_t guest) override {
    return cipher_->decrypt(number(host, guest), bytes);
  }

 private:
  std::uint64_t number(std::uint64_t host, std::uint64_t guest) const {
    return (sectors_ == Sectors::kByHost ? host : guest) / kSectorSize;
  }

  const std::unique_ptr<SectorCipher> cipher_;
  const Sectors sectors_;
};

}  // namespace platter::crypto
