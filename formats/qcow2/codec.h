// Packing and unpacking of compressed clusters.
//
// zlib: a raw deflate stream whose matches reach back 4 KiB at most (window bits 12), the promise
// that readers of qcow2 rely on. zstd: whole frames.
//
// Threads: any; state is kept per thread. CPU heavy: call on WorkerPool::codecs().
// Errors: EIO for streams that are broken, end early, or do not hold exactly one cluster.
#pragma once

#include <cstddef>
#include <span>

#include "block/base/error.h"
#include "formats/qcow2/layout.h"

namespace platter::qcow2 {

// Unpacks a stream that starts at the start of `packed` and may be followed by anything, into
// exactly out.size() bytes. Needs no memory in proportion to what the stream claims.
Result<void> inflate_cluster(CompressionType type, std::span<const std::byte> packed,
                             std::span<std::byte> out);

// Packs `cluster` into `out`; gives the bytes used, or 0 when the result would not be shorter than
// the cluster or does not fit into `out`.
Result<std::size_t> deflate_cluster(CompressionType type, std::span<const std::byte> cluster,
                                    std::span<std::byte> out);

}  // namespace platter::qcow2
