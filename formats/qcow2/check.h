// The consistency check of a qcow2 image, and its repair.
//
// Every reference of the header, the L1 and L2 tables (active and of snapshots), the snapshot and
// bitmap tables and the refcount structure is counted and compared with the refcounts on disk.
// What is found is counted, and said, as `qemu-img check` 7.2 does. Memory: 2 bytes for each
// cluster in the ranges that are referenced, the L1 tables, and a few MiB.
//
// Works on the storage node; an image that is live must have written back everything before, do
// nothing meanwhile, and take over `header` and reload its tables afterwards when something was
// fixed.
//
// Threads: one executor.
// Errors: when the check itself cannot be done; findings are counted in the CheckResult.
#pragma once

#include "block/base/error.h"
#include "block/exec/task.h"
#include "block/node/abilities.h"
#include "block/node/node.h"
#include "formats/qcow2/layout.h"

namespace platter::qcow2 {

// `header` is what the file has; a repair that changes it on disk (new refcount table, dirty and
// corrupt bits cleared) changes it here too. `request` lives until completion.
Task<Result<CheckResult>> check_image(BlockNode& file, Header& header, const CheckRequest& request);

// Gives an image whose tables agree with each other new refcounts of 1 << `order` bits, all at once
// by one write of the header. EINVAL where a refcount does not fit, naming it.
// Cancelled (nullptr: never), before that write, it leaves everything as it was: ECANCELED.
Task<Result<void>> change_refcount_width(BlockNode& file, Header& header, unsigned order,
                                         const std::atomic<bool>* cancelled);

// What opening a dirty image for writing does first: makes the refcounts agree with the tables and
// clears the dirty bit. Fails when errors remain.
Task<Result<void>> rebuild_refcounts(BlockNode& file, Header& header);

}  // namespace platter::qcow2
