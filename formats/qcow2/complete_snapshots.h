// Making an image with old snapshot table entries one of version 3: the checker counts what it
// needs, so this is done with its passes.
//
// Threads: one executor; nothing else uses the image, as for check_image() (check.h).
// Errors: those of the file; EIO (kCorrupt) for an image that must be repaired first, ENOSPC.
#pragma once

#include <atomic>
#include <cstdint>

#include "block/base/error.h"
#include "block/exec/task.h"
#include "block/node/node.h"
#include "formats/qcow2/layout.h"

namespace platter::qcow2 {

// Writes the snapshot table with all extra data that `version` demands, and the header with that
// version, all at once. Cancelled (nullptr: never), it leaves everything as it was: ECANCELED.
Task<Result<void>> complete_snapshots(BlockNode& file, Header& header, std::uint32_t version,
                                      const std::atomic<bool>* cancelled);

}  // namespace platter::qcow2
