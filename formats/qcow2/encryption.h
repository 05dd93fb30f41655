// Encryption of an image's data: how an image that is encrypted is unlocked, and how a new one is
// made so. LUKS counts sectors by where they lie in the file, the old AES method by where they lie
// on the disk (qcow2 specification, "Data encryption").
//
// Threads: one executor; costly parts run on a worker thread. Errors: with the words of QEMU 7.2.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "block/base/error.h"
#include "block/crypto/luks_io.h"
#include "block/exec/task.h"
#include "block/node/node.h"
#include "block/node/options.h"
#include "formats/qcow2/layout.h"

namespace platter::qcow2 {

// Bytes that a LUKS header with its slots may take; ours take 2 MiB.
inline constexpr std::uint64_t kMaxEncryptionHeader = std::uint64_t{16} << 20;

// Takes "encrypt.format" and "encrypt.key-secret" of an image that is opened; gives the secret's
// id.
Result<std::optional<std::string>> take_encryption_options(Options& options, CryptMethod method);

// The LUKS header of an image that has one. Checks where the header extension says it lies.
Task<Result<crypto::LuksHeader>> read_encryption_header(BlockNode& file, const Header& header);

// The cipher of an encrypted image; `luks` is its LUKS header, if it has one.
Task<Result<std::unique_ptr<DataTransform>>> unlock(BlockNode& file, const Header& header,
                                                    const crypto::LuksHeader* luks,
                                                    std::optional<std::string> secret);

// How a new image is encrypted.
struct EncryptionPlan {
  CryptMethod method = CryptMethod::kNone;
  crypto::LuksParameters luks;
  std::optional<std::string> secret;  // id

  // Bytes of the header that LUKS keeps in the image; 0: none.
  std::uint64_t header_bytes() const {
    return method == CryptMethod::kLuks ? crypto::luks_payload_offset(luks.cipher) : 0;
  }
  Result<crypto::SecretBytes> key() const;  // the secret's value
};
// Takes "encryption" and "encrypt.*" of the options of create.
Result<EncryptionPlan> take_encryption_plan(Options& options);

}  // namespace platter::qcow2
