// Named points of a format's or node's work, at which the fault filter (block/filters/fault.h) may
// change state, arm an error or hold a request. Names are those of QEMU's BlkdebugEvent.
//
//   PLATTER_FAULT(*file_, FaultEvent::kL2Load);   // in a coroutine; *file_ is the storage node
//
// Threads: any. When the node below is no fault filter it costs one branch.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace platter {

enum class FaultEvent : std::uint8_t {
  kNone,
  kL1Update,
  kL1GrowAllocTable,
  kL1GrowWriteTable,
  kL1GrowActivateTable,
  kL2Load,
  kL2Update,
  kL2UpdateCompressed,
  kL2AllocCowRead,
  kL2AllocWrite,
  kReadAio,
  kReadBackingAio,
  kReadCompressed,
  kWriteAio,
  kWriteCompressed,
  kVmstateLoad,
  kVmstateSave,
  kCowRead,
  kCowWrite,
  kReftableLoad,
  kReftableGrow,
  kReftableUpdate,
  kRefblockLoad,
  kRefblockUpdate,
  kRefblockUpdatePart,
  kRefblockAlloc,
  kRefblockAllocHookup,
  kRefblockAllocWrite,
  kRefblockAllocWriteBlocks,
  kRefblockAllocWriteTable,
  kRefblockAllocSwitchTable,
  kClusterAlloc,
  kClusterAllocBytes,
  kClusterFree,
  kFlushToOs,
  kFlushToDisk,
  kPwritevRmwHead,
  kPwritevRmwAfterHead,
  kPwritevRmwTail,
  kPwritevRmwAfterTail,
  kPwritev,
  kPwritevZero,
  kPwritevDone,
  kEmptyImagePrepare,
  kL1ShrinkWriteTable,
  kL1ShrinkFreeL2Clusters,
  kCorWrite,
  kClusterAllocSpace,
  // Ours: where a format frees space below, and where a mapping has been looked up but its data has
  // not yet been asked for.
  kClusterPunch,
  kMapped,
  kCount,
};

// "l2_load" and so on.
std::string_view fault_event_name(FaultEvent event);
std::optional<FaultEvent> parse_fault_event(std::string_view name);

}  // namespace platter

#define PLATTER_FAULT(node, event)                     \
  do {                                                 \
    if ((node).listens_to_events()) [[unlikely]] {     \
      auto platter_announced = (node).announce(event); \
      co_await platter_announced;                      \
    }                                                  \
  } while (false)
