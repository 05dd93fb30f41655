// Reading and writing the VM state that an image keeps beside its disk (-b).
// Threads: any executor; memory and node outlive the call.
#pragma once

#include <cstdint>

#include "block/base/error.h"
#include "block/exec/iovec.h"
#include "block/exec/task.h"
#include "block/node/node.h"

namespace platter::io_tool {

// `offset` counts bytes from the start of the VM state. ENOTSUP where the format has none.
Task<Result<void>> read_vm_state(BlockNode& node, std::uint64_t offset, IoVec iov);
Task<Result<void>> write_vm_state(BlockNode& node, std::uint64_t offset, IoVec iov);

}  // namespace platter::io_tool
