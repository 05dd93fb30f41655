// Memory for coroutine frames: a free list per thread and size class, so that an awaited call costs
// no malloc. Frames above the largest class come from the heap.
//
// Threads: any. A frame may be freed on another thread than the one that allocated it; it then
// joins that thread's list.
#pragma once

#include <cstddef>

namespace platter {

void* allocate_frame(std::size_t size);
void free_frame(void* frame, std::size_t size) noexcept;

}  // namespace platter
