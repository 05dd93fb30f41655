// Copying between files by way of a pipe: pages of the source's page cache are written to the
// target without a stop in this process's memory, which saves one of the two copies.
//
// Threads: any; each thread has a pipe of its own, made at first use.
// Errors: positive errno codes.
#pragma once

#include <cstdint>

namespace platter {

// Copies `length` bytes; blocks until it is done. 0; ENOTSUP: one of the files cannot be spliced,
// the source ends before, or there is no pipe to be had; or what the writing failed with. A part
// may have been copied.
int splice_range(int from, std::uint64_t source, int to, std::uint64_t target,
                 std::uint64_t length);

}  // namespace platter
