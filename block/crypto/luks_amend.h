// Changing the key slots of a LUKS volume in a node: what `amend` does with it.
//
// After a power cut at any moment the volume opens with the passphrases that it had, or with those
// that it was to have: key material is durable before the slot that needs it becomes active, a slot
// is durably idle before its material is overwritten, and a slot that is overwritten lends its
// place to an idle one meanwhile, if there is one.
//
// Threads: one executor, and nobody else who changes the slots meanwhile; what is costly runs on
// WorkerPool::blocking().
// Errors: with the words of QEMU 7.2 where it refuses; nothing has changed then.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "block/base/error.h"
#include "block/crypto/luks.h"
#include "block/exec/task.h"
#include "block/node/node.h"
#include "block/node/options.h"

namespace platter::crypto {

struct LuksAmendment {
  bool activate = true;                   // a slot; otherwise slots are erased
  std::optional<std::uint64_t> slot;      // not given: an idle one, or all that old_secret opens
  std::optional<std::string> new_secret;  // ids
  std::optional<std::string> old_secret;
  std::optional<std::uint64_t> iteration_milliseconds;
};

// Takes "state", "keyslot", "new-secret", "old-secret" and "iter-time" of `options`.
Result<LuksAmendment> take_luks_amendment(Options& options);

// What can be refused without looking at keys.
Result<void> check_luks_amendment(const LuksAmendment& amendment, const LuksHeader& header,
                                  bool force);

// Amends the volume at byte `base` of `file` and `header` with it; `secret` is the id of a
// passphrase that opens it. `force` allows to overwrite an active slot and to erase the last one.
// After an error of the node, `header` may be older than what the file says: read it again.
Task<Result<void>> amend_luks(BlockNode& file, std::uint64_t base, LuksHeader& header,
                              LuksAmendment amendment, std::optional<std::string> secret,
                              bool force);

}  // namespace platter::crypto
