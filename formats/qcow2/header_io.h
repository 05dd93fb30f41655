// Writing the header so that a power cut leaves the old one or the new one.
//
// A disk writes whole sectors of 512 bytes; a longer write may come through in part. All fields of
// the header are in the first sector, but extensions and the name of the backing file may reach
// beyond it. So what lies behind the first sector is written first, to places to which the header
// on disk does not point, and made durable; then the first sector switches over. Where an extension
// must move across the border, a header without the (optional) table of feature names is on disk in
// between.
//
// Threads: one coroutine at a time for an image.
// Errors: those of the file, and of encode_header().
#pragma once

#include "block/base/error.h"
#include "block/exec/task.h"
#include "block/node/node.h"
#include "formats/qcow2/layout.h"

namespace platter::qcow2 {

// Bytes at the start of the file that a disk writes wholly or not at all, and that make a header
// valid.
inline constexpr std::uint64_t kHeaderSwitch = 512;

// `header` lives until completion. The new header is durable after the next flush; what it points
// to must be so before.
Task<Result<void>> put_header(BlockNode& file, const Header& header);

// What readers and the checker can do without: a refcount table. The error says what is wrong with
// the one that the header names.
Result<void> require_refcount_table(const Header& header);

}  // namespace platter::qcow2
